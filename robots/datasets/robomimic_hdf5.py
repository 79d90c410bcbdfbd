"""robomimic's HDF5 format: one group per demonstration (robomimic.github.io, "Dataset structure").

    data                attributes: total, env_args (JSON: env_name, type, env_kwargs)
      demo_0            attributes: num_samples
        actions (T, A), rewards (T,), dones (T,), obs/<key> (T, ...), next_obs/<key> (T, ...)
    mask/train, mask/valid, ...   names of demonstrations

Ours adds attributes that robomimic ignores: action_spec, genpol_env, genpol_meta and content_hash
on data; success, language and meta on each demonstration. What a file does not say is derived:

    spec         bounds [-1, 1] if all actions lie within, else their extremes; statistics of all
    success      rewards of only 0 and 1: whether there is a 1 (robomimic's sparse reward);
                 no rewards: whether any dones is set; other rewards: unknown (None)
    terminated   the last of dones (for robomimic's done_mode 1 and 2 that is set always)
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from offline.arrays import Shape, check_array, check_shape, single
from offline.data.episodes import Episode
from offline.errors import InputError, did_you_mean, shown
from offline.spec import ActionSpec
from robots.datasets.hdf5 import as_observation, import_h5py, open_hdf5
from robots.datasets.hdf5_attributes import document, flag, whole_number, words
from robots.datasets.hdf5_items import member, numbers, read, subgroup
from robots.datasets.hdf5_items import names as list_of_names
from robots.datasets.robomimic_write import GYM_TYPE, UNKNOWN, Hdf5Writer, draw_splits
from robots.datasets.statistics import spec_from_actions

ENV_ARGS = ("env_args", "env_meta", "env_metadata")  # robomimic's own name first
ENV_INFO = "env_info"  # robosuite's, before conversion: only the keyword arguments


class RobomimicHdf5:
    """A robomimic-format file as `Episodes`; the file is open only while an episode is read.

    Args:
        path: the file.
        split: only the demonstrations of this mask, such as "train".

    Raises:
        InputError: names the file, and the demonstration, and what is wrong.
    """

    def __init__(self, path: str | Path, *, split: str | None = None) -> None:
        self.path = Path(path).expanduser()
        with open_hdf5(self.path) as file:
            where = f'"{self.path}"'
            data = subgroup(file, "data", where)
            if data is None:
                raise InputError(f'{where} has no group "data": not a robomimic dataset')
            names = sorted(_demonstrations(data, where), key=_number)
            if not names:
                raise InputError(f"{where} has no demonstrations (groups data/demo_N)")
            masks = _read_masks(file, where)
            if split is not None:
                if split not in masks:
                    raise InputError(f'{where} has no split "{split}".{did_you_mean(split, masks)}')
                wanted = set(masks[split])
                names = [name for name in names if name in wanted]
                if not names:
                    raise InputError(f'{where}: split "{split}" is empty')
            self.names = names
            self.lengths = np.array([self._length(self._demo(file, n), n) for n in names], np.int64)
            index = {name: i for i, name in enumerate(names)}
            self.splits = {
                key: np.array(sorted(index[n] for n in members if n in index), dtype=np.int64)
                for key, members in masks.items()
            }
            first = self._demo(file, names[0])
            self.obs_shapes: dict[str, tuple[int, ...]] = {
                key: tuple(values.shape[1:]) or (1,)
                for key, values in sorted(self._observations(first, names[0]).items())
            }
            self.meta: dict[str, Any] = {"format": "robomimic", "path": str(self.path)}
            if split is not None:
                self.meta["split"] = split
            self._read_attributes(data.attrs)

    def _read_attributes(self, attrs: Any) -> None:
        where, entries = f'"{self.path}"', dict[str, Any]
        self.meta = {**(document(attrs, "genpol_meta", where, entries) or {}), **self.meta}
        env_args: dict[str, Any] | None = None
        for key in ENV_ARGS:
            env_args = env_args or document(attrs, key, where, entries)
        if env_args is None and ENV_INFO in attrs:
            kwargs = document(attrs, ENV_INFO, where, entries)
            env_args = {"env_name": words(attrs, "env", where), "type": 1, "env_kwargs": kwargs}
        self.meta["env_args"] = env_args
        name = words(attrs, "genpol_env", where)
        if name is None and env_args is not None:
            name = env_args.get("env_name", env_args.get("env"))
            if not isinstance(name, str | None):
                raise InputError(
                    f"{where}: the environment's name should be text, received {shown(name)}"
                )
        self.env: str | None = None if name == UNKNOWN else name
        spec = document(attrs, "action_spec", where, entries)
        self._spec = ActionSpec.from_dict(spec, where) if spec else None
        self.meta["spec_from"] = "file" if spec else "data"
        if (content_hash := words(attrs, "content_hash", where)) is not None:
            self.meta["content_hash"] = content_hash
        if (chunk := whole_number(attrs, "action_chunk", where)) is not None:
            self.meta["action_chunk"] = chunk
            unchunked = document(attrs, "unchunked_action_spec", where, entries)
            self.meta["unchunked_action_spec"] = unchunked
        # LIBERO says the instruction once for the whole file.
        problem = document(attrs, "problem_info", where, entries) or {}
        self._language = _instruction(problem, "language_instruction", where)

    @cached_property
    def spec(self) -> ActionSpec:
        """The file's spec, or one derived from all its actions (read when first asked for)."""
        return self._spec or spec_from_actions(self._actions(), f'"{self.path}"')

    def _actions(self) -> Iterable[np.ndarray]:
        with open_hdf5(self.path) as file:
            for name in self.names:
                yield self._read(self._demo(file, name), "actions", name, (None, None))

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Episode:
        """Read one episode.

        Raises:
            InputError: names the file and the demonstration: lengths that differ, NaN, something
                missing or of another kind, data that cannot be read.
        """
        name = self.names[index]
        where = self._where(name)
        with open_hdf5(self.path, name) as file:
            demo = self._demo(file, name)
            steps = self._steps(demo, name)
            actions = self._read(demo, "actions", name, (steps, None))
            meta = document(demo.attrs, "meta", where, dict[str, Any]) or {}
            dones = self._optional(demo, "dones", name, steps)
            rewards = self._optional(demo, "rewards", name, steps)
            if rewards is None:
                meta["rewards"] = "missing, read as 0"
            obs = self._episode_observations(demo, name, steps, meta)
            episode = Episode(
                obs=obs,
                actions=single(actions),
                rewards=np.zeros(steps, np.float32) if rewards is None else rewards,
                terminated=bool(dones is not None and len(dones) and dones[-1] > 0),
                success=_success(demo.attrs, where, rewards, dones),
                language=self._instruction(demo, name),
                meta=meta,
            )
        episode.check(where)
        return episode

    def _episode_observations(
        self, demo: Any, name: str, steps: int, meta: dict[str, Any]
    ) -> dict[str, np.ndarray]:
        """Each (T + 1, ...): obs, then the last of next_obs, or its last repeated."""
        following, where = subgroup(demo, "next_obs", self._where(name)), self._where(name)
        obs = {}
        for key, stored in sorted(self._observations(demo, name).items()):
            count, inside = len(stored), f"{where} obs"
            if count not in (steps, steps + 1):
                raise InputError(
                    f'{where}: obs "{shown(key)}" has {count} entries for {steps} actions: was '
                    "the file cut off?"
                )
            values = as_observation(read(stored, inside, key))
            if count == steps:
                last = self._following(following, key, name, stored)
                if last is None:
                    last = values[-1:]
                    meta["last_obs"] = "missing, the one before it repeated"
                values = np.concatenate([values, last])
            obs[key] = values
        return obs

    def _following(self, group: Any, key: str, name: str, stored: Any) -> np.ndarray | None:
        """The observation after the last action, (1, ...), where next_obs has it."""
        where = f"{self._where(name)} next_obs"
        found = None if group is None else numbers(group, key, where, (None, ...))
        if found is None:
            return None
        if len(found) != len(stored):
            raise InputError(
                f'{self._where(name)}: next_obs "{shown(key)}" has {len(found)} entries for '
                f"{len(stored)} actions"
            )
        check_shape(found.shape, where, key, stored.shape)
        return as_observation(read(found, where, key, slice(len(found) - 1, None)))

    def _instruction(self, demo: Any, name: str) -> str | None:
        where = self._where(name)
        if (language := words(demo.attrs, "language", where)) is not None:
            return language
        episode = document(demo.attrs, "ep_meta", where, dict[str, Any]) or {}  # RoboCasa
        return _instruction(episode, "lang", where) or self._language

    def _where(self, name: str) -> str:
        return f'"{self.path}" {shown(name)}'

    def _demo(self, file: Any, name: str) -> Any:
        found = subgroup(subgroup(file, "data", f'"{self.path}"'), name, f'"{self.path}" data')
        if found is None:
            raise InputError(f"{self._where(name)} is missing: was the file changed?")
        return found

    def _length(self, demo: Any, name: str) -> int:
        said = whole_number(demo.attrs, "num_samples", self._where(name))
        return len(self._numbers(demo, "actions", name, (None, None))) if said is None else said

    def _steps(self, demo: Any, name: str) -> int:
        """T, as both the actions and num_samples say."""
        steps = len(self._numbers(demo, "actions", name, (None, None)))
        said = whole_number(demo.attrs, "num_samples", self._where(name))
        if said not in (None, steps):
            raise InputError(
                f"{self._where(name)} has {steps} actions, its num_samples is {said}: was the "
                "file cut off?"
            )
        return steps

    def _observations(self, demo: Any, name: str) -> dict[str, Any]:
        """The observations, checked and not read; groups among them are left alone."""
        where = f"{self._where(name)} obs"
        obs = subgroup(demo, "obs", self._where(name))
        kept = {}
        for key in obs or ():
            if not isinstance(member(obs, key, where), import_h5py().Group):
                kept[key] = numbers(obs, key, where, (None, ...))
        if not kept:
            raise InputError(
                f"{self._where(name)} has no observations (group obs): for a file of robosuite "
                "states, run robomimic's dataset_states_to_obs.py first"
            )
        return kept

    def _optional(self, demo: Any, key: str, name: str, steps: int) -> np.ndarray | None:
        """One number for each step, (T,) float32; None where there are none."""
        where = self._where(name)
        found = numbers(demo, key, where, (None, ...))
        if found is None:
            return None
        if found.size != len(found):
            check_shape(found.shape, where, key, (steps,))
        if len(found) != steps:
            raise InputError(f"{where} has {steps} actions but {len(found)} {key}")
        values = check_array(read(found, where, key), where, key)
        return single(values).reshape(-1)

    def _numbers(self, group: Any, key: str, name: str, shape: Shape) -> Any:
        found = numbers(group, key, self._where(name), shape)
        if found is None:
            raise InputError(f"{self._where(name)} has no {key}")
        return found

    def _read(self, group: Any, key: str, name: str, shape: Shape) -> np.ndarray:
        return read(self._numbers(group, key, name, shape), self._where(name), key)


