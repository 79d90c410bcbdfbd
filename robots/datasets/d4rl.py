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

from offline.data.episodes import Episode
from offline.errors import InputError
from offline.spec import ActionSpec
from robots.datasets.hdf5 import as_observation, open_hdf5
from robots.datasets.statistics import spec_from_actions

SUCCESS = ("infos/success", "infos/is_success", "infos/goal_achieved")
BLOCK = 65536  # rows read at a time


class D4rlHdf5:
    """A D4RL-style file as `Episodes`; the file is open only while an episode is read.

    Raises:
        InputError: arrays that are missing or of different lengths, or a damaged file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        with open_hdf5(self.path) as file:
            for name in ("observations", "actions", "rewards"):
                if name not in file:
                    raise InputError(f'"{self.path}" has no {name}: not a D4RL dataset')
            rows = len(file["actions"])
            observations = _observations(file["observations"])
            checked = {f"observations {key}": values for key, values in observations.items()}
            checked |= {n: file[n] for n in ("rewards", "terminals", "timeouts") if n in file}
            for name, values in checked.items():
                if len(values) != rows:
                    raise InputError(
                        f'"{self.path}" has {rows} actions but {len(values)} {name.strip()}'
                    )
            if file["actions"].ndim != 2:
                raise InputError(
                    f'"{self.path}": actions have shape {file["actions"].shape}, expected (N, A)'
                )
            ends = _ends(file, rows)
            self.obs_shapes: dict[str, tuple[int, ...]] = {
                key: tuple(values.shape[1:]) or (1,) for key, values in observations.items()
            }
            env = file.attrs.get("env_id", file.attrs.get("env_name"))
        if not rows:
            raise InputError(f'"{self.path}" has no steps')
        self._stops = ends + 1
        self._starts = np.concatenate([[0], self._stops[:-1]])
        self.lengths = self._stops - self._starts
        self.env: str | None = env.decode() if isinstance(env, bytes) else env
        self.meta: dict[str, Any] = {"format": "d4rl", "path": str(self.path), "spec_from": "data"}
        self.splits: dict[str, np.ndarray] = {}

    @cached_property
    def spec(self) -> ActionSpec:
        """Derived from all actions, read in blocks when first asked for."""
        with open_hdf5(self.path) as file:
            blocks = (
                file["actions"][first : first + BLOCK]
                for first in range(0, len(file["actions"]), BLOCK)
            )
            return spec_from_actions(blocks, f'"{self.path}"')

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Episode:
        """Read one episode.

        Raises:
            InputError: names the file, the episode and what is wrong.
        """
        start, stop = int(self._starts[index]), int(self._stops[index])
        meta: dict[str, Any] = {"rows": [start, stop]}
        with open_hdf5(self.path, f"episode {index}") as file:
            following = _observations(file.get("next_observations", {}))
            obs = {}
            for key, values in _observations(file["observations"]).items():
                here = as_observation(values[start:stop])
                if key in following:
                    last = as_observation(following[key][stop - 1 : stop])
                else:
                    last, meta["last_obs"] = here[-1:], "missing, the one before it repeated"
                obs[key] = np.concatenate([here, last])
            terminals = file["terminals"][stop - 1] if "terminals" in file else False
            found = [name for name in SUCCESS if name in file]
            episode = Episode(
                obs=obs,
                actions=file["actions"][start:stop].astype(np.float32),
                rewards=file["rewards"][start:stop].astype(np.float32).reshape(-1),
                terminated=bool(terminals),
                success=bool(np.any(file[found[0]][start:stop])) if found else None,
                meta=meta,
            )
        episode.check(f'"{self.path}" episode {index}')
        return episode


def _observations(values: Any) -> dict[str, Any]:
    """One array is called "state"; a group keeps its keys."""
    if hasattr(values, "keys"):
        return {key: values[key] for key in sorted(values)}
    return {"state": values}


def _ends(file: Any, rows: int) -> np.ndarray:
    """Index of every episode's last row; the last row of all ends one too."""
    ends = np.zeros(rows, bool)
    for name in ("terminals", "timeouts"):
        if name in file:
            ends |= np.asarray(file[name][()]).reshape(-1).astype(bool)
    if "timeouts" not in file and "next_observations" in file:
        now = _observations(file["observations"])
        after = _observations(file["next_observations"])
        key = next(iter(now))
        for first in range(0, rows - 1, BLOCK):
            stop = min(first + BLOCK, rows - 1)
            jump = after[key][first:stop] != now[key][first + 1 : stop + 1]
            ends[first:stop] |= jump.reshape(stop - first, -1).any(1)
    if rows:
        ends[-1] = True
    return np.flatnonzero(ends)
