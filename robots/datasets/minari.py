"""Minari datasets: from its local storage by name, or any folder that holds one.

Box observations are called "state"; a dictionary's keys are kept, nested ones joined by a dot. An
episode succeeded when its infos say so at any step (success, is_success, goal_achieved).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, Le

from offline.arrays import check_array, single
from offline.data.episodes import Episode
from offline.documents import read_document
from offline.errors import InputError, did_you_mean, shown
from offline.spec import ActionSpec
from robots.datasets.hdf5 import as_observation, open_hdf5, require_file
from robots.datasets.hdf5_items import check_contained
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
            from minari.storage import get_dataset_path
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
                _check_files(Path(get_dataset_path(name)) / "data")
                self._data = minari.load_dataset(name)
            else:
                path = Path(os.path.expanduser(source))
                require_file(path)
                _check_files(path)
                self._data = minari.MinariDataset(path)
            spec, storage = self._data.spec, self._data.storage
            steps = [m["total_steps"] for m in storage.get_episode_metadata(range(len(self)))]
        except InputError:
            raise
        except Exception as error:  # minari asserts, and lets h5py's and json's errors through
            reason = shown(str(error), 160) or type(error).__name__
            raise InputError(f'cannot read the Minari dataset "{source}": {reason}') from error
        space = spec.action_space
        if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1:
            raise InputError(f'"{self.name}" has actions {space}, expected one vector (Box)')
        if wrong := [n for n in steps if not isinstance(n, (int, np.integer)) or not 0 < n < 2**40]:
            raise InputError(
                f'"{self.name}": an episode has total_steps {shown(wrong[0])}, expected a whole '
                "number, at least 1"
            )
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
        actions = (self[i].actions for i in range(len(self)))
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
        infos = read.infos if isinstance(read.infos, dict) else {}
        success = next((np.asarray(infos[key]) for key in SUCCESS if key in infos), None)
        if success is not None:
            check_array(success, name, "success")
        ends = check_array(np.asarray(read.terminations), name, "terminations", shape=(None,))
        actions = check_array(read.actions, name, "actions", shape=(None, *self._space.shape))
        rewards = check_array(np.asarray(read.rewards), name, "rewards", shape=(None,))
        episode = Episode(
            obs={
                key: as_observation(values)
                for key, values in sorted(_flatten(read.observations, name).items())
            },
            actions=single(actions),
            rewards=single(rewards),
            terminated=bool(ends[-1]) if len(ends) else False,
            success=None if success is None else bool((success > 0).any()),
            meta={"minari_id": int(read.id)},
        )
        episode.check(name)
        return episode

    def _read(self, index: int) -> Any:
        try:
            return self._data[index]
        except Exception as error:  # minari asserts, and lets h5py's errors through
            reason = shown(str(error), 160) or type(error).__name__
            raise InputError(f'cannot read episode {index} of "{self.name}": {reason}') from error


@dataclass(frozen=True)
class Metadata:
    """What metadata.json must say.

    Minari makes the environment where it lacks a space, and that runs whatever code it names.
    """

    observation_space: str
    action_space: str
    total_episodes: Annotated[int, Ge(0), Le(10**9)]


def _check_files(folder: Path) -> None:
    """Check a dataset's files before Minari reads them.

    Raises:
        InputError: metadata.json is none, or the HDF5 file takes something from other files.
    """
    read_document(folder / "metadata.json", Metadata)
    file = folder / "main_data.hdf5"
    if file.is_file():
        with open_hdf5(file) as opened:
            check_contained(opened, f'"{file}"')


def _flatten(values: Any, name: str, above: str = "") -> dict[str, np.ndarray]:
    if isinstance(values, dict):
        found: dict[str, np.ndarray] = {}
        for key, value in values.items():
            found |= _flatten(value, name, f"{above}.{key}" if above else str(key))
        return found
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiub":
        kind = type(values).__name__
        what = shown(above or "state")
        raise InputError(f'{name}: observation "{what}" is a {kind}, not numbers')
    return {above or "state": values}
