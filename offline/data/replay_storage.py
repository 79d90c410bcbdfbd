"""Arrays for a replay: in memory while they fit, in memory-mapped scratch files beyond that."""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from offline.data.tables import Table
from offline.errors import InputError

Layout = dict[str, tuple[tuple[int, ...], Any]]  # name -> shape, dtype
OBS = "obs."  # before an observation's key


def replay_layout(slots: int, action_dim: int, obs_shapes: Mapping[str, tuple[int, ...]]) -> Layout:
    """What a replay keeps of each slot; (height, width, 3) is an image, kept as uint8."""
    floats = ("reward", "chunk_reward", "discount", "mc_return", "success")
    return {
        # span: steps of the transition that starts here; key: what identifies that transition
        **{name: ((slots,), np.int64) for name in ("span", "key")},
        # outcome: 0 no step was made here, 1 one was, 2 one that the episode terminated with
        "outcome": ((slots,), np.uint8),
        # reward: of the step; chunk_reward and discount: of the transition
        **{name: ((slots,), np.float32) for name in floats},
        "action": ((slots, action_dim), np.float32),
        **{
            OBS + key: ((slots, *shape), np.uint8 if len(shape) == 3 else np.float32)
            for key, shape in obs_shapes.items()
        },
    }


def allocate(layout: Layout, folder: Path | None, memory_limit: int) -> dict[str, np.ndarray]:
    """Arrays of zeros, whose pages are taken only as they are written.

    The smallest stay in memory, as every draw reads them, until `memory_limit` is used up; the
    others (images) are files. The files have no name left once they are mapped, where the system
    allows that: they vanish with the process, and what is to survive it is in a checkpoint.

    Args:
        layout: shape and dtype of each array.
        folder: where the files go; None keeps everything in memory.
        memory_limit: bytes.

    Raises:
        InputError: the folder's disk has too little room.
    """
    arrays: dict[str, np.ndarray] = {}
    held, filed = 0, []
    for name, (shape, dtype) in sorted(layout.items(), key=lambda item: _bytes(*item[1])):
        held += _bytes(shape, dtype)
        if folder is None or held <= memory_limit:
            arrays[name] = np.zeros(shape, dtype)
        else:
            filed.append(name)
    if folder is None or not filed:
        return arrays
    folder.mkdir(parents=True, exist_ok=True)
    needed = sum(_bytes(*layout[name]) for name in filed)
    free = shutil.disk_usage(folder).free
    if needed > free:  # writing to a hole in a full disk would kill the process
        raise InputError(
            f"the replay needs {needed / 2**30:.3g} GiB of disk in {folder}, which has "
            f"{free / 2**30:.3g} GiB free: pass a smaller --replay-capacity"
        )
    for index, name in enumerate(filed):
        path = folder / f"replay{index}.bin"
        path.unlink(missing_ok=True)  # another replay may still have it mapped
        shape, dtype = layout[name]
        arrays[name] = np.memmap(path, dtype, "w+", shape=shape)
        with contextlib.suppress(OSError):  # Windows keeps it
            path.unlink()
    with contextlib.suppress(OSError):  # not empty, then
        folder.rmdir()
    return arrays


def _bytes(shape: tuple[int, ...], dtype: Any) -> int:
    return math.prod(shape) * np.dtype(dtype).itemsize


class SlotSet:
    """Some of the numbers 0 .. `slots` - 1. Adding, removing and drawing take constant time.

    Members are packed at the front of an array, in no particular order; the last one fills the
    gap of one that is removed.
    """

    def __init__(self, slots: int) -> None:
        self._members = np.zeros(slots, np.int64)
        self._rank = np.full(slots, -1)  # where among the members each slot is; -1: it is none
        self._tensor = torch.from_numpy(self._members)
        self._changed = np.ones(slots, bool)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, slot: int) -> bool:
        return bool(self._rank[slot] >= 0)

    def add(self, slot: int) -> None:
        """Add a slot that is no member."""
        self._rank[slot] = self._count
        self._members[self._count] = slot
        self._changed[self._count] = True
        self._count += 1

    def remove(self, slot: int) -> None:
        """Remove a member."""
        self._count -= 1
        rank, last = self._rank[slot], self._members[self._count]
        self._members[rank], self._rank[last] = last, rank
        self._changed[rank] = True
        self._rank[slot] = -1

    def draw(self, count: int, generator: Generator | None) -> Tensor:
        """(count,) members, uniformly with replacement; there must be one."""
        return self._tensor[torch.randint(self._count, (count,), generator=generator)]

    def members(self) -> Tensor:
        """(len,) a view; its order decides what a generator draws."""
        return self._tensor[: self._count]

    def table(self) -> Table:
        """The members as rows, in their order."""
        return Table({"slot": self._members}, self._changed, self._count)

    def replace(self, members: Tensor) -> None:
        """Be what `members` returned."""
        self._tensor[: len(members)] = members
        self._changed.fill(True)
        self.take_on(len(members))

    def take_on(self, count: int) -> None:
        """Be the first `count` rows of the table, which have been written there.

        Raises:
            ValueError: there are not so many, or they are not as many different slots.
        """
        members = self._members[: max(count, 0)]
        rank = np.full(len(self._rank), -1)
        if len(members) == count and members.min(initial=0) >= 0:
            with contextlib.suppress(IndexError):
                rank[members] = np.arange(count)
        if np.count_nonzero(rank >= 0) != count:
            raise ValueError(f"{count} rows, which are not as many different slots")
        self._rank, self._count = rank, count
