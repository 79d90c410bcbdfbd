"""A weighted sum of rewards whose every term is checked: RewardError names term and prompt.

    R(image, prompt) = sum_i weight_i * term_i(image, prompt)

Shapes: B images, images (B, 3, H, W) float in [0, 1], every reward (B,).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusion.errors import InputError, RewardError, shown

RewardFn = Callable[[Tensor, list[str]], Tensor]

_RETRY_SECONDS = 10.0  # how long to look for the image a failing reward cannot take


class Reward:
    """A weighted sum of reward functions that are checked at every call; itself a reward.

    `terms` are (weight, label, function); labels are what `components` and error messages say.
    Functions may return tensors, arrays or lists of B numbers.
    """

    def __init__(self, expression: str, terms: Sequence[tuple[float, str, RewardFn]]) -> None:
        self.expression = expression
        self._terms: dict[str, tuple[float, RewardFn]] = {}
        for weight, label, function in terms:
            unique, count = label, 1
            while unique in self._terms:
                count += 1
                unique = f"{label} ({count})"
            self._terms[unique] = (weight, function)

    @property
    def labels(self) -> list[str]:
        return list(self._terms)

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """The weighted sum: (B,) float32 on the CPU. Raises RewardError."""
        return self.combine(self.components(images, prompts))

    def components(self, images: Tensor, prompts: list[str]) -> dict[str, Tensor]:
        """Each term's raw value, before its weight: label -> (B,) float32 on the CPU."""
        if images.ndim != 4 or images.shape[1] != 3 or len(images) != len(prompts):
            raise ValueError(
                f"A reward takes images (B, 3, H, W) and B prompts; received "
                f"{tuple(images.shape)} and {len(prompts)} prompts."
            )
        images = images.detach().float()
        # A blank or broken picture can score well, so a diverged pipeline must not go unnoticed.
        broken = ~torch.isfinite(images).flatten(1).all(dim=1)
        if broken.any():
            raise RewardError(
                f"The image for {_prompt(prompts, _first(broken))} holds NaN or inf: the pipeline "
                f"has diverged, or its dtype overflows. Try a lower learning rate or float32."
            )
        return {
            label: checked(label, function, images, prompts)
            for label, (_, function) in self._terms.items()
        }

    def combine(self, components: dict[str, Tensor]) -> Tensor:
        """The weighted sum of what `components` returned: (B,) float32."""
        parts = [weight * components[label].double() for label, (weight, _) in self._terms.items()]
        total = torch.stack(parts).sum(dim=0).float()
        if not torch.isfinite(total).all():
            name = shown(self.expression)
            raise RewardError(f'Reward "{name}" overflows float32: use smaller weights.')
        return total


@torch.no_grad()
def checked(label: str, function: RewardFn, images: Tensor, prompts: list[str]) -> Tensor:
    """Call one reward and check what it returns: (B,) float32, finite, on the CPU.

    Raises RewardError that names the reward and the first offending prompt; an InputError from the
    reward itself (a server that is down) already says what to do and passes unchanged.
    """
    if not prompts:
        return torch.zeros(0)
    label = shown(label)
    try:
        value = function(images, prompts)
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # a reward that leaves does not end the run quietly
        culprit, where = _find_culprit(function, images, prompts, error)
        raise RewardError(f'Reward "{label}" raised {_said(culprit)} {where}.') from culprit
    exact = _to_tensor(label, value, len(prompts))
    values = exact.to(torch.float32)
    bad = ~torch.isfinite(values)
    if bad.any():
        index = _first(bad)
        more = f" (and {int(bad.sum()) - 1} more)" if bad.sum() > 1 else ""
        raise RewardError(
            f'Reward "{label}" returned {exact[index].item()} for {_prompt(prompts, index)}'
            f"{more}: expected finite numbers, at most 3.4e38 (float32)."
        )
    return values


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
