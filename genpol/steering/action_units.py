"""Converts a policy's normalised actions to a critic's, through the environment's units."""

from __future__ import annotations

import torch
from torch import Tensor

from offline.draws import moved
from offline.spec import ActionSpec

# Mean distance outside the critic's bounds that is let pass, as a share of their width.
SLACK = 0.25


class Units:
    """What `critic.normalize(policy.clip(policy.unnormalize(act)))` computes, but fast.

    Both specs are affine in each dimension, so clipping and conversion are one clamp and one
    multiply-add; the latter is left out where the specs normalise alike.
    """

    def __init__(self, policy: ActionSpec, critic: ActionSpec) -> None:
        self.policy, self.critic = policy, critic
        zero = torch.zeros(policy.dim, dtype=torch.float64)
        raw_0, raw_1 = policy.unnormalize(zero), policy.unnormalize(zero + 1)
        shift = critic.normalize(raw_0)
        factor = critic.normalize(raw_1) - shift
        self.same = torch.allclose(factor, zero + 1, rtol=1e-6) and torch.allclose(
            shift, zero, atol=1e-6
        )

        def inside(low_high: tuple[tuple[float, ...], ...]) -> Tensor:
            return policy.normalize(torch.tensor(low_high, dtype=torch.float64))

        data = inside((critic.low, critic.high))
        bounds = torch.tensor((critic.low, critic.high), dtype=torch.float64)
        deviation = torch.tensor(critic.std, dtype=torch.float64)
        deviation = torch.maximum(deviation, 0.01 * (bounds[1] - bounds[0]))
        # one (8, A) tensor, so that moving to another device is one copy
        self._rows = torch.stack(
            [
                *inside((policy.low, policy.high)),
                *data,
                SLACK * (data[1] - data[0]),
                shift,
                factor,
                (raw_1 - raw_0) / deviation,
            ]
        ).float()
        # where no mean can be out of range, whatever the dimension
        self._surely = (
            float((data[0] - SLACK * (data[1] - data[0])).max()),
            float((data[1] + SLACK * (data[1] - data[0])).min()),
        )
        self._outside, self._seen = torch.zeros(policy.dim), 0
        self._unpack()

    def _unpack(self) -> None:
        self._low, self._high, self._data_low, self._data_high = self._rows[:4]
        self._room, self._shift, self._factor, self._per_std = self._rows[4:]

    def _on(self, device: torch.device) -> None:
        if self._rows.device != device:
            self._rows = moved(self._rows, device)
            self._unpack()

    def clip(self, act: Tensor) -> Tensor:
        """Clip (..., A), normalised by the policy's spec, to what the environment accepts."""
        self._on(act.device)
        return torch.clamp(act.float(), self._low, self._high)

    def convert(self, act: Tensor, device: torch.device) -> Tensor:
        """(..., A) normalised by the policy's spec -> by the critic's, on the critic's device."""
        if not self.same:
            self._on(act.device)
            act = torch.addcmul(self._shift, act, self._factor)
        return moved(act, device)

    def per_std(self, device: torch.device) -> Tensor:
        """(A,) standard deviations of the data in one unit of the policy's normalised actions."""
        self._on(device)
        return self._per_std

    def require_in_range(self, act: Tensor) -> None:
        """Check that unclipped proposals (B, K, H, A) lie where the critic's data did.

        The mean over all proposals so far is checked, not the farthest: tails may well leave the
        bounds and are clipped, and in a state that no demonstration visited a whole distribution
        may lie outside; but statistics of another dataset put most proposals there, always.

        Raises:
            SpecError: names the dimension.
        """
        self._seen += len(act)
        least, most = torch.aminmax(act)
        if not act.is_cpu:
            least, most = torch.stack((least, most)).cpu()  # to wait once
        if float(least) >= self._surely[0] and float(most) <= self._surely[1]:
            return  # the usual case, in one pass
        self._on(act.device)
        outside = (act - torch.clamp(act, self._data_low, self._data_high)).abs_()
        self._outside = self._outside.to(act.device) + outside.mean((1, 2)).sum(0)
        if bool((self._outside > self._seen * self._room).any()):
            self.critic.require_in_range(self.policy.unnormalize(act.float()).cpu(), slack=SLACK)
