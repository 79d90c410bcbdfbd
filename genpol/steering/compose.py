"""Several values composed into one, with weights chosen at deployment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from genpol.steering.action_units import Units
from offline.errors import InputError
from offline.types import Critic, Obs


@dataclass(frozen=True)
class SideBySide:
    """What each of several critics makes of the same observations."""

    parts: tuple[Tensor, ...]
    """(B, F_i) each."""

    @property
    def device(self) -> torch.device:
        return self.parts[0].device


class Composed:
    """Q(s, a) = sum_i w_i Q_i(s, a), itself a `Critic`.

    Every critic sees actions normalised by its own spec; they meet in the environment's units. The
    ensemble is every combination of the critics' heads, so that its minimum is the weighted sum of
    the minima (of the maxima, for negative weights) and its disagreement includes all of theirs.

    Args:
        critics: at least one; they score chunks of the same length.
        weights: one each; negative to avoid what a critic values.
        standardize: first bring each critic's scores to mean 0 and standard deviation 1 over the
            candidates of a row (by the mean over its heads), so that weights compare importance
            rather than units. Scores then cannot be compared from one state to the next.

    Raises:
        InputError: no critics, other chunk lengths, or not one finite weight each.
        SpecError: the critics were not trained on the same actions; names the dimension.
    """

    def __init__(
        self, critics: Sequence[Critic[Tensor]], weights: Sequence[float], standardize: bool = True
    ) -> None:
        if not critics or len(critics) != len(weights):
            raise InputError(
                f"expected one weight for each of {len(critics)} critics, received {len(weights)}"
            )
        if not torch.isfinite(torch.tensor(weights, dtype=torch.float64)).all():
            raise InputError(f"expected finite weights, received {list(weights)}")
        self.critics, self.weights = list(critics), [float(w) for w in weights]
        self.standardize = standardize
        self.spec = critics[0].spec
        for i, critic in enumerate(critics):
            if critic.spec.chunk != self.spec.chunk:
                raise InputError(
                    f"critic {i} scores chunks of H={critic.spec.chunk}, critic 0 of "
                    f"H={self.spec.chunk}: train them with the same --action-chunk"
                )
            critic.spec.require_scorable(self.spec, critic=f"critic {i}")
        self._units = [Units(self.spec, critic.spec) for critic in critics]

    def encode(self, obs: Obs) -> SideBySide:
        """The critics' features of B observations, each critic's by itself."""
        return SideBySide(tuple(critic.encode(obs) for critic in self.critics))

    def score(self, features: SideBySide, act: Tensor) -> Tensor:
        """Features of B observations and (B, K, H, A) -> (E_1 E_2 ..., B, K)."""
        total = features.parts[0].new_zeros(1, 1, 1)
        for critic, weight, units, part in zip(
            self.critics, self.weights, self._units, features.parts, strict=True
        ):
            q = critic.score(part, units.convert(act, act.device))
            if self.standardize:
                mean = q.mean(0)
                scale = mean.std(-1, correction=0, keepdim=True).clamp(min=1e-6)
                q = (q - mean.mean(-1, keepdim=True)) / scale
            total = (total[:, None] + weight * q).flatten(0, 1)  # all combinations of heads
        return total

    def __call__(self, obs: Obs, act: Tensor) -> Tensor:
        """(B, K, H, A), normalised by `spec` -> (E, B, K)."""
        return self.score(self.encode(obs), act)
