"""Calls a reward function as it was written, whichever of the usual forms it has.

    (images, prompts)             or (prompts, images), if the parameters have these names
    (images, prompts, metadata)   a third parameter that is needed, or is called metadata
    def make(): ... return score  a function or class without arguments, or of a device, that makes
                                  the reward: it is called once
    async def                     awaited

metadata is a list of B dicts: the other columns of each prompt's row. The reward may set

    score.images = "float"        (B, 3, H, W) float32 in [0, 1]; the default
                   "uint8"        (B, H, W, 3) uint8, a NumPy array
                   "pil"          a list of B RGB pictures
    score.group = True            it is called once for each prompt, with all images of that prompt

or be made with `@reward_function(images="pil", group=True)`. What it returns: see `checks.py`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from diffusion.errors import InputError, did_you_mean, shown
from diffusion.prompts.prompt import metadata_of
from diffusion.rewards.awaiting import wait_for
from diffusion.rewards.expression import FORMS
from diffusion.rewards.pixels import to_pil, to_uint8

RewardFn = Callable[..., Any]
Form = Literal["float", "uint8", "pil"]
_F = TypeVar("_F", bound=Callable[..., Any])
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_EXPECTED = "expected (images, prompts) or (images, prompts, metadata), by position"


def reward_function(*, images: Form = "float", group: bool = False) -> Callable[[_F], _F]:
    """A decorator that says what a reward takes.

    Args:
        images: float: (B, 3, H, W) float32 in [0, 1]; uint8: (B, H, W, 3) uint8, a NumPy array;
            pil: a list of B RGB pictures.
        group: whether it is called once for each prompt, with all images of that prompt.
    """

    def mark(function: _F) -> _F:
        function.images, function.group = images, group  # type: ignore[attr-defined]
        return function

    return mark


class Adapted:
    """A reward as `(images, prompts) -> what it returned`: images (B, 3, H, W) float in [0, 1].

    `group` says that it has to see the images of one prompt at a time.
    """

    def __init__(self, function: RewardFn, form: str, group: bool, call: _Call) -> None:
        self.function, self.form, self.group = function, form, group
        self._call = call

    def __call__(self, images: Tensor, prompts: list[str]) -> Any:
        given: Any = images
        if self.form == "uint8":
            given = to_uint8(images)
        elif self.form == "pil":
            given = to_pil(images)
        words, named = self._call(given, prompts)
        if inspect.iscoroutinefunction(self.function):
            return wait_for(lambda: self.function(*words, **named))
        value = self.function(*words, **named)
        return wait_for(lambda: value) if inspect.isawaitable(value) else value


_Call = Callable[[Any, list[str]], tuple[tuple[Any, ...], dict[str, Any]]]


def adapt(
    function: RewardFn,
    label: str,
    *,
    device: str | torch.device = "cpu",
    form: str | None = None,
) -> Adapted:
    """Read how `function` is to be called. `form` replaces what it says of its images.

    `device` is given to a function that makes the reward and asks for one.
    Raises InputError where it cannot be called as a reward.
    """
    if isinstance(function, Adapted):
        return function
    made = _made(function, label, device)
    said = [getattr(one, "images", None) for one in (made, function)]
    chosen = form or next((one for one in said if isinstance(one, str)), "float")
    if chosen not in FORMS:
        raise InputError(
            f'Reward "{shown(label)}" wants images as "{shown(chosen)}".'
            f"{did_you_mean(chosen, FORMS)}"
        )
    group = any(getattr(one, "group", False) is True for one in (made, function))
    return Adapted(made, chosen, group, _call_of(made, label))


def _made(function: RewardFn, label: str, device: str | torch.device) -> RewardFn:
    """The reward itself, of a function or class that makes it."""
    arguments = _factory_arguments(function, label, device)
    if arguments is None:
        return function
    try:
        made = function(**arguments)
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        raise InputError(
            f'Reward "{shown(label)}" takes no images, so it was called to make a reward. It '
            f"raised {type(error).__name__}: {shown(error, 160)}."
        ) from error
    if not callable(made):
        raise InputError(
            f'Reward "{shown(label)}" takes no images and returned a {type(made).__name__}: '
            f"{_EXPECTED}, or a function that makes one of these."
        )
    return made


def _factory_arguments(
    function: RewardFn, label: str, device: str | torch.device
) -> dict[str, Any] | None:
    """What a function that makes a reward is called with; None if it is a reward."""
    signature = _signature(function)
    if signature is None:
        return None
    parameters = list(signature.parameters.values())
    needed = [one.name for one in parameters if _is_needed(one)]
    arguments = {"device": device} if "device" in signature.parameters else {}
    positional = [one for one in parameters if one.kind in _POSITIONAL]
    open_ended = any(one.kind is inspect.Parameter.VAR_POSITIONAL for one in parameters)
    takes_two = open_ended or len(positional) >= 2
    by_device = bool(positional) and positional[0].name == "device"
    if takes_two and not by_device and not inspect.isclass(function):
        return None
    if set(needed) <= set(arguments):
        return arguments
    raise InputError(
        f'Reward "{shown(label)}" takes ({shown(", ".join(needed))}): {_EXPECTED}. One that makes '
        "a reward takes nothing, or a device."
    )


def _call_of(function: RewardFn, label: str) -> _Call:
    """How the arguments are handed over."""
    signature = _signature(function)
    if signature is None:  # some written in C do not say
        return lambda images, prompts: ((images, prompts), {})
    parameters = list(signature.parameters.values())
    positional = [one for one in parameters if one.kind in _POSITIONAL]
    open_ended = any(one.kind is inspect.Parameter.VAR_POSITIONAL for one in parameters)
    swapped = [one.name for one in positional[:2]] in (["prompts", "images"], ["prompt", "image"])
    needed = [one for one in positional[2:] if _is_needed(one)]
    alone = [one for one in parameters if one.kind is inspect.Parameter.KEYWORD_ONLY]
    needed_alone = [one.name for one in alone if _is_needed(one)]
    named = [one for one in positional[2:] + alone if "metadata" in one.name.lower()]
    third = needed[0] if needed else (named[0] if named else None)
    unknown = [one.name for one in needed[1:]]
    unknown += [name for name in needed_alone if third is None or name != third.name]
    if (len(positional) < 2 and not open_ended) or unknown:
        asks = ", ".join(str(one) for one in parameters)
        raise InputError(
            f'Reward "{shown(label)}" takes ({shown(asks)}): {_EXPECTED}. Give any other parameter '
            "a default."
        )
    by_place = third is not None and positional[2:3] == [third]

    def call(images: Any, prompts: list[str]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        words = (prompts, images) if swapped else (images, prompts)
        if third is None:
            return words, {}
        metadata = [dict(metadata_of(prompt)) for prompt in prompts]
        return ((*words, metadata), {}) if by_place else (words, {third.name: metadata})

    return call


def _is_needed(parameter: inspect.Parameter) -> bool:
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return parameter.default is parameter.empty and parameter.kind not in variable


def _signature(function: RewardFn) -> inspect.Signature | None:
    try:
        return inspect.signature(function)
    except (ValueError, TypeError):
        return None
