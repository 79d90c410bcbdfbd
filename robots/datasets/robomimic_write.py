"""Writing robomimic's HDF5 format, one episode at a time; `robomimic_hdf5` describes the format."""

from __future__ import annotations

import json
import os
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from offline.data.episodes import Episode
from offline.errors import InputError, shown
from offline.files import disk_errors, sibling, sync_path
from offline.spec import ActionSpec
from robots.datasets.hdf5 import as_observation, import_h5py, plain
from robots.datasets.statistics import ActionStatistics, ContentHash

GYM_TYPE = 2  # robomimic's EnvType for gymnasium environments
UNKNOWN = "unknown"  # env_args needs a name


class Hdf5Writer:
    """Context manager: `add` episodes; leaving without an exception puts the file in place.

    Args:
        path: of the file; its folder is made.
        spec: its statistics are replaced by those of the episodes written.
        env: the environment's name.
        env_args: robomimic's description of the environment.
        meta: stored as JSON.
        attrs: further attributes of the group data; dictionaries become JSON.

    Raises:
        InputError: nothing was added, or the disk refuses.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        spec: ActionSpec,
        env: str | None,
        env_args: dict[str, Any],
        meta: dict[str, Any] | None = None,
        attrs: dict[str, Any] | None = None,
    ) -> None:
        self.path = Path(path).expanduser()
        self.spec = spec
        self.env = env
        self.splits: dict[str, np.ndarray] = {}
        """Indices of episodes by the mask's name; set it before leaving."""
        self._attrs = {"env_args": env_args, "genpol_meta": meta or {}, **(attrs or {})}
        self._temporary = sibling(self.path)
        self._statistics, self._hash = ActionStatistics(), ContentHash()
        self._count = self._total = 0
        self._successes: set[int] = set()
        self._shapes: dict[str, tuple[int, ...]] | None = None

    def __len__(self) -> int:
        return self._count

    def __enter__(self) -> Hdf5Writer:
        h5py = import_h5py()
        with self._disk_errors():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = h5py.File(self._temporary, "w")
            self._data = self._file.create_group("data")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                if not self._count:
                    raise InputError(f'no episodes to write in "{self.path}"')
                with self._disk_errors():
                    self._finish()
                    self._file.close()
                    sync_path(self._temporary)
                    os.replace(self._temporary, self.path)
                    sync_path(self.path.parent)
        finally:
            try:
                self._file.close()
            except (OSError, RuntimeError):  # a full disk refuses the last bytes too
                pass
            self._temporary.unlink(missing_ok=True)

    def add(self, episode: Episode) -> int:
        """Write one more episode; returns its index.

        Raises:
            InputError: lengths or numbers that are wrong, other keys or shapes than before.
        """
        name = f"demo_{self._count}"
        episode.check(f"episode {self._count}")
        if episode.actions.ndim != 2 or episode.actions.shape[1] != self.spec.dim:
            raise InputError(
                f"episode {self._count} has actions {episode.actions.shape}, expected "
                f"(T, {self.spec.dim})"
            )
        stored = Episode(
            obs={key: as_observation(values) for key, values in episode.obs.items()},
            actions=np.asarray(episode.actions, np.float32),
            rewards=np.asarray(episode.rewards, np.float32).reshape(-1),
            terminated=episode.terminated,
        )
        shapes = {key: values.shape[1:] for key, values in stored.obs.items()}
        if self._shapes is None:
            self._shapes = shapes
        if shapes != self._shapes:
            raise InputError(
                f"episode {self._count} has observations {shown(str(shapes))}, those before it "
                f"{shown(str(self._shapes))}"
            )
        with self._disk_errors():
            self._write(self._data.create_group(name), stored, episode)
        self._statistics.add(stored.actions)
        self._hash.add(stored)
        self._total += len(stored)
        if episode.success:
            self._successes.add(self._count)
        self._count += 1
        return self._count - 1

    def _write(self, demo: Any, stored: Episode, given: Episode) -> None:
        steps = len(stored)
        dones = np.zeros(steps, np.float32)
        dones[-1] = stored.terminated
        demo.attrs["num_samples"] = steps
        demo.attrs["genpol"] = True
        if given.success is not None:
            demo.attrs["success"] = bool(given.success)
        if given.language is not None:
            demo.attrs["language"] = given.language
        demo.attrs["meta"] = json.dumps(given.meta, default=plain)
        demo["actions"], demo["rewards"], demo["dones"] = stored.actions, stored.rewards, dones
        for key, values in stored.obs.items():
            options: dict[str, Any] = {}
            if values.ndim == 4:  # images: one frame per compressed block, read one by one
                options = {"chunks": (1, *values.shape[1:]), "compression": "gzip"}
                options["compression_opts"] = 4
            demo.create_dataset(f"obs/{key}", data=values[:-1], **options)
            demo.create_dataset(f"next_obs/{key}", data=values[1:], **options)

    def _finish(self) -> None:
        self.spec = self._statistics.apply(self.spec)
        attrs = self._data.attrs
        attrs["total"] = self._total
        attrs["action_spec"] = json.dumps(self.spec.to_dict())
        attrs["content_hash"] = self._hash.hexdigest()
        if self.env is not None:
            attrs["genpol_env"] = self.env
        for name, value in self._attrs.items():
            attrs[name] = json.dumps(value, default=plain) if isinstance(value, dict) else value
        for name, indices in self.splits.items():
            self._file[f"mask/{name}"] = np.array([f"demo_{i}" for i in indices], dtype="S")
        # For libraries that filter by mask: filtered cloning trains on these.
        train = self.splits.get("train", np.arange(len(self)))
        won = [f"demo_{i}" for i in train if i in self._successes]
        if won and "success" not in self.splits:
            self._file["mask/success"] = np.array(won, dtype="S")

    def _disk_errors(self) -> AbstractContextManager[None]:
        return disk_errors(f'cannot write "{self.path}"', "Free some space, or write elsewhere")


def draw_splits(episodes: int, valid_fraction: float, seed: int) -> dict[str, np.ndarray]:
    """Indices of "train" and "valid", both sorted; each has at least one where there are two."""
    valid = round(episodes * valid_fraction)
    if valid_fraction > 0 and episodes > 1:
        valid = min(max(valid, 1), episodes - 1)
    order = np.random.default_rng(seed).permutation(episodes)
    return {"train": np.sort(order[valid:]), "valid": np.sort(order[:valid])}
