"""Checkpoints that are whole or absent, newest first, with the previous one as a fallback.

`checkpoints/step-000010/` holds `state.safetensors` (tensors) and `state.json` (the rest). It is
written as a hidden sibling, fsynced, and renamed; older ones go only once the new one is in place.
What is too large to be written each time is in `checkpoints/segments/` (`genpol.runs.segments`).

`state.json` holds the sha256 of all: of `state.safetensors`, of each segment that the checkpoint
lists, and of itself without that entry. Those of "genpol run 1" hold the bare state.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from genpol.runs.segments import SegmentList, Segments, prune
from genpol.runs.tensor_files import Torn, read_tensors, write_tensors
from offline.errors import InputError
from offline.files import disk_errors, sync_path
from offline.finite import not_finite, require_finite

FORMAT = "genpol checkpoint 2"
SEGMENTS, TENSORS = "segments", "state.safetensors"

# Parts of the names of tensors that are no weights, and may say NaN for what is not known, or
# infinity for no limit.
_DATA = {"replay", "ring", "obs", "running", "reward_range"}
_NAME = re.compile(r"step-(\d+)(\.old)?")
_UNREADABLE = (OSError, ValueError, RecursionError)  # of a torn or changed file


class Document(BaseModel):
    """What is in `state.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    format: str
    tensors: str
    """sha256 of `state.safetensors`."""
    segments: SegmentList | None
    state: dict[str, Any]
    sha256: str
    """Of all the other entries, as JSON."""


def save(
    folder: Path,
    step: int,
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
    keep: int,
    segments: Segments | None = None,
    since: int | None = None,
) -> Path:
    """Write the checkpoint of `step`, then prune to the newest `keep`.

    Args:
        folder: the `checkpoints/` folder, made if absent.
        step: steps done, at least 0. One saved earlier for the same step is replaced; any of a
            later step is left over from before a resume, and removed.
        tensors: contiguous copies are written from any device; no two may share memory.
        state: what JSON can hold (tuples come back as lists, and keys as strings).
        keep: how many checkpoints to leave, at least 1.
        segments: of large tables what has changed is written as well.
        since: the step of the checkpoint that this run saved or went on from last. Those between
            that and `step` could not be read, and are removed, too.

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
        _prune_segments(folder)
        temporary = folder / f".{final.name}.{os.getpid()}"
        try:
            listed = None if segments is None else segments.write(folder / SEGMENTS, step)
            temporary.mkdir()
            _write(temporary, tensors, state, listed)
            if final.exists():
                aside = folder / f"{final.name}.old"  # a name that `latest` still finds
                shutil.rmtree(aside, ignore_errors=True)
                os.rename(final, aside)
            os.rename(temporary, final)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            with contextlib.suppress(OSError):  # a full disk has no room for segments of nothing
                _prune_segments(folder)
            raise
        sync_path(folder)
        if segments is not None:
            segments.commit()

        others = [(at, path) for at, path in _newest_first(folder) if path != final]
        last = step - 1 if since is None else min(since, step - 1)
        older = [path for at, path in others if at <= last and not path.name.endswith(".old")]
        for _, path in others:
            if path not in older[: keep - 1]:
                # Renamed first: a folder that is half removed must not look like a checkpoint.
                hidden = folder / f".{path.name}"
                os.rename(path, hidden)
                shutil.rmtree(hidden, ignore_errors=True)
        _prune_segments(folder)
    return final


def latest(
    folder: Path, segments: Segments | None = None
) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
    """The newest readable checkpoint: (step, tensors on the CPU, state); None if there is none.

    One that cannot be read is named in a one-line warning and the one before it is taken.

    Args:
        folder: the `checkpoints/` folder.
        segments: reads those of the checkpoint back, if it lists any, into the tables.

    Raises:
        InputError: there are checkpoints, but none can be read, or the tables are other ones.
    """
    candidates = _newest_first(folder)
    for step, path in candidates:
        try:
            document, state = read_document(path)
            tensors = read_tensors(path / TENSORS, None if document is None else document.tensors)
            if (name := not_finite(_weights(tensors))) is not None:  # of an earlier version
                raise ValueError(f"{name} has NaN or infinite values")
            listed = None if document is None else document.segments
            if segments is not None and listed is not None:
                segments.read(folder / SEGMENTS, listed)
            return step, tensors, state
        except InputError:
            raise
        except _UNREADABLE as error:
            reason = " ".join(str(error).split())[:240]
            print(f"warning: cannot read checkpoint {path}, skipped: {reason}", file=sys.stderr)
    if candidates:
        raise InputError(
            f"none of the {len(candidates)} checkpoints in {folder} can be read: were the files "
            "changed or copied in part? Restore them, or start again with another --output"
        )
    return None


def read_document(path: Path) -> tuple[Document | None, dict[str, Any]]:
    """What a checkpoint's state.json says: all of it (None where it is of "genpol run 1"), and the
    state.

    Raises:
        OSError, ValueError, RecursionError: it cannot be read, or has changed.
    """
    found = json.loads((path / "state.json").read_text("utf-8"))
    if not isinstance(found, dict):
        raise ValueError("state.json holds no object")
    if "format" not in found:
        return None, found
    if found["format"] != FORMAT:
        raise ValueError(f'it has the format "{str(found["format"])[:80]}", not "{FORMAT}"')
    if found.get("sha256") != _digest(found):
        raise Torn("state.json has changed")
    document = Document.model_validate(found)
    return document, document.state


def _digest(document: Mapping[str, Any]) -> str:
    """sha256 of all entries but its own."""
    rest = {key: value for key, value in document.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest).encode()).hexdigest()


def _weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All that must be finite."""
    return {name: value for name, value in tensors.items() if _DATA.isdisjoint(name.split("/"))}


def _newest_first(folder: Path) -> list[tuple[int, Path]]:
    if not folder.is_dir():
        return []
    found = [(match, path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
    found.sort(key=lambda pair: (int(pair[0][1]), pair[0][2] is None), reverse=True)
    return [(int(match[1]), path) for match, path in found]


def _prune_segments(folder: Path) -> None:
    """Remove the segments that no checkpoint lists; none while one cannot be asked."""
    if not (folder / SEGMENTS).is_dir():
        return
    kept: set[str] = set()
    for _, path in _newest_first(folder):
        try:
            document, _ = read_document(path)
        except _UNREADABLE:
            return
        if document is not None and document.segments is not None:
            kept |= {segment.file for segment in document.segments.files}
    prune(folder / SEGMENTS, kept)


def _write(
    folder: Path,
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
    segments: SegmentList | None,
) -> None:
    document = {
        "format": FORMAT,
        "tensors": write_tensors(folder / TENSORS, tensors),
        "segments": None if segments is None else segments.model_dump(),
        "state": state,
    }
    document["sha256"] = _digest(document)
    with open(folder / "state.json", "w", encoding="utf-8") as file:
        json.dump(document, file)
        file.flush()
        os.fsync(file.fileno())
    sync_path(folder)
