"""State trees to and from checkpoints: tensors for safetensors, the rest as JSON.

A state tree is what `state_dict` methods return: dictionaries (with text or whole-number keys),
lists and tuples, with tensors, arrays, numbers, text, booleans and None at the leaves. In the
document, leaves that JSON can hold stand for themselves; everything else is an object of one entry
that says what it is:

    {"dict": [[key, node], ...]}   {"list": [...]}   {"tuple": [...]}   {"float": "nan"}
    {"tensor": name}   {"array": name}   {"scalar": name}   (numpy's numbers)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offline.errors import InputError


def flatten(tree: Any) -> tuple[dict[str, Tensor], Any]:
    """(tensors by name, JSON document) of a state tree; `unflatten` gives it back bit for bit.

    Tensors are detached and contiguous, on the device they were on. Those that share memory with
    one before them are copied, because safetensors stores no sharing.

    Raises:
        TypeError: names the entry that a checkpoint cannot hold.
    """
    writer = _Writer()
    document = writer.node(tree, "state")
    return writer.tensors, document


def unflatten(tensors: Mapping[str, Tensor], document: Any) -> Any:
    """The state tree of what `flatten` returned, with tensors as they are in `tensors`.

    Raises:
        InputError: the two are not of one checkpoint.
    """
    with fitting("the checkpoint's tensors and its state.json do not fit together"):
        return _read(tensors, document)


@contextmanager
def fitting(fault: str) -> Iterator[None]:
    """Around taking on a state that somebody may have changed: what fails inside is its fault.

    Raises:
        InputError: "<fault> (KeyError: ...): were the files changed or copied in part?"
    """
    try:
        yield
    except InputError:
        raise
    except (
        ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, RuntimeError,
        TypeError, ValueError,
    ) as error:  # fmt: skip
        text = " ".join(f"{type(error).__name__}: {error}".split())
        reason = text if len(text) <= 200 else text[:200] + " ..."
        raise InputError(
            f"{fault} ({reason}): were the files changed or copied in part?"
        ) from error


class _Writer:
    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.storages: set[int] = set()

    def node(self, value: Any, path: str) -> Any:
        if isinstance(value, np.generic):  # before float: numpy's float64 is one
            return {"scalar": self.tensor(_from_numpy(np.asarray(value), path), path)}
        if value is None or isinstance(value, (bool, int, str)):
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else {"float": repr(value)}
        if isinstance(value, Tensor):
            return {"tensor": self.tensor(value, path)}
        if isinstance(value, np.ndarray):
            return {"array": self.tensor(_from_numpy(value, path), path)}
        if isinstance(value, Mapping):
            return {"dict": [self.pair(key, item, path) for key, item in value.items()]}
        if isinstance(value, (list, tuple)):
            kind = "list" if isinstance(value, list) else "tuple"
            return {kind: [self.node(item, f"{path}/{i}") for i, item in enumerate(value)]}
        raise TypeError(f"{path} is a {type(value).__name__}, which no checkpoint can hold")

    def pair(self, key: Any, item: Any, path: str) -> list[Any]:
        if isinstance(key, bool) or not isinstance(key, (str, int)):
            raise TypeError(f"{path} has the key {key!r}; text and whole numbers can be stored")
        return [key, self.node(item, f"{path}/{key}")]

    def tensor(self, value: Tensor, path: str) -> str:
        name = path
        while name in self.tensors:  # {"a/b": ...} beside {"a": {"b": ...}}, or 1 beside "1"
            name += "'"
        value = value.detach().contiguous()
        if value.numel():
            storage = value.untyped_storage().data_ptr()
            if storage in self.storages:
                value = value.clone()
                storage = value.untyped_storage().data_ptr()
            self.storages.add(storage)
        self.tensors[name] = value
        return name


def _from_numpy(array: np.ndarray, path: str) -> Tensor:
    try:
        return torch.from_numpy(np.ascontiguousarray(array).reshape(array.shape))
    except TypeError as error:
        raise TypeError(
            f"{path} is an array of {array.dtype}, which no checkpoint can hold"
        ) from error


def _read(tensors: Mapping[str, Tensor], node: Any) -> Any:
    if not isinstance(node, dict):
        if isinstance(node, list):
            raise ValueError("a bare list")
        return node
    ((kind, content),) = node.items()
    if kind == "dict":
        return {key: _read(tensors, item) for key, item in content}
    if kind == "list":
        return [_read(tensors, item) for item in content]
    if kind == "tuple":
        return tuple(_read(tensors, item) for item in content)
    if kind == "float":
        return float(content)
    if kind == "tensor":
        return tensors[content]
    if kind == "array":
        return tensors[content].numpy()
    if kind == "scalar":
        return tensors[content].numpy()[()]
    raise ValueError(f"an entry of kind {kind!r}")
