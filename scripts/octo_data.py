"""Demonstrations as the stand-in for Octo learns from them, and Octo's statistics of them."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

from offline.data.episodes import Episodes
from offline.errors import InputError

WORDS = 64  # features of an instruction
HORIZON = 4  # actions of a chunk
SPREAD_FLOOR = 0.01  # of proprioception that hardly moved in the data


def gather(
    episodes: Episodes, window: int, filter_success: bool
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Every decision of a dataset: (arrays, Octo's statistics).

    proprio (N, W, D) and act (N, H, A) normalised, real (N, W), within (N, H) whether an action is
    still of the episode, language (N, WORDS). Training episodes only, where the file says which.
    """
    which = episodes.splits.get("train", np.arange(len(episodes)))
    proprio, real, act, within, language = [], [], [], [], []
    for index in which:
        episode = episodes[int(index)]
        if filter_success and not episode.success:
            continue
        keys = sorted(k for k, v in episode.obs.items() if v.ndim == 2 and k != "language")
        if not keys:
            raise InputError(
                "the stand-in for Octo learns from vectors, the dataset has images only"
            )
        vectors = np.concatenate([episode.obs[key] for key in keys], -1).astype(np.float32)
        count = len(episode)
        back = np.arange(count)[:, None] + np.arange(1 - window, 1)
        ahead = np.arange(count)[:, None] + np.arange(HORIZON)
        proprio.append(vectors[np.maximum(back, 0)])
        real.append(back >= 0)
        act.append(episode.actions[np.minimum(ahead, count - 1)])
        within.append(ahead < count)
        language.append(np.tile(hashed_words(episode.language or ""), (count, 1)))
    if not act:
        raise InputError("no episode of the dataset succeeded: leave out --filter-success")
    arrays = {
        "proprio": np.concatenate(proprio),
        "real": np.concatenate(real),
        "act": np.concatenate(act).astype(np.float32),
        "within": np.concatenate(within),
        "language": np.concatenate(language),
    }
    statistics = {
        "action": _statistics(arrays["act"][:, 0]),
        "proprio": _statistics(arrays["proprio"][:, -1], floor=SPREAD_FLOOR),
        "num_transitions": np.asarray(len(arrays["act"])),
        "num_trajectories": np.asarray(len(act)),
    }
    for name, key in (("proprio", "proprio"), ("act", "action")):
        mean, std = statistics[key]["mean"], statistics[key]["std"]
        arrays[name] = ((arrays[name] - mean) / (std + 1e-8)).astype(np.float32)
    return arrays, statistics


def hashed_words(text: str) -> np.ndarray:
    """(WORDS,) float32: each word adds to one feature, chosen by its hash."""
    features = np.zeros(WORDS, np.float32)
    for word in text.lower().split():
        features[zlib.crc32(word.encode()) % WORDS] += 1
    return features


def _statistics(values: np.ndarray, floor: float = 0.0) -> dict[str, np.ndarray]:
    p01, p99 = np.quantile(values, [0.01, 0.99], axis=0)
    return {
        "mean": values.mean(0, dtype=np.float64),
        "std": np.maximum(values.std(0, dtype=np.float64), floor),
        "min": values.min(0),
        "max": values.max(0),
        "p01": p01,
        "p99": p99,
        "mask": np.ones(values.shape[-1], bool),
    }
