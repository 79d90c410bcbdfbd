"""Writes action chunks as flat actions, for libraries that train on single actions (robomimic).

An episode of T steps becomes up to H episodes, one for each offset o = 0 ... H - 1, that decide at
steps o, o + H, o + 2H, ...: a decision's action is the H actions that follow, flattened; its reward
is their sum; the observations are those at the decisions. Together they hold every chunk of H
consecutive actions exactly once.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from offline.data.episodes import Episode, Episodes
from offline.errors import InputError
from offline.spec import ActionSpec
from robots.datasets.robomimic_hdf5 import RobomimicHdf5
from robots.datasets.robomimic_write import GYM_TYPE, UNKNOWN, Hdf5Writer


def flatten_spec(spec: ActionSpec, chunk: int) -> ActionSpec:
    """The spec of `chunk` actions in a row, flattened: dimension a of action h is h * A + a.

    Names become "dx@0", ...; the gripper, now in several places, is left unsaid.
    """
    each = ("low", "high", "mean", "std", "p01", "p99", "mask")
    return ActionSpec(
        **{name: getattr(spec, name) * chunk for name in each},
        scale=spec.scale,
        names=tuple(f"{name}@{h}" for h in range(chunk) for name in spec.names),
    )


def chunk_episode(episode: Episode, chunk: int) -> Iterator[Episode]:
    """The episode with every offset at which at least one chunk fits.

    Steps left at the end that fill no chunk are padded by repeating the last action if the episode
    ended there (success or termination: the padding would never have been executed), else dropped.

    Args:
        episode: of T steps with actions (T, A).
        chunk: H.

    Yields:
        Episodes with actions (T', H * A), observations (T' + 1, ...), rewards (T',) that are sums.
    """
    steps, size = episode.actions.shape
    ended = bool(episode.success) or episode.terminated
    for offset in range(min(chunk, steps)):
        full, rest = divmod(steps - offset, chunk)
        padded = rest > 0 and ended
        decisions = full + padded
        if not decisions:
            continue
        stop = offset + chunk * decisions
        used = min(stop, steps)
        actions, rewards = episode.actions[offset:used], episode.rewards[offset:used]
        if padded:
            missing = stop - steps
            actions = np.concatenate([actions, np.repeat(actions[-1:], missing, axis=0)])
            rewards = np.concatenate([rewards, np.zeros(missing, rewards.dtype)])
        at = np.minimum(offset + chunk * np.arange(decisions + 1), steps)
        reached = used == steps
        yield Episode(
            obs={key: values[at] for key, values in episode.obs.items()},
            actions=actions.reshape(decisions, chunk * size),
            rewards=rewards.reshape(decisions, chunk).sum(1),
            terminated=episode.terminated and reached,
            success=episode.success,
            language=episode.language,
            meta={**episode.meta, "offset": offset, "padded": int(stop - used)},
        )


def write_chunked(
    episodes: Episodes, chunk: int, output: str | Path, *, progress: Any = iter
) -> RobomimicHdf5:
    """Rewrite a dataset, one episode at a time; all offsets of an episode stay in its split.

    The file keeps the original spec as attribute "unchunked_action_spec" and H as "action_chunk",
    from which a policy's flattened actions can be unflattened.

    Args:
        episodes: any dataset.
        chunk: H, at least 2.
        output: a robomimic-format file.
        progress: wraps the range of indices, such as tqdm.

    Raises:
        InputError: H too small, a dataset that is chunked already, or no episode long enough.
    """
    if chunk < 2:
        raise InputError(f"an action chunk to flatten has at least 2 actions, got {chunk}")
    if "action_chunk" in episodes.meta:
        raise InputError(
            f'"{episodes.meta.get("path")}" is flattened already (chunks of '
            f"{episodes.meta['action_chunk']}): chunk the original"
        )
    spec = episodes.spec
    members = {name: set(indices.tolist()) for name, indices in episodes.splits.items()}
    splits: dict[str, list[int]] = {name: [] for name in members}
    env_args = episodes.meta.get("env_args") or {
        "env_name": episodes.env or UNKNOWN,
        "type": GYM_TYPE,
        "env_kwargs": {},
    }
    own = ("format", "path", "env_args", "spec_from", "content_hash")
    meta = {key: value for key, value in episodes.meta.items() if key not in own}
    with Hdf5Writer(
        output,
        spec=flatten_spec(spec, chunk),
        env=episodes.env,
        env_args=env_args,
        meta=meta,
        attrs={"action_chunk": chunk, "unchunked_action_spec": spec.to_dict()},
    ) as writer:
        for index in progress(range(len(episodes))):
            for part in chunk_episode(episodes[index], chunk):
                part.meta["source_episode"] = index
                written = writer.add(part)
                for name, indices in members.items():
                    if index in indices:
                        splits[name].append(written)
        writer.splits = {name: np.array(found, np.int64) for name, found in splits.items()}
    return RobomimicHdf5(output)
