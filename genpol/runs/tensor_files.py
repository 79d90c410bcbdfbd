"""Files of tensors that are known by their sha256: whole and as they were written, or refused."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from offline.files import sync_path


class Torn(ValueError):
    """A file is not the one that was written."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write and fsync a safetensors file; returns its sha256.

    Raises:
        OSError: the disk refuses.
    """
    try:
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, path)
    except SafetensorError as error:  # reports the system's refusal as text: "... (os error 28)"
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
    sync_path(path)
    return _sha256(path)


def read_tensors(path: Path, sha256: str | None) -> dict[str, Tensor]:
    """The tensors of a safetensors file on the CPU, mapped: read where they are looked at.

    Args:
        path: the file.
        sha256: what `write_tensors` returned; None where nobody knows.

    Raises:
        OSError: it cannot be read.
        Torn: it is not the file that was written.
    """
    if sha256 is not None and _sha256(path) != sha256:
        raise Torn(f"{path} is not the file that was written: it is torn or has changed")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise Torn(f"{path} is no file of tensors: {' '.join(str(error).split())[:160]}") from error


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
