"""State of each client of a server: a policy's history, and a stream of noise."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Generator, nn

from offline.types import Policy


def noise(seed: int) -> Iterator[Generator]:
    """A torch Generator for each connection, all different."""
    for number in itertools.count():
        state = np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0]
        yield torch.Generator().manual_seed(int(state >> np.uint64(1)))


def copier(base: Policy, load: Callable[[], Policy]) -> Callable[[], Policy]:
    """What makes a policy for each connection: a history of its own, the same weights.

    What cannot be copied (open files, locks, compiled functions) is loaded again.
    """
    weights = {id(weight): weight for weight in find_weights(base)}

    def make() -> Policy:
        try:
            return copy.deepcopy(base, dict(weights))
        except Exception:  # anybody's class may refuse in its own way
            return load()

    return make


def find_weights(thing: Any, depth: int = 5, seen: set[int] | None = None) -> list[Any]:
    """The parameters of every torch module that `thing` holds in attributes, up to this deep."""
    seen = set() if seen is None else seen
    if isinstance(thing, nn.Module):
        return list(thing.parameters())
    if depth == 0 or id(thing) in seen or isinstance(thing, type | ModuleType):
        return []
    seen.add(id(thing))
    parts = getattr(thing, "__dict__", {}).values()
    return [weight for part in parts for weight in find_weights(part, depth - 1, seen)]
