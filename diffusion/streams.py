"""Random streams: everything random is a function of (seed, purpose, epoch, index).

So a resumed run needs no state of generators, and draws the same whatever its batch sizes are.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

# Purposes; no two may share a number.
ROLLOUT = 1  # images that are trained on
EVALUATION = 2
CHECK = 3  # the self-check
DRAWS = 4  # (t, eps) of objectives on the forward process
WINDOW = 5  # which steps draw noise
STEERING = 20  # which chains of a steered sample are copied
KL_TRAINING, KL_EVALUATION = 6, 7  # the distance from the reference
SEVERAL = 8  # images of one prompt, for diversity
JUDGING = 9  # (t, eps) of held-out pairs
VALUE_ROLLOUT, VALUE_HELD_OUT = 10, 11  # images that a value learns from, and is judged by
VALUE_STATES, VALUE_BATCHES = 12, 13  # which states of their chains; batches of them
VALUE_OTHERS = 14  # other prompts that they are judged against


def generators(
    seed: int, purpose: int, epoch: int, indices: Iterable[int]
) -> list[torch.Generator]:
    """One CPU generator per image."""
    out = []
    for i in indices:
        words = np.random.SeedSequence([seed, purpose, epoch, i]).generate_state(1, np.uint64)
        out.append(torch.Generator().manual_seed(int(words[0]) >> 1))
    return out