def write_hdf5(
    path: str | Path,
    episodes: Iterable[Episode],
    *,
    spec: ActionSpec,
    env: str | None,
    env_kwargs: dict[str, Any] | None = None,
    valid_fraction: float = 0.1,
    seed: int = 0,
    meta: dict[str, Any] | None = None,
) -> RobomimicHdf5:
    """Write a robomimic HDF5 file, one episode at a time; it appears when all are there.

    Args:
        path: replaced at the end; on an error or an interrupt it stays as it was.
        episodes: any iterable; nothing but the present episode is held.
        spec: bounds and conventions; its statistics are replaced by those of the actions.
        env: such as "metaworld/push-v3".
        env_kwargs: stored in env_args.
        valid_fraction: share of the episodes drawn into mask/valid; the rest is mask/train.
        seed: of that draw.
        meta: what else to store of the dataset; anything that JSON can say.

    Returns:
        The file, open for reading.

    Raises:
        InputError: no episodes, an episode that does not fit the others, or a full disk.
    """
    if not 0 <= valid_fraction < 1:
        raise InputError(f"valid_fraction must be in [0, 1), got {valid_fraction}")
    env_args = {"env_name": env or UNKNOWN, "type": GYM_TYPE, "env_kwargs": env_kwargs or {}}
    with Hdf5Writer(path, spec=spec, env=env, env_args=env_args, meta=meta) as writer:
        for episode in episodes:
            writer.add(episode)
        writer.splits = draw_splits(len(writer), valid_fraction, seed)
    return RobomimicHdf5(path)


