"""Several rewards as one: their weighted sum, or what an expression makes of them.

    R(image, prompt) = sum_i weight_i * term_i(image, prompt)

`judge` calls any reward and returns what training and evaluations need of it. With
combine="normalised", what is trained on is the same expression of the rewards after each was
standardised within its prompt's images, so that the scale of none decides; with "raw", it is the
expression of the rewards as they are. Evaluations are always raw.

Shapes: B images, images (B, 3, H, W) float in [0, 1], every reward (B,), group (B,) whole numbers
that are equal for the images of one prompt. The images of a group stand next to one another.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from diffusion.errors import RewardError, shown
from diffusion.rewards.callables import Adapted, RewardFn, adapt
from diffusion.rewards.checks import checked, judged, require_finite_images
from diffusion.rewards.ensembles import standardised, total
from diffusion.rewards.expression import Part, Term

__all__ = ["Combine", "Judgement", "Reward", "RewardFn", "as_reward", "checked", "judge"]

Combine = Literal["raw", "normalised"]


@dataclass(frozen=True)
class Judgement:
    """What a reward says of B images.

    Attributes:
        total: (B,) float32, what is trained on.
        raw: (B,) float32, the expression of the rewards as they are.
        parts: by the name they are logged under, (B,) each: every reward of an expression of
            several, before its weight; and the details that a reward returned, NaN where an image
            has none.
    """

    total: Tensor
    raw: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)

    def means(self) -> dict[str, float]:
        """Mean of every part over the images that have it, as "reward/NAME"."""
        known = {name: values[~values.isnan()].double() for name, values in self.parts.items()}
        return {f"reward/{name}": float(one.mean()) for name, one in known.items() if len(one)}

    def columns(self) -> dict[str, Tensor]:
        """Every part that all images have, as "reward/NAME"."""
        whole = {name: one for name, one in self.parts.items() if not one.isnan().any()}
        return {f"reward/{name}": one.float() for name, one in whole.items()}


def judge(
    reward: RewardFn, images: Tensor, prompts: list[str], group: Tensor | None = None
) -> Judgement:
    """What any reward says of images; a plain function has a total only. Raises RewardError."""
    if isinstance(reward, Reward):
        return reward.judge(images, prompts, group)
    values = reward(images, prompts)
    return Judgement(values, values)


def as_reward(
    function: RewardFn, name: str, *, device: str | torch.device = "cpu", combine: Combine = "raw"
) -> Reward:
    """Any function as a `Reward` that goes by `name`; a `Reward` stays what it is.

    `device` is given to a function that makes the reward and asks for one.
    Raises InputError where it cannot be called as a reward.
    """
    if not isinstance(function, Reward):
        adapted = adapt(function, name, device=device)
        return Reward(name, [(1.0, name, adapted)], combine=combine)
    if combine == "raw" or function.normalised:
        return function
    normalised = copy(function)
    normalised.normalised = True
    return normalised


class Reward:
    """A weighted sum of reward functions that are checked at every call; itself a reward.

    `terms` are (weight, label, function); labels are what `components` and error messages say.
    Functions have any form that `callables.py` lists. With `parts`, the value is theirs instead of
    the weighted sum, and `label_of` gives the label of a reward that they name.
    """

    def __init__(
        self,
        expression: str,
        terms: Sequence[tuple[float, str, RewardFn]],
        *,
        combine: Combine = "raw",
        parts: Sequence[Part] | None = None,
        label_of: Callable[[Term], str] = lambda term: term.name,
    ) -> None:
        self.expression, self.normalised = expression, combine == "normalised"
        self._functions: dict[str, Adapted] = {}
        self.around: Callable[[], AbstractContextManager[None]] = nullcontext
        """The context of every call, in which networks are where they compute."""
        own: list[Part] = []
        for weight, label, function in terms:
            unique = _unique(label, self._functions)
            self._functions[unique] = adapt(function, label)
            own.append(Term(weight, unique))
        self._parts, self._label_of = own, (lambda term: term.name)
        if parts is not None:
            self._parts, self._label_of = list(parts), label_of
        # Where there is but one reward as it is, its values are the total's.
        only = self._parts[0]
        self._bare = len(self._parts) == 1 and isinstance(only, Term) and only.weight == 1
        self._logged: dict[str, str] = {}
        for label in self._functions:
            self._logged[label] = _unique(_loggable(label), set(self._logged.values()))

    def moving(self, around: Callable[[], AbstractContextManager[None]]) -> Reward:
        """The same reward, whose calls are within `around()`."""
        other = copy(self)
        other.around = around
        return other

    @property
    def labels(self) -> list[str]:
        return list(self._functions)

    @property
    def whole(self) -> bool:
        """Whether it has to see all images of a prompt together."""
        return self.normalised or any(one.group for one in self._functions.values())

    def __call__(self, images: Tensor, prompts: list[str], group: Tensor | None = None) -> Tensor:
        """What is trained on: (B,) float32 on the CPU; without `group` it is raw.

        Raises RewardError.
        """
        return self.judge(images, prompts, group).total

    def judge(self, images: Tensor, prompts: list[str], group: Tensor | None = None) -> Judgement:
        """Total, raw total, terms and details. Raises RewardError.

        Without `group`, neighbours with the same prompt are a group, and the total is raw.
        """
        values, details = self._ask(images, prompts, group)
        raw = self.combine(values)
        trained = raw
        if self.normalised and group is not None:
            group = group.cpu()
            trained = self.combine({k: standardised(one, group) for k, one in values.items()})
        logged = {} if self._bare else {self._logged[k]: one for k, one in values.items()}
        for label, found in details.items():
            logged |= {f"{self._logged[label]}/{key}": one for key, one in found.items()}
        return Judgement(trained, raw, logged)

    def components(self, images: Tensor, prompts: list[str]) -> dict[str, Tensor]:
        """Each reward's raw value, before its weight: label -> (B,) float32 on the CPU."""
        return self._ask(images, prompts, None)[0]

    def combine(self, components: Mapping[str, Tensor]) -> Tensor:
        """The value of the expression for what `components` returned: (B,) float32."""
        value = total(self._parts, lambda term: components[self._label_of(term)].double()).float()
        if not torch.isfinite(value).all():
            name = shown(self.expression)
            raise RewardError(f'Reward "{name}" overflows float32: use smaller weights.')
        return value

    def _ask(
        self, images: Tensor, prompts: list[str], group: Tensor | None
    ) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
        """Scores and details of every reward, each asked once."""
        if images.ndim != 4 or images.shape[1] != 3 or len(images) != len(prompts):
            raise ValueError(
                f"A reward takes images (B, 3, H, W) and B prompts; received "
                f"{tuple(images.shape)} and {len(prompts)} prompts."
            )
        if group is not None and group.shape != (len(prompts),):
            raise ValueError(f"group {tuple(group.shape)} for {len(prompts)} images")
        images = images.detach().float()
        require_finite_images(images, prompts)
        scores: dict[str, Tensor] = {}
        details: dict[str, dict[str, Tensor]] = {}
        with self.around():
            for label, function in self._functions.items():
                if function.group:
                    found = _by_group(label, function, images, prompts, group)
                else:
                    found = judged(label, function, images, prompts)
                scores[label], details[label] = found
        return scores, details


def _by_group(
    label: str, function: Adapted, images: Tensor, prompts: list[str], group: Tensor | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Scores and details of a reward that is called once for each group."""
    ids: list[object] = list(prompts) if group is None else group.tolist()
    starts = [i for i in range(len(ids)) if i == 0 or ids[i] != ids[i - 1]]
    scores, details = torch.zeros(len(ids)), dict[str, Tensor]()
    for start, stop in zip(starts, [*starts[1:], len(ids)], strict=True):
        rows = slice(start, stop)
        scores[rows], found = judged(label, function, images[rows], prompts[rows], alone=False)
        for key, values in found.items():
            if key not in details:
                details[key] = torch.full((len(ids),), torch.nan, dtype=torch.float64)
            details[key][rows] = values
    return scores, details


def _unique(name: str, taken: Mapping[str, object] | set[str]) -> str:
    unique, count = name, 1
    while unique in taken:
        count += 1
        unique = f"{name} ({count})"
    return unique


def _loggable(label: str) -> str:
    """A label as part of a metric's name: of an address, neither who asks nor what with."""
    return re.sub(r"(https?://)(?:[^/?#]*@)?([^?#]*)[^\s]*", r"\1\2", label)
