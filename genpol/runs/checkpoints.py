"""Checkpoints that are whole or absent, newest first, with the previous one as a fallback.

`checkpoints/step-000010/` holds `state.safetensors` (tensors) and `state.json` (the rest). It is
written as a hidden sibling, fsynced, and renamed; older ones go only once the new one is in place.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from offline.errors import InputError
from offline.files import disk_errors, sync_path
from offline.finite import not_finite, require_finite

# Parts of the names of tensors that are no weights, and may say NaN for what is not known, or
# infinity for no limit.
_DATA = {"replay", "ring", "obs", "running", "reward_range"}
_NAME = re.compile(r"step-(\d+)(\.old)?")


def save(
    folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], keep: int
) -> Path:
    """Write the checkpoint of `step`, then prune to the newest `keep`.

    Args:
        folder: the `checkpoints/` folder, made if absent.
        step: steps done, at least 0. One saved earlier for the same step is replaced; any of a
            later step is left over from before a resume, and removed.
        tensors: contiguous copies are written from any device; no two may share memory.
        state: what JSON can hold (tuples come back as lists, and keys as strings).
        keep: how many checkpoints to leave, at least 1.

    Returns:
        The new checkpoint's folder.

    Raises:
        InputError: the disk refuses; says which checkpoint is intact. Nothing half-written stays.
        Diverged: a weight is NaN or infinite.
    """
    if keep < 1:
        raise ValueError(f"keep={keep}: at least the new checkpoint has to stay")
    require_finite(_weights(tensors), f"the checkpoint of step {step}")
    intact = next((path.name for _, path in _newest_first(folder)), None)
    remedy = (
        f"{folder / intact} is intact" if intact else "No earlier checkpoint exists"
    ) + ": free some space, then continue with --resume"
    final = folder / f"step-{step:06d}"
    with disk_errors(f"cannot save {final}", remedy):
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob(".step-*"):  # left by a kill
            shutil.rmtree(stale, ignore_errors=True)
        temporary = folder / f".{final.name}.{os.getpid()}"
        try:
            temporary.mkdir()
            _write(temporary, tensors, state)
            if final.exists():
                aside = folder / f"{final.name}.old"  # a name that `latest` still finds
                shutil.rmtree(aside, ignore_errors=True)
                os.rename(final, aside)
            os.rename(temporary, final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        sync_path(folder)

    others = [(at, path) for at, path in _newest_first(folder) if path != final]
    older = [path for at, path in others if at < step and not path.name.endswith(".old")]
    for _, path in others:
        if path not in older[: keep - 1]:
            # Renamed first: a folder that is half removed must not look like a checkpoint.
            hidden = folder / f".{path.name}"
            os.rename(path, hidden)
            shutil.rmtree(hidden, ignore_errors=True)
    return final


def latest(folder: Path) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
    """The newest readable checkpoint: (step, tensors on the CPU, state); None if there is none.

    One that cannot be read is named in a one-line warning and the one before it is taken.

    Raises:
        InputError: there are checkpoints, but none can be read.
    """
    candidates = _newest_first(folder)
    for step, path in candidates:
        try:
            state = json.loads((path / "state.json").read_text("utf-8"))
            tensors = load_file(path / "state.safetensors")
            if (name := not_finite(_weights(tensors))) is not None:  # of an earlier version
                raise ValueError(f"{name} has NaN or infinite values")
            return step, tensors, state
        except (OSError, ValueError, SafetensorError) as error:
            reason = " ".join(str(error).split())
            print(f"warning: cannot read checkpoint {path}, skipped: {reason}", file=sys.stderr)
    if candidates:
        raise InputError(
            f"none of the {len(candidates)} checkpoints in {folder} can be read: were the files "
            "changed or copied in part? Restore them, or start again with another --output"
        )
    return None


def _weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All that must be finite."""
    return {name: value for name, value in tensors.items() if _DATA.isdisjoint(name.split("/"))}


def _newest_first(folder: Path) -> list[tuple[int, Path]]:
    if not folder.is_dir():
        return []
    found = [(match, path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
    found.sort(key=lambda pair: (int(pair[0][1]), pair[0][2] is None), reverse=True)
    return [(int(match[1]), path) for match, path in found]


def _write(folder: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    path = folder / "state.safetensors"
    try:
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, path)
    except SafetensorError as error:  # reports the system's refusal as text: "... (os error 28)"
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
    sync_path(path)
    with open(folder / "state.json", "w", encoding="utf-8") as file:
        json.dump(state, file)
        file.flush()
        os.fsync(file.fileno())
    sync_path(folder)
