"""Checks whether a policy's proposals differ enough to be ranked; else finds the likely cause."""

from __future__ import annotations

import torch
from torch import Tensor

from offline.types import Obs, Policy

WATCHED = 20  # decisions before a verdict on nearly identical proposals
IDENTICAL = 1e-6  # in standard deviations of the data
ALIKE = 0.02


class DiversityCheck:
    """Watches the spread of the first decisions' candidates, and reaches a verdict once."""

    def __init__(self) -> None:
        self.verdict: str | None = None
        self._decisions = self._rows = 0
        self._sum = self._most = 0.0

    def watch(
        self, spread: Tensor, count: int, base: Policy, obs: Obs, num_candidates: int
    ) -> str | None:
        """Look at one decision; the verdict, the moment that it is reached.

        Args:
            spread: (B,) standard deviation over the candidates, in units of the data's.
            count: K of this decision.
            base: is asked once more, with other seeds, to find out why all proposals are the same.
            obs: of this decision.
            num_candidates: K to name in the message.
        """
        if self._decisions >= WATCHED or self.verdict or count < 2:
            return None
        self._decisions += 1
        self._rows += len(spread)
        self._sum += float(spread.sum())
        self._most = max(self._most, float(spread.max()))
        if self._decisions == 3 and self._most < IDENTICAL:
            self.verdict = f"all {num_candidates} proposals are identical: {_why(base, obs)}"
        elif self._decisions == WATCHED and self._sum / self._rows < ALIKE:
            self.verdict = (
                f"the {num_candidates} proposals are nearly alike (they vary by "
                f"{self._sum / self._rows:.3f} of the data's standard deviation): a low-noise "
                "decoding (robomimic's low_noise_eval), a temperature near 0, or a policy that "
                "has collapsed; there is little to choose from"
            )
        return self.verdict


def _why(base: Policy, obs: Obs) -> str:
    """Ask twice with different seeds: does anything depend on them?"""
    # own generators: the run's stream must not depend on whether anybody looked
    first, second = (base.sample(obs, 2, torch.Generator().manual_seed(s))[:, 0] for s in (1, 2))
    if torch.allclose(first, second):
        return (
            "a deterministic head (MSE or L1), low-noise decoding (robomimic's low_noise_eval), "
            "or a server that ignores seeds; steering has nothing to choose from. "
            "--candidate-noise 0.1 of `genpol steer` and `genpol serve` proposes around the one "
            "chunk, and the edits of `genpol train --agent expo` learn how to move it"
        )
    return (
        "they differ from call to call but not within one, so the policy draws one noise for the "
        "whole batch (a head that ignores sample_shape): ask for one proposal at a time"
    )


def spread(act: Tensor, scale: Tensor) -> Tensor:
    """(B, K, H, A) and scale (A,) -> (B,): standard deviation over K, mean over H and A."""
    return (act.std(1, correction=0) * scale).mean((1, 2))
