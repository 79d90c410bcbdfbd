"""`ActionSpec`: what the numbers of an action mean, saved with every dataset, policy and critic.

Actions cross from one component to another in the environment's units only: each component
normalises with its own spec. So a critic never sees actions scaled by someone else's statistics,
and what does not fit is refused with the dimension's name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from offline.documents import as_document
from offline.errors import InputError, SpecError, shown

Scale = Literal["bounds", "p01_p99", "mean_std", "none"]
Array = TypeVar("Array", Tensor, np.ndarray)
Numbers = tuple[float, ...]


@dataclass(frozen=True)
class ActionSpec:
    """Statistics and conventions of an action vector with A dimensions.

    All numbers are in the environment's units. `scale` says which of them map to [-1, 1]:

        bounds    2 (a - low) / (high - low) - 1
        p01_p99   2 (a - p01) / (p99 - p01) - 1
        mean_std  (a - mean) / std
        none      a

    Dimensions where `mask` is False pass through unchanged (Octo's convention for grippers).
    """

    low: Numbers
    high: Numbers
    """Bounds that the environment accepts."""
    mean: Numbers
    std: Numbers
    p01: Numbers
    p99: Numbers
    """Statistics of the data; 1st and 99th percentile."""
    mask: tuple[bool, ...]
    scale: Scale = "bounds"
    chunk: int = 1
    """Actions that are proposed, scored and executed together (H)."""
    names: tuple[str, ...] = ()
    """Of the dimensions; may be empty."""
    gripper: int | None = None
    """Index of the gripper's dimension."""
    gripper_open: float | None = None
    """The gripper's value that opens it, in the environment's units."""

    def __post_init__(self) -> None:
        size = len(self.low)
        for name in ("high", "mean", "std", "p01", "p99", "mask"):
            if len(getattr(self, name)) != size:
                raise SpecError(
                    f"ActionSpec.{name} has {len(getattr(self, name))} entries, low has {size}"
                )
        if self.names and len(self.names) != size:
            raise SpecError(f"ActionSpec.names has {len(self.names)} entries, low has {size}")
        if self.chunk < 1:
            raise SpecError(f"an action chunk has at least 1 action, not {self.chunk}")
        if self.gripper is not None and not -size <= self.gripper < size:
            raise SpecError(f"the gripper is dimension {self.gripper} of {size}")

    # -- making one

    @classmethod
    def from_bounds(
        cls, low: Sequence[float] | np.ndarray, high: Sequence[float] | np.ndarray, **rest: Any
    ) -> ActionSpec:
        """A spec without data: the statistics are those of a uniform distribution."""
        low_, high_ = np.asarray(low, float), np.asarray(high, float)
        centre, half = (low_ + high_) / 2, (high_ - low_) / 2
        return cls(
            low=_numbers(low_),
            high=_numbers(high_),
            mean=_numbers(centre),
            std=_numbers(half / np.sqrt(3)),
            p01=_numbers(centre - 0.98 * half),
            p99=_numbers(centre + 0.98 * half),
            mask=rest.pop("mask", (True,) * len(low_)),
            **rest,
        )

    def with_statistics(self, actions: np.ndarray) -> ActionSpec:
        """The same spec with mean, std, p01 and p99 of `actions` (N, A)."""
        low, high = np.percentile(actions, [1, 99], axis=0)
        return dataclasses.replace(
            self,
            mean=_numbers(actions.mean(0, dtype=np.float64)),
            std=_numbers(actions.std(0, dtype=np.float64)),
            p01=_numbers(low),
            p99=_numbers(high),
        )

    def with_chunk(self, chunk: int) -> ActionSpec:
        """The same spec for chunks of another length."""
        return dataclasses.replace(self, chunk=chunk)

    # -- units

    @property
    def dim(self) -> int:
        """A, the number of action dimensions."""
        return len(self.low)

    def normalize(self, raw: Array) -> Array:
        """Environment units (..., A) to normalised; unclipped, so that the way back is exact."""
        offset, factor = self._affine(raw)
        return (raw - offset) / factor

    def unnormalize(self, act: Array) -> Array:
        """Normalised (..., A) to environment units; nothing is clipped."""
        offset, factor = self._affine(act)
        return act * factor + offset

    def clip(self, raw: Array) -> Array:
        """Environment units (..., A), clipped to what the environment accepts."""
        if isinstance(raw, Tensor):
            return torch.minimum(
                torch.maximum(raw, raw.new_tensor(self.low)), raw.new_tensor(self.high)
            )
        return np.clip(raw, np.asarray(self.low, raw.dtype), np.asarray(self.high, raw.dtype))

    def _affine(self, like: Array) -> tuple[Any, Any]:
        if like.shape[-1] != self.dim:
            raise SpecError(
                f"an action has A={self.dim} dimensions here, received {like.shape[-1]}"
            )
        offset, factor = self._offset_factor()
        if isinstance(like, Tensor):
            return like.new_tensor(offset), like.new_tensor(factor)
        return offset.astype(like.dtype), factor.astype(like.dtype)

    def _offset_factor(self) -> tuple[np.ndarray, np.ndarray]:
        zero, one = np.zeros(self.dim), np.ones(self.dim)
        if self.scale == "none":
            return zero, one
        if self.scale == "mean_std":
            offset, factor = np.asarray(self.mean), np.asarray(self.std)
        else:
            ends = (self.low, self.high) if self.scale == "bounds" else (self.p01, self.p99)
            low, high = np.asarray(ends[0]), np.asarray(ends[1])
            offset, factor = (low + high) / 2, (high - low) / 2
        factor = np.where(factor < 1e-6, 1.0, factor)  # a constant dimension is only shifted
        mask = np.asarray(self.mask)
        return np.where(mask, offset, zero), np.where(mask, factor, one)

    # -- does it fit

    def describe(self, index: int) -> str:
        """A dimension as a reader would name it: 'dimension 3 (gripper)'."""
        name = self.names[index] if self.names else ""
        if not name and self.gripper is not None and index == self.gripper % self.dim:
            name = "gripper"
        return f"dimension {index} ({name})" if name else f"dimension {index}"

    def require_scorable(self, other: ActionSpec, *, critic: str = "the critic") -> None:
        """Check that proposals of a policy with spec `other` can be scored by a critic with `self`.

        Raises:
            SpecError: other dimensions, names or gripper convention; a chunk too short to score;
                or bounds and statistics that cannot be the same quantity. Names the dimension.
        """
        if other.dim != self.dim:
            hint = ""
            if other.dim == self.dim * self.chunk:
                hint = f": is it a chunk of {self.chunk} flattened to one action?"
            raise SpecError(
                f"the policy's actions have A={other.dim}, {critic} was trained with "
                f"A={self.dim}{hint}"
            )
        if other.chunk < self.chunk:
            raise SpecError(
                f"the policy proposes chunks of H={other.chunk}, {critic} was trained on "
                f"H={self.chunk}: train one of them with the other's --action-chunk"
            )
        for i in range(self.dim):
            if self.names and other.names and self.names[i] != other.names[i]:
                raise SpecError(
                    f'dimension {i} is "{other.names[i]}" for the policy, {critic} was trained '
                    f'with "{self.names[i]}" there'
                )
        self._require_same_gripper(other, critic)
        for i in range(self.dim):
            width = self.high[i] - self.low[i]
            ratio = (other.high[i] - other.low[i]) / max(width, 1e-9)
            shift = abs(self.low[i] + self.high[i] - other.low[i] - other.high[i]) / 2
            if not 0.5 < ratio < 2 or shift > 0.25 * width:
                raise SpecError(
                    f"{self.describe(i)}: the policy acts in [{other.low[i]:g}, "
                    f"{other.high[i]:g}], {critic} was trained on [{self.low[i]:g}, "
                    f"{self.high[i]:g}]: are these the statistics of another dataset?"
                )

    def _require_same_gripper(self, other: ActionSpec, critic: str) -> None:
        if self.gripper is None or other.gripper is None:
            return
        here, there = self.gripper % self.dim, other.gripper % self.dim
        if here != there:
            raise SpecError(
                f"the policy's gripper is dimension {there}, {critic}'s is dimension {here}"
            )
        if self.gripper_open is None or other.gripper_open is None:
            return
        if not np.isclose(self.gripper_open, other.gripper_open):
            raise SpecError(
                f"{self.describe(here)}: the policy opens at {other.gripper_open:g}, {critic} "
                f"was trained where {self.gripper_open:g} opens"
            )

    def require_in_range(
        self, raw: Array, *, what: str = "the policy", slack: float = 0.25
    ) -> None:
        """Check that actions (..., A) in environment units lie where the data's did.

        Args:
            raw: actions to be scored.
            what: who made them, for the message.
            slack: how far outside [low, high] is let pass, as a share of high - low; proposals
                are clipped to the bounds before they are executed, so a little is harmless.

        Raises:
            SpecError: names the first dimension outside, with the value.
        """
        flat = (
            raw.detach().reshape(-1, self.dim)
            if isinstance(raw, Tensor)
            else raw.reshape(-1, self.dim)
        )
        least, most = (
            np.asarray(flat.min(0).values if isinstance(flat, Tensor) else flat.min(0)),
            np.asarray(flat.max(0).values if isinstance(flat, Tensor) else flat.max(0)),
        )
        for i in range(self.dim):
            room = slack * (self.high[i] - self.low[i])
            worst = most[i] if most[i] - self.high[i] > self.low[i] - least[i] else least[i]
            if not (self.low[i] - room <= worst <= self.high[i] + room):
                raise SpecError(
                    f"{self.describe(i)}: {what} gave {worst:g}, the critic was trained on "
                    f"[{self.low[i]:g}, {self.high[i]:g}]: was the action un-normalised with the "
                    "statistics of its own policy?"
                )

    def require_same(self, other: ActionSpec, *, what: str = "the other") -> None:
        """Check that two specs normalise alike: same scale, mask and statistics.

        Raises:
            SpecError: names the first dimension that differs and both values.
        """
        if other.dim != self.dim:
            raise SpecError(f"A={self.dim} dimensions here, {what} has A={other.dim}")
        if other.scale != self.scale:
            raise SpecError(f'normalised by "{self.scale}" here, {what} by "{other.scale}"')
        mine, theirs = self._offset_factor(), other._offset_factor()
        for i in range(self.dim):
            here, there = [m[i] for m in mine], [t[i] for t in theirs]
            if not np.allclose(here, there, rtol=1e-4, atol=1e-6):
                raise SpecError(
                    f"{self.describe(i)}: normalised as (a - {here[0]:g}) / {here[1]:g} here, "
                    f"as (a - {there[0]:g}) / {there[1]:g} in {what}"
                )

    # -- JSON

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, for JSON."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_dict(cls, saved: Any, what: str = "an action spec") -> ActionSpec:
        """The spec that `to_dict` wrote.

        Args:
            saved: what JSON holds.
            what: what errors call it.

        Raises:
            SpecError: an entry is missing, unknown, of another type, or no number that actions can
                be normalised by.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(saved, dict):
            raise SpecError(f"{what} should be a JSON object, received {shown(saved)}")
        if wrong := set(saved) ^ known:
            raise SpecError(
                f"an ActionSpec has {sorted(known)}; these do not match: "
                f"{shown(', '.join(sorted(map(str, wrong))))}"
            )
        try:
            spec = as_document(saved, cls, what)
        except SpecError:
            raise
        except InputError as error:
            raise SpecError(str(error)) from error
        spec._require_numbers(what)
        return spec

    def _require_numbers(self, what: str) -> None:
        """Infinite bounds are no fault; then there may be no statistics."""
        for i, (low, high) in enumerate(zip(self.low, self.high, strict=True)):
            if not low <= high:
                raise SpecError(f"{what}: {self.describe(i)} has the bounds [{low:g}, {high:g}]")
            if np.isfinite([low, high]).all():
                said = [getattr(self, name)[i] for name in ("mean", "std", "p01", "p99")]
                if not np.isfinite(said).all() or said[1] < 0:
                    raise SpecError(
                        f"{what}: {self.describe(i)} has mean, std, p01 and p99 {shown(said)}"
                    )


def _numbers(values: Any) -> Numbers:
    return tuple(float(value) for value in values)
