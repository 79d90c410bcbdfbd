"""A seeded permutation of any size that is computed place by place, never stored."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray


def permute(places: NDArray[np.int64], size: int, key: str) -> NDArray[np.int64]:
    """Where a bijection of [0, size) drawn by `key` sends `places` (n,), in O(n) memory.

    A Feistel network of 8 rounds permutes the next even number of bits; what lands at `size` or
    above is sent through again until it does not (cycle walking: Black and Rogaway, 2002).
    """
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half) - np.uint64(1)
    round_keys = np.frombuffer(hashlib.sha512(key.encode()).digest(), "<u8")
    out = places.astype(np.uint64)
    outside = np.ones(len(out), bool)
    while outside.any():
        left, right = out[outside] >> half, out[outside] & mask
        for round_key in round_keys:
            left, right = right, left ^ (_mix(right + round_key) & mask)
        out[outside] = (left << half) | right
        outside = out >= size
    return out.astype(np.int64)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele et al., 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
