"""Random streams: seeding, saving, and evaluations that leave training as it was."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Generator, nn


@contextmanager
def undisturbed(
    networks: Iterable[nn.Module] = (), generators: Iterable[Generator] = ()
) -> Iterator[None]:
    """Evaluation inside: the networks are in eval mode, and nothing random moves on.

    Args:
        networks: used inside. Each of their modules is put back in the mode that it was in.
        generators: drawn from inside. They are put back as they were, and so are the global ones.
    """
    modules = [(part, part.training) for network in networks for part in network.modules()]
    streams = [(generator, generator.get_state()) for generator in generators]
    everywhere = global_random_state()
    try:
        for module, _ in modules:
            module.training = False  # one by one: `eval` would recurse each time
        yield
    finally:
        for module, training in modules:
            module.training = training
        for generator, state in streams:
            generator.set_state(state)
        set_global_random_state(everywhere)


def global_random_state() -> dict[str, Any]:
    """Of torch (with its CUDA devices, where they are in use), numpy and Python: a state tree."""
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state(),
        "python": random.getstate(),
    }
    if torch.cuda.is_initialized():  # a run on the CPU takes no memory of a GPU
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_global_random_state(state: Mapping[str, Any]) -> None:
    """Take on what `global_random_state` returned."""
    torch.set_rng_state(state["torch"])
    np.random.set_state(state["numpy"])
    random.setstate(state["python"])
    if "cuda" in state and torch.cuda.is_available():
        for device, saved in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(saved, device)


def seed_everything(seed: int) -> None:
    """Seed the global generators, for whatever draws from them."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
