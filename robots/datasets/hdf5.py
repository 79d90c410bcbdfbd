"""Opening HDF5 files, with errors that say what is wrong with the file."""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from offline.arrays import single
from offline.errors import InputError, shown

if TYPE_CHECKING:
    import h5py


def import_h5py() -> Any:
    """The h5py module.

    Raises:
        InputError: it is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise InputError("HDF5 files need h5py: pip install h5py") from error
    return h5py


def require_file(path: Path) -> None:
    """Check that there is such a file or folder.

    Raises:
        InputError: names a similar one beside it, where there is one; or the name is none.
    """
    try:
        if path.exists():
            return
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    except OSError as error:  # longer than names may be, not permitted
        raise InputError(f'cannot read "{shown(str(path))}": {error.strerror}') from error
    close = difflib.get_close_matches(path.name, beside, n=1, cutoff=0.6)
    hint = f' Did you mean "{path.with_name(close[0])}"?' if close else ""
    raise InputError(f'there is no dataset "{shown(str(path), 200)}".{hint}')


@contextmanager
def open_hdf5(path: Path, part: str = "") -> Iterator[h5py.File]:
    """A file open for reading, closed again afterwards: no handle lives between two episodes.

    Args:
        path: the file.
        part: what is being read of it, such as "demo_3", for errors.

    Raises:
        InputError: missing, not HDF5, or cut off; also when reading inside the block fails.
    """
    h5py = import_h5py()
    require_file(path)
    if path.is_dir():
        raise InputError(f'"{path}" is a folder, expected an HDF5 file')
    name = f'"{path}" {part}'.rstrip()
    try:
        with h5py.File(path, "r") as file:
            yield file
    except InputError:
        raise
    except Exception as error:  # h5py has no error of its own: damage raises any of Python's
        reason = " ".join(str(error).split())[:160]
        if "truncated" in reason:
            raise InputError(
                f"{name} was cut off (truncated HDF5): copy or download it again"
            ) from error
        if "signature not found" in reason:
            raise InputError(f"{name} is not an HDF5 file ({path.stat().st_size} bytes)") from error
        if isinstance(error, OSError | MemoryError) or _raised_by_h5py(error):
            raise InputError(f"cannot read {name}: {reason or type(error).__name__}") from error
        raise


def _raised_by_h5py(error: Exception) -> bool:
    """Its innermost frame is h5py's, so that our own mistakes keep their traceback."""
    frames = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
    return "h5py" in frames[-1]


def plain(value: Any) -> Any:
    """NumPy numbers and arrays as JSON knows them; for `json.dumps(..., default=plain)`."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return str(value)


def as_observation(values: Any) -> np.ndarray:
    """Images (T, height, width, C) of bytes stay uint8; everything else becomes float32.

    Numbers without a dimension of their own, (T,), become (T, 1).
    """
    values = np.asarray(values)
    if values.dtype == np.uint8 and values.ndim == 4:
        return values
    values = single(values)
    return values[:, None] if values.ndim == 1 else values
