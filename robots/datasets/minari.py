"""Minari datasets: from its local storage by name, or any folder that holds one.

Box observations are called "state"; a dictionary's keys are kept, nested ones joined by a dot. An
episode succeeded when its infos say so at any step (success, is_success, goal_achieved).
"""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from offline.data.episodes import Episode
from offline.errors import InputError, did_you_mean
from offline.spec import ActionSpec
from robots.datasets.hdf5 import as_observation, require_file
from robots.datasets.statistics import ActionStatistics, spec_from_actions

SUCCESS = ("success", "is_success", "goal_achieved")


class MinariEpisodes:
    """A Minari dataset as `Episodes`.

    Args:
        source: "minari:NAME", or the folder with metadata.json and main_data.hdf5.

    Raises:
        InputError: unknown name, unreadable folder, or actions that are not one vector.
    """

    def __init__(self, source: str | Path) -> None:
        try:
            import gymnasium
            import minari
        except ImportError as error:
            raise InputError('Minari datasets need minari: pip install "genpol[data]"') from error
        self.name = str(source)
        try:
            if self.name.startswith("minari:"):
                name = self.name.removeprefix("minari:")
                known = minari.list_local_datasets()
                if name not in known:
                    raise InputError(
                        f'Minari has no local dataset "{name}": run `minari download {name}`.'
                        + (did_you_mean(name, known) if known else "")
                    )
                self._data = minari.load_dataset(name)
            else:
                path = Path(os.path.expanduser(source))
                require_file(path)
                self._data = minari.MinariDataset(path)
            spec, storage = self._data.spec, self._data.storage
            steps = [m["total_steps"] for m in storage.get_episode_metadata(range(len(self)))]
        except InputError:
            raise
        except Exception as error:  # minari asserts, and lets h5py's and json's errors through
            reason = " ".join(str(error).split())[:160] or type(error).__name__
            raise InputError(f'cannot read the Minari dataset "{source}": {reason}') from error
        space = spec.action_space
        if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1:
            raise InputError(f'"{self.name}" has actions {space}, expected one vector (Box)')
        if not steps:
            raise InputError(f'"{self.name}" has no episodes')
        self.lengths = np.array(steps, dtype=np.int64)
        self._space = space
        self.env: str | None = spec.env_spec.id if spec.env_spec else None
        bounded = bool(np.isfinite(space.low).all() and np.isfinite(space.high).all())
        self.meta: dict[str, Any] = {
            "format": "minari",
            "path": str(spec.data_path),
            "dataset_id": spec.dataset_id,
            "spec_from": "file" if bounded else "data",
        }
        self.splits: dict[str, np.ndarray] = {}
        self.obs_shapes: dict[str, tuple[int, ...]] = {
            key: values.shape[1:] for key, values in sorted(self[0].obs.items())
        }

    @cached_property
    def spec(self) -> ActionSpec:
        """The action space's bounds (or the data's, if infinite) with the data's statistics."""
        actions = (self._read(i).actions for i in range(len(self)))
        if self.meta["spec_from"] == "data":
            return spec_from_actions(actions, f'"{self.name}"')
        found = ActionStatistics()
        for block in actions:
            found.add(block)
        low, high = self._space.low.tolist(), self._space.high.tolist()
        return found.apply(ActionSpec.from_bounds(low, high))

    def __len__(self) -> int:
        return int(self._data.total_episodes)

    def __getitem__(self, index: int) -> Episode:
        """Read one episode.

        Raises:
            InputError: names the dataset, the episode and what is wrong.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        read = self._read(index)
        name = f'"{self.name}" episode {index}'
        infos = read.infos or {}
        success = next((np.asarray(infos[key]) for key in SUCCESS if key in infos), None)
        episode = Episode(
            obs={
                key: as_observation(values)
                for key, values in sorted(_flatten(read.observations, name).items())
            },
            actions=np.asarray(read.actions, np.float32),
            rewards=np.asarray(read.rewards, np.float32),
            terminated=bool(read.terminations[-1]) if len(read.terminations) else False,
            success=None if success is None else bool((success > 0).any()),
            meta={"minari_id": int(read.id)},
        )
        episode.check(name)
        return episode

    def _read(self, index: int) -> Any:
        try:
            return self._data[index]
        except (OSError, KeyError, RuntimeError, ValueError, AssertionError) as error:
            reason = " ".join(str(error).split())[:160]
            raise InputError(f'cannot read episode {index} of "{self.name}": {reason}') from error


def _flatten(values: Any, name: str, above: str = "") -> dict[str, np.ndarray]:
    if isinstance(values, dict):
        found: dict[str, np.ndarray] = {}
        for key, value in values.items():
            found |= _flatten(value, name, f"{above}.{key}" if above else str(key))
        return found
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiub":
        kind = type(values).__name__
        raise InputError(f'{name}: observation "{above or "state"}" is a {kind}, not numbers')
    return {above or "state": values}
