"""Calls one reward and checks what it returns: RewardError names the reward and the prompt.

A reward returns B numbers as a tensor, array or list, or a pair (scores, details). `details` is a
dict of further numbers, one for each image or one for all, which are logged; what is not a number
is left out. The scores of a pair may be a dict with the total under "avg"; its other entries are
details as well.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusion.errors import InputError, RewardError, shown
from diffusion.rewards.callables import RewardFn

MOST_DETAILS = 32  # of one reward; the rest is not logged
_NAME = 60  # characters of a detail's name
_RETRY_SECONDS = 10.0  # how long to look for the image a failing reward cannot take


def checked(label: str, function: RewardFn, images: Tensor, prompts: list[str]) -> Tensor:
    """Call one reward and check its scores: (B,) float32, finite, on the CPU. See `judged`."""
    return judged(label, function, images, prompts)[0]


@torch.no_grad()
def judged(
    label: str, function: RewardFn, images: Tensor, prompts: list[str], *, alone: bool = True
) -> tuple[Tensor, dict[str, Tensor]]:
    """Call one reward and check what it returns.

    `alone` says whether it can be called with each image by itself, to find which one it cannot
    take.

    Returns:
        Its scores, (B,) float32, finite, on the CPU; and its details, each (B,) float64, NaN where
        an image has none.

    Raises RewardError that names the reward and the first offending prompt; an InputError from the
    reward itself (a server that is down) already says what to do and passes unchanged.
    """
    if not prompts:
        return torch.zeros(0), {}
    label = shown(label)
    try:
        value = function(images, prompts)
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # a reward that leaves does not end the run quietly
        culprit, where = (
            _find_culprit(function, images, prompts, error)
            if alone
            else (error, f"on all images of {_prompt(prompts, 0)}")
        )
        raise RewardError(f'Reward "{label}" raised {_said(culprit)} {where}.') from culprit
    scores, details = _parted(value, len(prompts))
    exact = _to_tensor(label, scores, len(prompts))
    values = exact.to(torch.float32)
    bad = ~torch.isfinite(values)
    if bad.any():
        index = _first(bad)
        more = f" (and {int(bad.sum()) - 1} more)" if bad.sum() > 1 else ""
        raise RewardError(
            f'Reward "{label}" returned {exact[index].item()} for {_prompt(prompts, index)}'
            f"{more}: expected finite numbers, at most 3.4e38 (float32)."
        )
    return values, details


def require_finite_images(images: Tensor, prompts: list[str]) -> None:
    """Raise RewardError for the first image that holds NaN or infinity.

    A blank or broken picture can score well, so a diverged pipeline must not go unnoticed.
    """
    broken = ~torch.isfinite(images).flatten(1).all(dim=1)
    if broken.any():
        raise RewardError(
            f"The image for {_prompt(prompts, _first(broken))} holds NaN or inf: the pipeline "
            f"has diverged, or its dtype overflows. Try a lower learning rate or float32."
        )


def _parted(value: Any, count: int) -> tuple[Any, dict[str, Tensor]]:
    """Scores and details of what a reward returned."""
    if not (isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], Mapping)):
        return value, {}
    scores, details = value
    entries = dict(details)
    if isinstance(scores, Mapping) and "avg" in scores:
        entries = {key: one for key, one in scores.items() if key != "avg"} | entries
        scores = scores["avg"]
    found: dict[str, Tensor] = {}
    for key, one in entries.items():
        if len(found) == MOST_DETAILS:
            break
        numbers = _numbers(one, count)
        if numbers is not None:
            found[shown(str(key), _NAME)] = numbers
    return scores, found


def _numbers(value: Any, count: int) -> Tensor | None:
    """One finite number for each image as (count,) float64, NaN for another; None without any."""
    try:
        array = value.detach().cpu().double().numpy() if isinstance(value, Tensor) else value
        array = np.asarray(array)
        if array.dtype.kind not in "biuf" or array.shape not in ((), (1,), (count,)):
            return None
        found = torch.from_numpy(np.broadcast_to(array.astype(np.float64), (count,)).copy())
    except Exception:  # an object of the reward's own may raise anything here
        return None
    return torch.where(found.isfinite(), found, torch.nan)


def _find_culprit(
    function: RewardFn, images: Tensor, prompts: list[str], error: BaseException
) -> tuple[BaseException, str]:
    """Retry one image at a time: the first one's error and prompt, or why there is none."""
    if len(prompts) == 1:
        return error, f"for {_prompt(prompts, 0)}"
    deadline = time.monotonic() + _RETRY_SECONDS
    for index, prompt in enumerate(prompts):
        if time.monotonic() > deadline:
            return error, f"on a batch that begins with {_prompt(prompts, 0)}"
        try:
            function(images[index : index + 1], [prompt])
        except (Exception, SystemExit) as single:
            return single, f"for {_prompt(prompts, index)}"
    return error, (
        f"on a batch that begins with {_prompt(prompts, 0)}, but on none of its images alone: "
        f"is the batch too large, or does it assume a batch size?"
    )


def _to_tensor(label: str, value: Any, count: int) -> Tensor:
    """Tensor, array or list of numbers -> (count,) float64 on the CPU."""
    expected = f"expected a tensor of shape ({count},), one number per image"
    try:
        tensor = value
        if isinstance(value, (list, tuple)):
            tensor = [v.item() if isinstance(v, Tensor) and v.numel() == 1 else v for v in value]
        if not isinstance(tensor, Tensor):
            array = np.array(tensor)  # text, complex numbers and None would become floats
            odd = (str, bytes, complex, type(None))
            objects = array.flat if array.dtype.kind == "O" else ()
            if array.dtype.kind not in "biufO" or any(isinstance(v, odd) for v in objects):
                raise TypeError("no real numbers")
            tensor = torch.from_numpy(array.astype(np.float64))
        if tensor.is_complex():
            raise TypeError("complex numbers")
        if tensor.shape == (count,):  # anything else may be huge, and is only named
            tensor = tensor.detach().to("cpu", torch.float64)
    except Exception as error:  # an object of the reward's own may raise anything here
        inside = ""
        if isinstance(value, (list, tuple)):
            inside = f" of {shown(', '.join(sorted({type(v).__name__ for v in value})))}"
        raise RewardError(
            f'Reward "{label}" returned a {shown(type(value).__name__)}{inside}: {expected}.'
        ) from error
    if tensor.shape != (count,):
        shape = shown(str(tuple(tensor.shape)))
        raise RewardError(f'Reward "{label}" returned shape {shape}: {expected}.')
    return tensor


def _first(mask: Tensor) -> int:
    return int(mask.nonzero()[0, 0])


def _prompt(prompts: list[str], index: int) -> str:
    """Names a prompt on one line, at most about 120 characters."""
    text = prompts[index]
    shown = json.dumps(text if len(text) <= 120 else text[:117] + "...", ensure_ascii=False)
    return f"prompt {index + 1} of {len(prompts)}, {shown}"


def _said(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"SystemExit ({shown(str(error.code))})"
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