def _success(
    attrs: Any, where: str, rewards: np.ndarray | None, dones: np.ndarray | None
) -> bool | None:
    if "success" in attrs:
        return flag(attrs, "success", where)
    if "genpol" in attrs:  # ours, and unknown when it was written
        return None
    if rewards is not None and len(rewards):
        sparse = bool(np.isin(rewards, (0.0, 1.0)).all())
        return bool((rewards > 0).any()) if sparse else None
    return None if dones is None else bool((dones > 0).any())


def _demonstrations(data: Any, where: str) -> list[str]:
    """Names of the groups in data; arrays that stand beside them are left alone."""
    found = []
    for name in data:
        if isinstance(member(data, name, f"{where} data"), import_h5py().Group):
            found.append(name)
        elif name.startswith("demo_"):
            subgroup(data, name, f"{where} data")
    return found


def _read_masks(file: Any, where: str) -> dict[str, list[str]]:
    masks = subgroup(file, "mask", where)
    return {key: list_of_names(masks, key, f"{where} mask") for key in masks or ()}


def _instruction(said: dict[str, Any], key: str, where: str) -> str | None:
    value = said.get(key)
    if isinstance(value, str | None):
        return value
    raise InputError(f'{where}: "{key}" should be text, received {shown(value)}')


def _number(name: str) -> tuple[int, str]:
    """demo_10 after demo_9."""
    digits = re.search(r"(\d+)$", name)
    return (int(digits[1]) if digits else -1, name)
