"""D4RL-style HDF5: one long row of transitions, cut into episodes where it says so.

    observations (N, D), actions (N, A), rewards (N,), terminals (N,), timeouts (N,)
    next_observations (N, D)       optional
    infos/success (N,)             optional; also infos/is_success, infos/goal_achieved

An episode ends where terminals or timeouts is set; without timeouts also where next_observations
is not the observation that follows. Its last observation is that of next_observations; where there
is none it is the one before it repeated, and the episode's meta says so.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from offline.arrays import check_array, check_shape, single
from offline.data.episodes import Episode
from offline.errors import InputError, shown
from offline.spec import ActionSpec
from robots.datasets.hdf5 import as_observation, import_h5py, open_hdf5
from robots.datasets.hdf5_attributes import words
from robots.datasets.hdf5_items import member, numbers, read, subgroup
from robots.datasets.statistics import spec_from_actions

FLAGS = ("terminals", "timeouts")
SUCCESS = ("infos/success", "infos/is_success", "infos/goal_achieved")
BLOCK = 65536  # rows read at a time


class D4rlHdf5:
    """A D4RL-style file as `Episodes`; the file is open only while an episode is read.

    Raises:
        InputError: arrays that are missing or of different lengths, or a damaged file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        where = f'"{self.path}"'
        with open_hdf5(self.path) as file:
            actions = numbers(file, "actions", where, (None, None))
            rewards = numbers(file, "rewards", where, (None, ...))
            observations = _observations(file, "observations", where)
            for name, there in (
                ("observations", observations), ("actions", actions), ("rewards", rewards)
            ):  # fmt: skip
                if there is None:
                    raise InputError(f"{where} has no {name}: not a D4RL dataset")
            if not observations:
                raise InputError(f"{where}: observations is an empty group")
            rows = len(actions)
            checked = {f"observations {key}".strip(): v for key, v in observations.items()}
            checked |= {name: _each(file, name, where) for name in ("rewards", *FLAGS)}
            for name, values in checked.items():
                if values is not None and len(values) != rows:
                    raise InputError(f"{where} has {rows} actions but {len(values)} {name}")
            following = _observations(file, "next_observations", where)
            if following is not None and not set(following) & set(observations):
                raise InputError(f"{where}: next_observations has none of the observations' names")
            ends = _ends(file, rows, where)
            self.obs_shapes: dict[str, tuple[int, ...]] = {
                key: tuple(values.shape[1:]) or (1,) for key, values in observations.items()
            }
            self.env: str | None = words(file.attrs, "env_id", where) or words(
                file.attrs, "env_name", where
            )
        if not rows:
            raise InputError(f'"{self.path}" has no steps')
        self._stops = ends + 1
        self._starts = np.concatenate([[0], self._stops[:-1]])
        self.lengths = self._stops - self._starts
        self.meta: dict[str, Any] = {"format": "d4rl", "path": str(self.path), "spec_from": "data"}
        self.splits: dict[str, np.ndarray] = {}

    @cached_property
    def spec(self) -> ActionSpec:
        """Derived from all actions, read in blocks when first asked for."""
        where = f'"{self.path}"'
        with open_hdf5(self.path) as file:
            actions = numbers(file, "actions", where, (None, None))
            blocks = (
                read(actions, where, "actions", slice(first, first + BLOCK))
                for first in range(0, len(actions), BLOCK)
            )
            return spec_from_actions(blocks, where)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Episode:
        """Read one episode.

        Raises:
            InputError: names the file, the episode and what is wrong.
        """
        start, stop = int(self._starts[index]), int(self._stops[index])
        meta: dict[str, Any] = {"rows": [start, stop]}
        where = f'"{self.path}"'
        rows = slice(start, stop)
        with open_hdf5(self.path, f"episode {index}") as file:
            following = _observations(file, "next_observations", where) or {}
            obs = {}
            for key, values in (_observations(file, "observations", where) or {}).items():
                here = as_observation(read(values, where, key, rows))
                if key in following:
                    check_shape(
                        following[key].shape, f"{where} next_observations", key, values.shape
                    )
                    last = as_observation(read(following[key], where, key, slice(stop - 1, stop)))
                else:
                    last, meta["last_obs"] = here[-1:], "missing, the one before it repeated"
                obs[key] = np.concatenate([here, last])
            terminals = _each(file, "terminals", where)
            found = [_each(file, name, where) for name in SUCCESS]
            successes = [values for values in found if values is not None]
            if successes and len(successes[0]) != len(file["actions"]):
                raise InputError(
                    f"{where} has {len(file['actions'])} actions but {len(successes[0])} infos "
                    "on success"
                )
            episode = Episode(
                obs=obs,
                actions=single(read(file["actions"], where, "actions", rows)),
                rewards=single(_flat(file["rewards"], where, "rewards", rows)),
                terminated=bool(
                    terminals is not None
                    and _flat(terminals, where, "terminals", slice(stop - 1, stop)).any()
                ),
                success=bool(np.any(_flat(successes[0], where, "success", rows)))
                if successes
                else None,
                meta=meta,
            )
        episode.check(f"{where} episode {index}")
        return episode


def _observations(file: Any, name: str, where: str) -> dict[str, Any] | None:
    """One array is called "state"; a group keeps its keys; None where there is neither."""
    found = member(file, name, where)
    if found is None:
        return None
    if not isinstance(found, import_h5py().Group):
        return {"state": numbers(file, name, where, (None, ...))}
    inside = f"{where} {name}"
    return {key: numbers(found, key, inside, (None, ...)) for key in sorted(found)}


def _each(file: Any, name: str, where: str) -> Any:
    """A dataset of one number for each row, (N,) or (N, 1); None where there is none."""
    above, _, leaf = name.rpartition("/")
    group = subgroup(file, above, where) if above else file
    found = None if group is None else numbers(group, leaf, where, (None, ...))
    if found is not None and found.size != len(found):
        check_shape(found.shape, where, name, (None,))
    return found


def _flat(found: Any, where: str, name: str, rows: slice) -> np.ndarray:
    return check_array(read(found, where, name, rows).reshape(-1), where, name)


def _ends(file: Any, rows: int, where: str) -> np.ndarray:
    """Index of every episode's last row; the last row of all ends one too."""
    ends = np.zeros(rows, bool)
    for name in FLAGS:
        if (found := _each(file, name, where)) is not None:
            ends |= _flat(found, where, name, slice(None)).astype(bool)
    if "timeouts" not in file and "next_observations" in file:
        now = _observations(file, "observations", where) or {}
        after = _observations(file, "next_observations", where) or {}
        key = next(iter(now))
        if key not in after:
            raise InputError(f'{where} next_observations has no "{shown(key)}"')
        check_shape(after[key].shape, f"{where} next_observations", key, now[key].shape)
        for first in range(0, rows - 1, BLOCK):
            stop = min(first + BLOCK, rows - 1)
            here = read(now[key], where, key, slice(first + 1, stop + 1))
            jump = read(after[key], where, key, slice(first, stop)) != here
            ends[first:stop] |= jump.reshape(stop - first, -1).any(1)
    if rows:
        ends[-1] = True
    return np.flatnonzero(ends)
