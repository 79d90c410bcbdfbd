"""Converts a robot's message to the observation that a policy or a critic was trained on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offline.errors import InputError, SpecError, did_you_mean, shown
from offline.naming import match_names
from offline.pictures import resize
from offline.types import Obs

_MAX_DEPTH = 8  # of maps in maps
_MAX_PROMPT = 4000  # characters
_NAMED = 20  # received keys that a message lists

log = logging.getLogger(__name__)


class Observations:
    """Turns a robot's message into the observation a component was trained on.

    Args:
        shapes: what it needs, each without a batch axis.
        others: also take every other array as it comes, for a component that does not say what it
            needs.
        rename: the message's keys -> the component's, such as {"eef": "state"}; the keys of a map
            inside the message are joined with "/". What differs by prefix and separators only is
            found without, see `offline.naming`.
        embed: instruction -> (384,) or (1, 384), where "language" is needed and the message has a
            "prompt" instead.
        prompt: the instruction where the message has none.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        *,
        others: bool = False,
        rename: Mapping[str, str] | None = None,
        embed: Callable[[str], Tensor] | None = None,
        prompt: str | None = None,
    ) -> None:
        self.shapes = {key: tuple(shape) for key, shape in shapes.items()}
        self.complete = not others
        """Whether `shapes` is all that there is."""
        self._rename, self._embed, self._prompt = dict(rename or {}), embed, prompt
        self._embedded: dict[str, Tensor] = {}
        self._said: set[str] = set()

    def __call__(self, message: Mapping[str, Any]) -> Obs:
        """One row (1, ...) for each key. Pictures of another size are resized, which is said once.

        Raises:
            InputError: a key is missing, could be several of the message's, or has another shape or
                kind; names it.
        """
        flat = {self._rename.get(key, key): value for key, value in flatten(message).items()}
        if not self.shapes.keys() <= flat.keys():
            flat = self._under_our_names(flat)
        obs: Obs = {}
        for key, shape in self.shapes.items():
            if key in flat:
                value = self._of_size(key, flat[key], shape)
                obs[key] = row_of(key, value, shape if self.complete else _as_sent(value, shape))
            elif key == "language" and self._embed is not None:
                obs[key] = self._language(flat.get("prompt", self._prompt))
            else:
                received = [shown(name) for name in sorted(flat)[:_NAMED]]
                raise InputError(
                    f'the observation has no "{key}" of shape {shape}.'
                    f"{did_you_mean(key, received)} Send it, or name the key that holds it with "
                    f"--rename KEY={key}"
                )
        if not self.complete:
            for key in flat.keys() - obs.keys():
                if isinstance(value := flat[key], np.ndarray | float | int):
                    obs[key] = row_of(key, value, np.shape(value))
        return obs

    def _under_our_names(self, flat: dict[str, Any]) -> dict[str, Any]:
        """The same entries, those that can only be one of ours under our name."""
        renamed = set(self._rename.values())  # what the user has said is not matched again
        wanted = [key for key in self.shapes if key not in renamed and key != "language"]
        there = [key for key in flat if key not in renamed]
        found = match_names(wanted, there, "pass --rename KEY=KEY, the robot's key first")
        ours = {theirs: key for key, theirs in found.items()}
        return {ours.get(key, key): value for key, value in flat.items()}

    def _of_size(self, key: str, value: Any, shape: tuple[int, ...]) -> Any:
        """A picture of another size at ours; anything else as it is, and everything for a component
        that does not say what it needs: its pictures may be larger than the critic's."""
        if not self.complete or not _is_picture(value, shape) or value.shape == shape:
            return value
        if key not in self._said:
            self._said.add(key)
            log.warning(
                '"%s" comes as %d x %d and is resized to %d x %d', key, *value.shape[:2], *shape[:2]
            )
        return resize(value, (shape[0], shape[1]))

    def _language(self, prompt: Any) -> Tensor:
        if isinstance(prompt, np.ndarray) and prompt.dtype.kind == "U" and prompt.size == 1:
            prompt = prompt.item()
        if not isinstance(prompt, str) or not prompt:
            raise InputError(
                'the observation has no "prompt", the instruction that this policy follows'
            )
        text = str(prompt)
        if len(text) > _MAX_PROMPT:
            raise InputError(
                f'"prompt" has {len(text)} characters, expected up to {_MAX_PROMPT}: '
                f'"{shown(text)}"'
            )
        if text not in self._embedded:
            if len(self._embedded) > 100:  # a client may send a new one each time
                self._embedded.clear()
            self._embedded[text] = self._embed(text).reshape(1, -1)  # type: ignore[misc]
        return self._embedded[text]


def _is_picture(value: Any, shape: tuple[int, ...]) -> bool:
    """Whether a picture is expected and has come, of whatever size."""
    if len(shape) != 3 or not isinstance(value, np.ndarray) or value.dtype != np.uint8:
        return False
    return value.ndim == 3 and value.shape[2] == shape[2] == 3 and value.size > 0


def _as_sent(value: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that is expected of an entry: a picture may have any size."""
    return value.shape if _is_picture(value, shape) else shape


def flatten(message: Mapping[str, Any], prefix: str = "", depth: int = 1) -> dict[str, Any]:
    """{"images": {"wrist": a}} -> {"images/wrist": a}.

    Raises:
        InputError: maps inside maps, too deep.
    """
    if depth > _MAX_DEPTH:
        raise InputError(f"the observation has maps nested more than {_MAX_DEPTH} deep")
    flat: dict[str, Any] = {}
    for key, value in message.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}/", depth + 1)
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def row_of(key: str, value: Any, shape: tuple[int, ...]) -> Tensor:
    """One entry of a message as a row (1, *shape): images uint8, anything else float32.

    Raises:
        InputError: no numbers, not finite, another shape or kind; names the key.
    """
    array = numbers(value)
    name = shown(key)
    if array is None:
        raise InputError(f'"{name}" is {kind_of(value)}, expected numbers of shape {shape}')
    if array.shape != shape:
        hint = ": send one observation, without a batch axis" if array.shape[1:] == shape else ""
        raise InputError(f'"{name}" has shape {shown(array.shape)}, expected {shape}{hint}')
    if len(shape) == 3 and array.dtype != np.uint8:
        raise InputError(f'"{name}" has dtype {array.dtype}, expected an image of uint8, 0 to 255')
    if len(shape) < 3:
        with np.errstate(over="ignore"):  # becomes infinite
            array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise InputError(f'"{name}" has NaN or infinite values')
    return torch.from_numpy(np.array(array))[None]  # a copy: the message's arrays are read-only


def numbers(value: Any) -> np.ndarray | None:
    """A value of a message as an array of real numbers; None where it is no such thing."""
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError):  # a ragged list, or one too deep
        return None
    return array if array.dtype.kind in "biuf" else None


def kind_of(value: Any) -> str:
    """What a value is, for a message."""
    if isinstance(value, np.ndarray):
        return f"an array of dtype {value.dtype}"
    return type(value).__name__


def merged(*shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The observation that holds all of these.

    Raises:
        SpecError: they do not agree on a key.
    """
    whole: dict[str, tuple[int, ...]] = {}
    for part in shapes:
        for key, shape in part.items():
            if whole.setdefault(key, tuple(shape)) != tuple(shape):
                raise SpecError(
                    f'"{key}" has shape {whole[key]} for one and {tuple(shape)} for another of '
                    "policy and values: were they trained on the same dataset?"
                )
    return whole
