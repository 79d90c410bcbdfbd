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

from offline.data.episodes import Episode
from offline.errors import InputError, did_you_mean
from offline.spec import ActionSpec
from robots.datasets.hdf5 import as_observation, open_hdf5, read_json
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
            if "data" not in file or not hasattr(file["data"], "keys"):
                raise InputError(f'"{self.path}" has no group "data": not a robomimic dataset')
            data = file["data"]
            names = sorted((n for n in data if hasattr(data[n], "keys")), key=_number)
            if not names:
                raise InputError(f'"{self.path}" has no demonstrations (groups data/demo_N)')
            masks = _read_masks(file)
            if split is not None:
                if split not in masks:
                    raise InputError(
                        f'"{self.path}" has no split "{split}".{did_you_mean(split, masks)}'
                    )
                wanted = set(masks[split])
                names = [name for name in names if name in wanted]
                if not names:
                    raise InputError(f'"{self.path}": split "{split}" is empty')
            self.names = names
            self.lengths = np.array([self._length(data[name], name) for name in names])
            index = {name: i for i, name in enumerate(names)}
            self.splits = {
                key: np.array(sorted(index[n] for n in members if n in index), dtype=np.int64)
                for key, members in masks.items()
            }
            first = data[names[0]]
            self.obs_shapes: dict[str, tuple[int, ...]] = {
                key: tuple(values.shape[1:]) or (1,)
                for key, values in sorted(self._observations(first, names[0]).items())
            }
            self.meta: dict[str, Any] = {"format": "robomimic", "path": str(self.path)}
            if split is not None:
                self.meta["split"] = split
            self._read_attributes(data.attrs)

    def _read_attributes(self, attrs: Any) -> None:
        where = f'"{self.path}"'
        self.meta = {**(read_json(attrs, "genpol_meta", where) or {}), **self.meta}
        env_args = None
        for key in ENV_ARGS:
            env_args = env_args or read_json(attrs, key, where)
        if env_args is None and ENV_INFO in attrs:
            kwargs = read_json(attrs, ENV_INFO, where)
            env_args = {"env_name": _text(attrs.get("env")), "type": 1, "env_kwargs": kwargs}
        self.meta["env_args"] = env_args
        name = env_args.get("env_name", env_args.get("env")) if isinstance(env_args, dict) else None
        name = _text(attrs.get("genpol_env", name))
        self.env: str | None = None if name == UNKNOWN else name
        spec = read_json(attrs, "action_spec", where)
        self._spec = ActionSpec.from_dict(spec) if spec else None
        self.meta["spec_from"] = "file" if spec else "data"
        if "content_hash" in attrs:
            self.meta["content_hash"] = _text(attrs["content_hash"])
        if "action_chunk" in attrs:
            self.meta["action_chunk"] = int(attrs["action_chunk"])
            self.meta["unchunked_action_spec"] = read_json(attrs, "unchunked_action_spec", where)
        # LIBERO says the instruction once for the whole file.
        problem = read_json(attrs, "problem_info", where) if "problem_info" in attrs else None
        self._language = problem.get("language_instruction") if isinstance(problem, dict) else None

    @cached_property
    def spec(self) -> ActionSpec:
        """The file's spec, or one derived from all its actions (read when first asked for)."""
        return self._spec or spec_from_actions(self._actions(), f'"{self.path}"')

    def _actions(self) -> Iterable[np.ndarray]:
        with open_hdf5(self.path) as file:
            for name in self.names:
                yield self._read(file["data"][name], "actions", name)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Episode:
        """Read one episode.

        Raises:
            InputError: names the file and the demonstration: lengths that differ, NaN, something
                missing, data that cannot be read.
        """
        name = self.names[index]
        with open_hdf5(self.path, name) as file:
            demo = file["data"][name]
            actions = self._read(demo, "actions", name).astype(np.float32, copy=False)
            steps, meta = len(actions), read_json(demo.attrs, "meta", self._where(name)) or {}
            if actions.ndim != 2:
                raise InputError(
                    f"{self._where(name)}: actions have shape {actions.shape}, expected (T, A)"
                )
            if int(demo.attrs.get("num_samples", steps)) != steps:
                raise InputError(
                    f"{self._where(name)} has {steps} actions, its num_samples is "
                    f"{int(demo.attrs['num_samples'])}: was the file cut off?"
                )
            dones = self._optional(demo, "dones", name)
            rewards = self._optional(demo, "rewards", name)
            if rewards is None:
                meta["rewards"] = "missing, read as 0"
            obs = self._episode_observations(demo, name, steps, meta)
            episode = Episode(
                obs=obs,
                actions=actions,
                rewards=np.zeros(steps, np.float32) if rewards is None else rewards,
                terminated=bool(dones is not None and len(dones) and dones[-1] > 0),
                success=_success(demo.attrs, rewards, dones),
                language=self._instruction(demo, name),
                meta=meta,
            )
        episode.check(self._where(name))
        return episode

    def _episode_observations(
        self, demo: Any, name: str, steps: int, meta: dict[str, Any]
    ) -> dict[str, np.ndarray]:
        """Each (T + 1, ...): obs, then the last of next_obs, or its last repeated."""
        following = demo.get("next_obs", {})
        obs = {}
        for key in sorted(self._observations(demo, name)):
            values = as_observation(self._read(demo["obs"], key, name))
            if len(values) == steps and steps:
                if key in following:
                    if len(following[key]) != steps:
                        raise InputError(
                            f'{self._where(name)}: next_obs "{key}" has {len(following[key])} '
                            f"entries for {steps} actions"
                        )
                    last = as_observation(following[key][-1:])
                else:
                    last = values[-1:]
                    meta["last_obs"] = "missing, the one before it repeated"
                values = np.concatenate([values, last])
            elif len(values) != steps + 1:
                raise InputError(
                    f'{self._where(name)}: obs "{key}" has {len(values)} entries for {steps} '
                    "actions: was the file cut off?"
                )
            obs[key] = values
        return obs

    def _instruction(self, demo: Any, name: str) -> str | None:
        if "language" in demo.attrs:
            return _text(demo.attrs["language"])
        episode = read_json(demo.attrs, "ep_meta", self._where(name))  # RoboCasa
        return (episode.get("lang") if isinstance(episode, dict) else None) or self._language

    def _where(self, name: str) -> str:
        return f'"{self.path}" {name}'

    def _length(self, demo: Any, name: str) -> int:
        if "num_samples" in demo.attrs:
            return int(demo.attrs["num_samples"])
        if "actions" not in demo:
            raise InputError(f"{self._where(name)} has no actions")
        return len(demo["actions"])

    def _observations(self, demo: Any, name: str) -> dict[str, Any]:
        if "obs" not in demo or not len(demo["obs"]):
            raise InputError(
                f"{self._where(name)} has no observations (group obs): for a file of robosuite "
                "states, run robomimic's dataset_states_to_obs.py first"
            )
        return {k: v for k, v in demo["obs"].items() if hasattr(v, "shape")}

    def _optional(self, demo: Any, key: str, name: str) -> np.ndarray | None:
        if key not in demo:
            return None
        return self._read(demo, key, name).astype(np.float32, copy=False).reshape(-1)

    def _read(self, group: Any, key: str, name: str) -> np.ndarray:
        if key not in group:
            raise InputError(f"{self._where(name)} has no {key}")
        return group[key][()]


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


def _success(attrs: Any, rewards: np.ndarray | None, dones: np.ndarray | None) -> bool | None:
    if "success" in attrs:
        return bool(attrs["success"])
    if "genpol" in attrs:  # ours, and unknown when it was written
        return None
    if rewards is not None and len(rewards):
        sparse = bool(np.isin(rewards, (0.0, 1.0)).all())
        return bool((rewards > 0).any()) if sparse else None
    return None if dones is None else bool((dones > 0).any())


def _read_masks(file: Any) -> dict[str, list[str]]:
    masks = {}
    for key, values in file.get("mask", {}).items():
        names = np.asarray(values[()]).reshape(-1).tolist()
        masks[key] = [_text(n) or "" for n in names]
    return masks


def _number(name: str) -> tuple[int, str]:
    """demo_10 after demo_9."""
    digits = re.search(r"(\d+)$", name)
    return (int(digits[1]) if digits else -1, name)


def _text(value: Any) -> str | None:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return None if value is None else str(value)
