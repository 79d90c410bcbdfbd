"""Expressive generative policies, and the operators that improve any of them."""

from __future__ import annotations

from importlib import import_module

from offline.waiting import wait_passively

wait_passively()  # before torch is loaded

__version__ = "0.1.0"

# What users import, and the module that defines it. Nothing is imported before it is asked for, so
# that importing this package takes no time. `python -m scripts.public_surface` writes the stub
# beside this file and the list in docs/PYTHON.md.
_DEFINED_IN = {
    "Steered": "genpol.steering.steered",
    "Decision": "genpol.steering.steered",
    "softmax": "genpol.steering.select",
    "argmax": "genpol.steering.select",
    "keep_if_better": "genpol.steering.select",
    "Composed": "genpol.steering.compose",
    "tune": "genpol.steering.tuning",
    "run_episodes": "genpol.steering.paired_episodes",
    "Steer": "genpol.commands.steer.options",
    "steer": "genpol.commands.steer.command",
    "ChunkPolicy": "genpol.policies.policy",
    "Architecture": "genpol.policies.architecture",
    "clone": "genpol.policies.cloning",
    "CloneConfig": "genpol.policies.cloning_config",
    "load_policy": "genpol.policies.policy",
    "load_trained": "genpol.agents.deploy",
    "Train": "genpol.commands.train.options",
    "train": "genpol.commands.from_python",
    "TrainConfig": "genpol.agents.config",
    "usual": "genpol.agents.config",
    "make_agent": "genpol.agents.make",
    "make_value": "genpol.agents.make",
    "make_base": "genpol.agents.make",
    "EXPO": "genpol.agents.expo",
    "PolicyChains": "genpol.policies.chains",
    "RewardTuning": "genpol.agents.reward_tuning",
    "Finetune": "genpol.commands.finetune.options",
    "finetune": "genpol.commands.from_python",
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
