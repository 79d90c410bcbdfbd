"""Environments, robot datasets, adapters for other people's policies, and serving."""

from __future__ import annotations

from importlib import import_module

from offline.waiting import wait_passively

wait_passively()  # before torch is loaded

# What users import, and the module that defines it. Nothing is imported before it is asked for, so
# that importing this package takes no time. `python -m scripts.public_surface` writes the stub
# beside this file and the list in docs/PYTHON.md.
_DEFINED_IN = {
    "make_env": "robots.envs.make",
    "make_vector_env": "robots.envs.vector_env",
    "SimulatedEnv": "robots.envs.simulated_env",
    "Simulator": "robots.envs.simulators",
    "layout_seed": "robots.envs.make",
    "open_dataset": "robots.datasets.open",
    "EpisodeList": "robots.datasets.memory",
    "write_hdf5": "robots.datasets.robomimic_hdf5",
    "load_black_box": "robots.policies.load",
    "CallablePolicy": "robots.policies.callable_policy",
    "RemotePolicy": "robots.serving.client",
    "ChunkRunner": "robots.serving.runner",
    "serve_policy": "robots.serving.serve_policy",
    "PolicyServer": "robots.serving.serve",
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
