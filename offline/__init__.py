"""The offline-to-online RL backbone: data, critics, models, the loop, and the types they share."""

from __future__ import annotations

from importlib import import_module

from offline.waiting import wait_passively

wait_passively()  # before torch is loaded

# What users import, and the module that defines it. Nothing is imported before it is asked for, so
# that importing this package takes no time. `python -m scripts.public_surface` writes the stub
# beside this file and the list in docs/PYTHON.md.
_DEFINED_IN = {
    "ActionSpec": "offline.spec",
    "Policy": "offline.types",
    "HasMode": "offline.types",
    "Critic": "offline.types",
    "Episode": "offline.data.episodes",
    "Episodes": "offline.data.episodes",
    "Transitions": "offline.data.transitions",
    "Batch": "offline.data.batch",
    "Replay": "offline.data.replay",
    "Mixture": "offline.data.mixture",
    "Share": "offline.data.mixture",
    "ValueFunction": "offline.critics.value",
    "TDCritic": "offline.critics.td",
    "train_value": "offline.critics.train_value",
    "ValueConfig": "offline.critics.value_config",
    "Agent": "offline.learning.agent",
    "AgentOfParts": "offline.learning.agent",
    "Loop": "offline.learning.loop",
    "RLConfig": "offline.learning.config",
    "InputError": "offline.errors",
    "SpecError": "offline.errors",
}
__all__ = [*_DEFINED_IN]


def __getattr__(name: str) -> object:
    if name not in _DEFINED_IN:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(_DEFINED_IN[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_DEFINED_IN})
