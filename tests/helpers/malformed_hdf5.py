"""Seeded malformed HDF5 files: a good one with one leaf, group, link or attribute spoilt."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from malformed import nested

Spoil = Callable[[h5py.Group, str, np.ndarray], None]


@dataclass(frozen=True)
class Variant:
    """A spoilt copy."""

    path: Path
    what: str
    harmful: bool | None
    """Whether it has to be refused (True), has to be read (False), or may be either (None)."""


def hdf5_variants(good: Path, folder: Path, seed: int, count: int) -> Iterator[Variant]:
    """Copies of `good` with one thing spoilt, each in place of the one before it.

    Every way of spoiling comes once before any comes twice; where it is applied is drawn.

    Args:
        good: a dataset that every command reads.
        folder: where the copies are written.
        seed: of the draws.
        count: how many.
    """
    draw = random.Random(seed)
    with h5py.File(good) as file:
        arrays, groups, attributes = _places(file)
    ways: list[tuple[str, str, bool | None]] = []
    while len(ways) < count:
        turn = [("array", name, harm) for name, (harm, _) in ARRAYS.items()]
        turn += [("group", name, harm) for name, (harm, _) in GROUPS.items()]
        turn += [("attribute", name, None) for name in ATTRIBUTES]
        turn = [way for way in turn if attributes or way[0] != "attribute"]
        draw.shuffle(turn)
        ways += turn
    path = folder / f"spoilt{good.suffix}"
    for kind, name, harm in ways[:count]:
        shutil.copyfile(good, path)
        with h5py.File(path, "r+") as file:
            if kind == "attribute":
                at, key = draw.choice(attributes)
                _set(file[at], key, name)
                what, harm = f"{at} @{key}: {name}", _attribute_harm(key, name)
            else:
                at = draw.choice(arrays if kind == "array" else groups)
                what, harm = f"{at}: {name}", _harm(at, kind, name, harm)
                if kind == "array":
                    ARRAYS[name][1](file[at].parent, at.rpartition("/")[2], file[at][()])
                else:
                    GROUPS[name][1](file[at].parent, at.rpartition("/")[2])
        yield Variant(path, what, harm)


def _places(file: h5py.File) -> tuple[list[str], list[str], list[tuple[str, str]]]:
    arrays: list[str] = []
    groups: list[str] = []
    attributes: list[tuple[str, str]] = []

    def visit(name: str, item: Any) -> None:
        (groups if isinstance(item, h5py.Group) else arrays).append(name)
        attributes.extend((name, key) for key in item.attrs)

    file.visititems(visit)
    return sorted(arrays), sorted(groups), sorted(attributes)


def _harm(at: str, kind: str, name: str, harm: bool | None) -> bool | None:
    """What is never read whole, or may be left out, may be spoilt in ways that do no harm."""
    leaf = at.rpartition("/")[2]
    if at.startswith("mask") and kind == "array":
        # Names of demonstrations: text is what belongs there.
        return True if name in FOREIGN or name in ("group", "named type") else None
    if name in ("missing", "empty group", "long name"):
        needed = leaf in ("actions", "observations", "obs", "data") or (
            leaf == "rewards" and at == "rewards"
        )
        return True if needed else None
    if name in ("group", "root") and "obs" in at.split("/")[-2:-1]:
        return None  # groups among the observations are left alone
    if at.startswith("infos") and kind == "group":
        return True if name in FOREIGN else None
    return harm


# -- arrays


def _replace(parent: h5py.Group, name: str, value: Any, **options: Any) -> None:
    del parent[name]
    parent.create_dataset(name, data=value, **options)


def _as(function: Callable[[np.ndarray], Any]) -> Spoil:
    return lambda parent, name, values: _replace(parent, name, function(values))


def _last(number: float) -> Spoil:
    def spoil(parent: h5py.Group, name: str, values: np.ndarray) -> None:
        found = np.asarray(values, object if values.dtype.kind == "S" else float)
        if found.dtype == object:
            return
        found[-1] = number
        _replace(parent, name, found)

    return spoil


def _ragged(parent: h5py.Group, name: str, values: np.ndarray) -> None:
    del parent[name]
    rows = parent.create_dataset(name, (len(values),), h5py.vlen_dtype(np.float32))
    for i in range(len(values)):
        rows[i] = np.zeros(i % 3, np.float32)


def _compound(values: np.ndarray) -> np.ndarray:
    return np.zeros(len(values), [("x", "f4"), ("y", "f4")])


def _references(parent: h5py.Group, name: str, values: np.ndarray) -> None:
    del parent[name]
    rows = parent.create_dataset(name, (len(values),), h5py.ref_dtype)
    rows[:] = [parent.file.ref] * len(values)


def _declared(*shape: int) -> Spoil:
    """A shape that no memory holds, of which nothing is stored."""

    def spoil(parent: h5py.Group, name: str, values: np.ndarray) -> None:
        del parent[name]
        full = (*shape, *values.shape[1:])
        chunks = (1000, *(min(n, 100) for n in full[1:]))
        parent.create_dataset(name, full, "f4", chunks=chunks, fillvalue=0.5)

    return spoil


def _wide(parent: h5py.Group, name: str, values: np.ndarray) -> None:
    del parent[name]
    parent.create_dataset(name, (len(values), 10**12), "f4", chunks=(1, 1000))


def _external(parent: h5py.Group, name: str, values: np.ndarray) -> None:
    outside = Path(parent.file.filename).with_name("secret.bin")
    outside.write_bytes(b"\x3f" * 10**6)
    del parent[name]
    shape = values.shape
    parent.create_dataset(name, shape, "f4", external=[(str(outside), 0, h5py.h5f.UNLIMITED)])


def _virtual(parent: h5py.Group, name: str, values: np.ndarray) -> None:
    outside = Path(parent.file.filename).with_name("outside.h5")
    with h5py.File(outside, "w") as file:
        file["x"] = np.zeros(values.shape, np.float32)
    layout = h5py.VirtualLayout(values.shape, "f4")
    layout[:] = h5py.VirtualSource(str(outside), "x", values.shape)
    del parent[name]
    parent.create_virtual_dataset(name, layout)


def _link(link: Callable[[str], Any]) -> Any:
    def spoil(parent: h5py.Group, name: str, *_: Any) -> None:
        del parent[name]
        parent[name] = link(f"{parent.name}/{name}")

    return spoil


def _external_link(parent: h5py.Group, name: str, *_: Any) -> None:
    outside = Path(parent.file.filename).with_name("outside.h5")
    with h5py.File(outside, "w") as file:
        parent.copy(name, file, "copy")
    del parent[name]
    parent[name] = h5py.ExternalLink(str(outside), "copy")


def _moved(parent: h5py.Group, name: str, *_: Any) -> None:
    """The thing itself elsewhere in the file, and a soft link to it."""
    parent.file.move(f"{parent.name}/{name}", "/moved")
    parent[name] = h5py.SoftLink("/moved")


def _group(parent: h5py.Group, name: str, *_: Any) -> None:
    del parent[name]
    parent.create_group(name)["x"] = np.zeros(3)


def _named_type(parent: h5py.Group, name: str, *_: Any) -> None:
    del parent[name]
    parent[name] = np.dtype("f4")


def _long_name(parent: h5py.Group, name: str, *_: Any) -> None:
    parent.move(name, "x" * 60_000)


def _missing(parent: h5py.Group, name: str, *_: Any) -> None:
    del parent[name]


def _root(parent: h5py.Group, name: str, *_: Any) -> None:
    del parent[name]
    parent[name] = parent.file["/"]


FOREIGN = ("external raw", "external link", "virtual", "loop", "dangling", "petabyte")
ARRAYS: dict[str, tuple[bool | None, Spoil]] = {
    "text": (True, _as(lambda v: np.array([b"abc"] * len(v)))),
    "text of any length": (True, lambda p, n, v: _replace(p, n, ["abc"] * len(v))),
    "ragged": (True, _ragged),
    "compound": (True, _as(_compound)),
    "scalar": (True, _as(lambda v: 3.0)),
    "no space": (True, _as(lambda v: h5py.Empty("f4"))),
    "no rows": (True, _as(lambda v: np.zeros((0, *v.shape[1:]), np.float32))),
    "complex": (True, _as(lambda v: np.ones(v.shape, complex))),
    "opaque": (True, _as(lambda v: np.full(v.shape, b"ab", "V2"))),
    "times": (True, _as(lambda v: np.zeros(v.shape, "M8[s]").astype(h5py.opaque_dtype("M8[s]")))),
    "references": (True, _references),
    "nan": (True, _last(float("nan"))),
    "infinite": (True, _last(float("-inf"))),
    "1e300": (True, _last(1e300)),
    "longer": (True, _as(lambda v: np.concatenate([v, v]))),
    "shorter": (True, _as(lambda v: v[:-1])),
    "one more dimension": (None, _as(lambda v: v[..., None])),
    "three more dimensions": (None, _as(lambda v: v[..., None, None, None])),
    "wider": (None, _as(lambda v: np.stack([v, v], -1).reshape(len(v), -1))),
    "petabyte": (True, _declared(10**14)),
    "wide": (True, _wide),
    "group": (True, _group),
    "named type": (True, _named_type),
    "missing": (True, _missing),
    "external raw": (True, _external),
    "external link": (True, _external_link),
    "virtual": (True, _virtual),
    "dangling": (True, _link(lambda at: h5py.SoftLink("/nowhere"))),
    "loop": (True, _link(h5py.SoftLink)),
    "root": (True, _root),
    "long name": (None, _long_name),
    "doubles": (False, lambda p, n, v: _replace(p, n, _widened(v))),
    "compressed": (False, lambda p, n, v: _replace(p, n, v, compression="gzip")),
    "moved": (False, _moved),
}  # fmt: skip


def _widened(values: np.ndarray) -> np.ndarray:
    return values.astype(">f8") if values.dtype.kind == "f" else values


# -- groups

GROUPS: dict[str, tuple[bool | None, Callable[..., None]]] = {
    "dataset": (True, lambda p, n: _replace(p, n, np.zeros(3))),
    "text": (True, lambda p, n: _replace(p, n, "abc")),
    "missing": (None, _missing),
    "empty group": (None, lambda p, n: (_missing(p, n), p.create_group(n))),
    "named type": (True, _named_type),
    "external link": (True, _external_link),
    "dangling": (True, _link(lambda at: h5py.SoftLink("/nowhere"))),
    "loop": (True, _link(h5py.SoftLink)),
    "root": (None, _root),
    "long name": (None, _long_name),
    "moved": (None, _moved),
}


# -- attributes

ATTRIBUTES: dict[str, Any] = {
    "text": "text",
    "empty text": "",
    "null": "null",
    "list": "[]",
    "number as text": "3",
    "torn": '{"a": ',
    "nested": nested(),
    "nested objects": '{"a": ' * 1000 + "1" + "}" * 1000,
    "not UTF-8": np.bytes_(b"\xff\xfe{"),  # shown with a mark where it is text
    "long": "x" * 60_000,
    "nan": float("nan"),
    "negative": -1,
    "2**62": 2**62,
    "half": 0.5,
    "numbers": np.arange(3.0),
    "texts": ["a", "b"],
    "no space": h5py.Empty("f4"),
    "complex": 1j,
    "compound": np.zeros((), [("x", "f4")]),
    "reference": "reference",
}
_JSON = ("env_args", "genpol_meta", "action_spec", "meta")


def _set(item: Any, key: str, name: str) -> None:
    del item.attrs[key]
    if name == "reference":
        item.attrs.create(key, item.file.ref, dtype=h5py.ref_dtype)
    else:
        item.attrs[key] = ATTRIBUTES[name]


def _attribute_harm(key: str, name: str) -> bool | None:
    """What an attribute may be instead, by what the format needs of it."""
    if key in _JSON:
        return None if name in ("null", "empty text") else True
    if key == "num_samples" or key == "success":
        return True
    if key in ("genpol_env", "language"):
        return (
            None
            if isinstance(ATTRIBUTES[name], str) and name != "reference" or name == "not UTF-8"
            else True
        )
    return None
