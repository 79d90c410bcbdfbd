"""Chunks that overlap in time: a decision that is made while the last chunk still runs.

A plan is the chunk of P actions that was chosen, the first of them for the time of its observation.
Of each plan the robot executes e actions, then it sends the next observation; the plan's next d
actions run while the next plan is computed. So the first d actions of the next plan are given:

    plan     0 1 2 3 4 5 | 6 7                      P = 8, e = 6, d = 2
    next                   6 7 | 0' 1' 2' 3' ...    the proposals' own first two are left out

All proposals begin with the d actions that are running, before they are edited and scored. So the
critic scores what the robot will have done from the observation on, which is the action its value
is of, and what is executed is what was scored. A policy that knows nothing of it is a black box:
its proposals are drawn from the observation alone.

With a temporal ensemble (Zhao et al. 2023, ACT, arXiv 2304.13705) the other actions of a proposal
are averaged with those that earlier plans had for the same times, weighted exp(-m i), i = 0 being
the oldest. Averages are made first and scored afterwards. Whoever averages what was chosen executes
what nobody scored.

Shape legend: B rows, n proposals, P plan, L the policy's chunk, A action dimension.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from genpol.steering.steered import Edit, Edits, Steered
from offline.errors import InputError
from offline.types import Obs, Policy, clips


@dataclass(frozen=True)
class Overlap:
    """How the plans follow each other.

    Raises:
        InputError: a negative number, or no action between two decisions.
    """

    plan: int
    """Actions that are scored (P)."""
    execute: int
    """Of them are executed before the next observation (e)."""
    lookahead: int = 0
    """Of them run while the next plan is computed (d)."""
    ensemble: float | None = None
    """m of the temporal ensemble; None averages nothing."""

    def __post_init__(self) -> None:
        if self.execute < 1 or self.lookahead < 0:
            raise InputError(
                f"expected at least 1 action between two decisions and a lookahead of at least 0, "
                f"received {self.execute} and {self.lookahead}"
            )
        if self.answer > self.plan:
            raise InputError(
                f"{self.execute} actions executed and {self.lookahead} of lookahead are "
                f"{self.answer}, but chunks of {self.plan} are scored"
            )

    @property
    def answer(self) -> int:
        """Actions that the robot needs: the executed ones, and those that run meanwhile."""
        return self.execute + self.lookahead


class Overlapping:
    """A policy whose proposals begin with what is running already; itself a `Policy`.

    `commit` is told the plan. What differs from the schedule is told to `go_on`.

    Args:
        base: proposes chunks of L >= P actions.
        overlap: how the plans follow each other.

    Raises:
        InputError: L < P.
    """

    def __init__(self, base: Policy, overlap: Overlap) -> None:
        if base.spec.chunk < overlap.plan:
            raise InputError(
                f"the policy proposes {base.spec.chunk} actions, {overlap.plan} are scored"
            )
        self.base, self.overlap, self.spec = base, overlap, base.spec
        self.running = 0
        """How many of the next plan's actions are given."""
        self._rest: Tensor | None = None  # (B, R, A) of the last plan, from the next one's time on
        self._averaged = torch.zeros(0)  # (R,) how many plans each of them is the average of
        self._planned = torch.ones(overlap.plan)  # (P,) the same of the plan that is proposed

    @property
    def clips(self) -> bool:
        """See `offline.types.clips`."""
        return clips(self.base)

    # -- Policy

    def reset(self) -> None:
        self.base.reset()
        self.give_up()

    def sample(self, obs: Obs, n: int, generator: Generator | None) -> Tensor:
        """(B, n, L, A): the base policy's, from the running actions on."""
        return self._joined(self.base.sample(obs, n, generator))

    def commit(self, act: Tensor) -> None:
        """The plan (B, P, A): what is executed of it, and what runs on, is as scheduled."""
        self.go_on(act, act[:, : self.overlap.execute])

    def keep(self, rows: Tensor) -> None:
        self.base.keep(rows)
        if self._rest is not None:
            self._rest = self._rest[rows.to(self._rest.device)]

    # -- what was planned

    def go_on(self, plan: Tensor | None, done: Tensor, running: int | None = None) -> None:
        """What became of the last plan by the time of the next observation.

        Args:
            plan: (B, P, A); None where there is none, or where it was given up.
            done: (B, H', A) what was really executed since its observation.
            running: how many of its next actions the robot executes before it begins the next
                plan; default the lookahead, or all that the robot has left.
        """
        if done.shape[1]:
            self.base.commit(done)
        if plan is None or plan.shape[1] <= done.shape[1]:
            self.give_up()
            return
        first = done.shape[1]
        self._rest, self._averaged = plan[:, first:], self._planned[first : plan.shape[1]]
        wanted = self.overlap.lookahead if running is None else running
        self.running = max(0, min(wanted, self.overlap.answer - first, self._rest.shape[1]))

    def give_up(self) -> None:
        """Nothing of the last plan is running, and no proposal is averaged with it."""
        self._rest, self.running = None, 0
        self._planned = torch.ones(self.overlap.plan)

    def hold(self, act: Tensor) -> Tensor:
        """(B, n, L, A) with the running actions put back where something has moved them."""
        if self._rest is None or not self.running:
            return act
        given = self._given(act)[:, :, : self.running]
        return torch.cat((given.expand(-1, act.shape[1], -1, -1), act[:, :, self.running :]), 2)

    def _given(self, act: Tensor) -> Tensor:
        """(B, 1, R, A) what the last plan has for the times of these proposals."""
        assert self._rest is not None
        if len(self._rest) != len(act):
            raise InputError(
                f"{len(act)} episodes go on where {len(self._rest)} plans run: `keep` or `reset` "
                "was not called"
            )
        return self._rest[:, None, : act.shape[2]].to(act.device, act.dtype)

    def _joined(self, act: Tensor) -> Tensor:
        self._planned = torch.ones(self.overlap.plan)
        if self._rest is None:
            return act
        m, given = self.overlap.ensemble, self._given(act)
        shared = given.shape[2]
        counts = self._averaged[:shared].clone()
        if m is not None:
            # The newest one's share is exp(-m n) / sum_{i <= n} exp(-m i), without overflow.
            total = torch.exp(m * torch.arange(int(counts.max()) + 1)).cumsum(0)
            share = (1 / total[counts.long()]).to(act.device, act.dtype)[:, None]
            mean = torch.lerp(given.expand(-1, act.shape[1], -1, -1), act[:, :, :shared], share)
            act = torch.cat((mean, act[:, :, shared:]), 2)
            counts[self.running :] += 1
            self._planned[: len(counts)] = counts[: self.overlap.plan]
        return self.hold(act)


class Held:
    """An edit that leaves the running actions as they are: they cannot be changed any more."""

    def __init__(self, edit: Edit[Any], overlapping: Overlapping) -> None:
        self.edit, self.overlapping = edit, overlapping

    def __call__(self, features: Any, act: Tensor, generator: Generator | None) -> Edits:
        found = self.edit(features, act, generator)
        return Edits(self.overlapping.hold(found.act), found.log_prob)


def overlapping(policy: Policy, overlap: Overlap | None) -> Policy:
    """The policy with plans that overlap so; of a steered one a copy, whose proposals do.

    Raises:
        InputError: the policy's chunks are too short.
    """
    if overlap is None:
        return policy
    if not isinstance(policy, Steered):
        return Overlapping(policy, overlap)
    steered, base = copy.copy(policy), Overlapping(policy.base, overlap)
    steered.base = base
    if policy.edit is not None:
        steered.edit = Held(policy.edit, base)
    return steered
