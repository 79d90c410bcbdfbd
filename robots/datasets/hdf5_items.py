"""Groups, arrays and attributes of an HDF5 file, each checked before it is read.

What a file holds was written by somebody else. So a link that leads out of the file, an array whose
bytes lie in other files, and one that declares more than it can hold are refused before a byte of
them is read, and what is read is of the kind and shape that it should be.
"""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np

from offline.arrays import check_kind, check_shape
from offline.errors import InputError, shown
from robots.datasets.hdf5 import import_h5py

LINKS = 32  # soft links that are followed one after the other
SPARSE = 1 << 20  # bytes that an array may declare without storing any
BOMB = 1 << 30  # bytes from which on an array must store at least one of ...
RATIO = 2000  # ... so many; deflate comes to 1,032


def member(group: Any, name: str, where: str, links: int = LINKS) -> Any:
    """What lies under a name of a group, None where nothing does; soft links are followed.

    Raises:
        InputError: a link that leads out of the file, to nothing, or in a circle.
    """
    h5py = import_h5py()
    link = group.get(name, getlink=True)
    if link is None or isinstance(link, h5py.HardLink):
        return None if link is None else group[name]
    if not isinstance(link, h5py.SoftLink):
        raise InputError(
            f'{where}: "{shown(name)}" is a link to another file ("{_target(link)}"), which is '
            "never followed: copy the data into one file"
        )
    at = group.file["/"] if link.path.startswith("/") else group
    for part in link.path.split("/"):
        if part in ("", "."):
            continue
        found = None
        if links > 0 and isinstance(at, h5py.Group):
            found = member(at, part, where, links - 1)
        if found is None:
            raise InputError(
                f'{where}: "{shown(name)}" is a link to "{shown(link.path)}", which is not there'
            )
        at = found
    return at


def subgroup(group: Any, name: str, where: str) -> Any:
    """A group in a group; None where there is none.

    Raises:
        InputError: there is something else of that name; see also `member`.
    """
    found = member(group, name, where)
    if found is None or isinstance(found, import_h5py().Group):
        return found
    raise InputError(f'{where}: "{shown(name)}" is {_kind(found)}, expected a group')


def numbers(group: Any, name: str, where: str, shape: tuple[Any, ...]) -> Any:
    """A dataset of numbers, not read yet; None where there is none.

    Args:
        group: that it is in.
        name: its name there.
        where: what errors call the group.
        shape: what its axes must be; ends in an Ellipsis where more may follow.

    Raises:
        InputError: no dataset, not of numbers, of another shape, or not all in this file.
    """
    found = member(group, name, where)
    if found is None:
        return None
    if not isinstance(found, import_h5py().Dataset):
        raise InputError(f'{where}: "{shown(name)}" is {_kind(found)}, expected an array')
    if found.shape is None:
        raise InputError(f'{where}: "{shown(name)}" is empty (a null dataspace)')
    check_kind(found.dtype, where, name)
    if shape[-1:] == (...,):
        shape = (*shape[:-1], *found.shape[len(shape) - 1 :])
    check_shape(found.shape, where, name, shape)
    _check_stored(found, where, name)
    return found


def read(found: Any, where: str, name: str, rows: slice = slice(None)) -> np.ndarray:
    """Rows of what `numbers` returned.

    Raises:
        InputError: more than this machine's memory.
    """
    count = len(range(*rows.indices(len(found))))
    size = found.dtype.itemsize * math.prod((count, *found.shape[1:]))
    if size > memory():
        raise InputError(
            f'{where}: "{shown(name)}" is {size / 2**30:.3g} GiB, more than this machine\'s '
            f"{memory() / 2**30:.3g} GiB of memory"
        )
    return np.asarray(found[rows])


def names(group: Any, name: str, where: str) -> list[str]:
    """A dataset of names, as a list of text.

    Raises:
        InputError: no such dataset, or one of something else.
    """
    h5py = import_h5py()
    found = member(group, name, where)
    if not isinstance(found, h5py.Dataset) or found.shape is None:
        raise InputError(f'{where}: "{shown(name)}" is {_kind(found)}, expected a list of names')
    if found.dtype.kind != "S" and h5py.check_string_dtype(found.dtype) is None:
        raise InputError(f'{where}: "{shown(name)}" holds {found.dtype}, expected names')
    _check_stored(found, where, name)
    return [text(n) for n in np.asarray(found[()]).reshape(-1).tolist()]


def check_contained(file: Any, where: str) -> None:
    """Check that everything in a file is of that file, for libraries that open it themselves.

    Raises:
        InputError: a link or an array leads out of the file, or more is declared than is stored.
    """
    h5py = import_h5py()
    left, seen = [(file["/"], where)], set()
    while left:
        group, inside = left.pop()
        if (address := h5py.h5o.get_info(group.id).addr) in seen:  # a group may be in itself
            continue
        seen.add(address)
        for name in group:
            found = member(group, name, inside)
            if isinstance(found, h5py.Group):
                left.append((found, f"{where} {shown(name)}"))
            elif isinstance(found, h5py.Dataset) and found.shape is not None:
                _check_stored(found, inside, name)


def memory() -> int:
    """Bytes of physical memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def text(value: bytes | str) -> str:
    """Bytes as text; what is no UTF-8 is marked."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _check_stored(found: Any, where: str, name: str) -> None:
    """Refuse an array that reads other files, or declares far more than it stores."""
    others = found.external or (
        found.is_virtual and [s for s in found.virtual_sources() if s.file_name != "."]
    )
    if others:
        raise InputError(
            f'{where}: "{shown(name)}" takes its numbers from other files '
            f'("{shown(str(others[0][0]))}"), which are never read: copy the data into one file'
        )
    declared, stored = found.dtype.itemsize * math.prod(found.shape), found.id.get_storage_size()
    if found.is_virtual:
        return
    if (stored == 0 and declared > SPARSE) or (declared > BOMB and declared > RATIO * stored):
        raise InputError(
            f'{where}: "{shown(name)}" declares the shape {shown(found.shape)} '
            f"({declared / 2**30:.3g} GiB) but the file stores {stored} bytes of it"
        )


def _target(link: Any) -> str:
    return shown(f"{getattr(link, 'filename', type(link).__name__)}")


def _kind(found: Any) -> str:
    h5py = import_h5py()
    if found is None:
        return "missing"
    kinds = {h5py.Group: "a group", h5py.Dataset: "an array", h5py.Datatype: "a datatype"}
    return next((word for kind, word in kinds.items() if isinstance(found, kind)), "unknown")
