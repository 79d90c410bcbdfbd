"""Value-guided policy steering: propose K, maybe edit, score, select, and execute what was scored.

Nakamoto et al. 2024 (V-GPS, arXiv 2410.13816): a frozen policy of any kind proposes a_1..a_K, a
Q-function learnt offline picks a_k with probability softmax(Q(s, a_k) / temperature). The policy is
a black box. `Steered(octo, q, 50, softmax(1.0))` is V-GPS; with `edit` and `argmax()` it is the
acting rule of EXPO.

Shape legend: B rows, K candidates, H action chunk, A action dimension, E critic ensemble.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Generic, Literal

import torch
from torch import Generator, Tensor

from genpol.steering.action_units import Units
from genpol.steering.deadline import Laps, LatencyMeter, Pace
from genpol.steering.diversity import WATCHED, DiversityCheck, spread
from genpol.steering.select import Select
from offline.draws import moved, wait_for
from offline.errors import InputError
from offline.types import Critic, Features, Obs, Policy, clips


@dataclass(frozen=True)
class Edits:
    """Further candidates, each a small move of a proposal."""

    act: Tensor
    """(B, K', H, A), K' a multiple of the proposals K; those of one proposal side by side."""
    log_prob: Tensor
    """(B, K') log density of each move."""


# (features of B observations, proposals (B, K, H, A), generator) -> edits of them
Edit = Callable[[Features, Tensor, Generator | None], Edits]


@dataclass(frozen=True)
class Decision(Generic[Features]):
    """One choice of each of B rows. Actions are normalised by the base policy's spec."""

    action: Tensor
    """(B, H, A): to be executed as it is."""
    candidates: Tensor
    """(B, K, H, A): what was scored. First come the base policy's samples, then the edits."""
    num_base: int
    """How many of the K are samples of the base policy."""
    log_prob: Tensor | None
    """(B, K - num_base) log density of each edit's move; None where nothing is edited."""
    scores: Tensor
    """(B, K): the critics' pessimistic value of each."""
    heads: Tensor
    """(E, B, K): the value of each by each head."""
    chosen: Tensor
    """(B,) index of `action` in `candidates`; from `num_base` on it is an edit."""
    fell_back: Tensor
    """(B,) bool: the gate refused the choice and took candidate 0."""
    features: Features
    """What the critic makes of the observations, for whoever asks it further."""
    unit: Tensor
    """(A,) standard deviations of the data in one unit of a normalised action."""
    num_scored: int
    """K of this decision; fewer than asked for under a deadline, more with `edit`."""
    timing: dict[str, float]
    """Seconds of "propose", "encode", "score" and "select"; empty where nothing was timed."""

    # Computed when asked for: a robot waits for the action only.

    @property
    def value(self) -> Tensor:
        """(B,) score of the executed candidate."""
        return self.scores.gather(1, self.chosen[:, None])[:, 0]

    @property
    def disagreement(self) -> Tensor:
        """(B,) std over the ensemble of the executed candidate's advantage over the mean one."""
        return disagreement(self.heads, self.chosen)

    @property
    def spread(self) -> Tensor:
        """(B,) std of the candidates, in standard deviations of the data."""
        return spread(self.candidates, self.unit)


def disagreement(q: Tensor, chosen: Tensor) -> Tensor:
    """(E, B, K) and (B,) -> (B,): std over E of q[chosen] - mean_K q."""
    picked = q.gather(2, chosen.expand(len(q), -1)[..., None])[..., 0]
    return (picked - q.mean(-1)).std(0, correction=0)


def _pick(act: Tensor, chosen: Tensor) -> Tensor:
    """(B, K, H, A) and (B,) -> (B, H, A), a copy."""
    if len(act) == 1:  # a robot's case
        return act[0].index_select(0, chosen)
    return act[torch.arange(len(act), device=act.device), chosen]


class Steered(Generic[Features]):
    """A policy that proposes with `base` and chooses with `score`; itself a `Policy`.

    Args:
        base: proposes.
        score: values chunks of `score.spec.chunk` actions. Of a longer proposal the first so many
            are scored, and executed.
        num_candidates: K; 1 is the base policy itself.
        select: a rule of `genpol.steering.select`.
        edit: moves proposals; its edits are further candidates.
        gate: fall back to candidate 0, a plain sample, where the disagreement exceeds this (in
            units of the value); None never does. See `genpol.steering.tuning`.
        clip: clip all candidates to the bounds before they are scored. Without, edits are scored
            and executed beyond them, as in the released code of EXPO; proposals are still clipped.
        deadline: seconds for a decision, from when it is asked for, or from `since`. K then
            depends on how fast the machine is, so results do too; `num_candidates` is the most.
        check: check that proposals lie where the critic's data did, and that they differ.
        ensemble: how the E heads make one score; V-GPS takes the minimum.

    Raises:
        SpecError: the policy's actions cannot be what the critic was trained on.
        InputError: K < 1, or a deadline or gate that is not positive.
    """

    def __init__(
        self,
        base: Policy,
        score: Critic[Features],
        num_candidates: int,
        select: Select,
        *,
        edit: Edit[Features] | None = None,
        gate: float | None = None,
        deadline: float | None = None,
        clip: bool = True,
        check: bool = True,
        ensemble: Literal["min", "mean"] = "min",
    ) -> None:
        if num_candidates < 1:
            raise InputError(f"expected at least 1 candidate, received {num_candidates}")
        if gate is not None and not gate >= 0:
            raise InputError(f"expected a gate threshold of at least 0, received {gate:g}")
        if deadline is not None and not deadline > 0:
            raise InputError(f"expected a deadline of more than 0 seconds, received {deadline:g}")
        score.spec.require_scorable(base.spec)
        self.base, self.score, self.select, self.edit = base, score, select, edit
        self.num_candidates, self.gate = num_candidates, gate
        self.check, self.ensemble = check, ensemble
        self.clips = clip and clips(base)
        """Whether what it chooses is clipped to the bounds; see `offline.types.clips`."""
        self.spec = base.spec.with_chunk(score.spec.chunk)
        self.latency = LatencyMeter()
        self.pace = None if deadline is None else Pace(deadline, num_candidates)
        self.diversity = DiversityCheck()
        self._units = Units(base.spec, score.spec)
        self._never = torch.zeros(1, dtype=torch.bool)
        self._computes = torch.device("cpu")  # from the second decision on, what really does
        self._totals = dict.fromkeys(("rows", "fell_back", "candidates", "measured", "spread"), 0.0)

    # -- Policy

    def reset(self) -> None:
        self.base.reset()

    def sample(
        self, obs: Obs, n: int, generator: Generator | None, *, since: float | None = None
    ) -> Tensor:
        """n steered picks for each row, each out of its own K candidates: (B, n, H, A).

        Args:
            obs: B observations.
            n: picks for each.
            generator: draws proposals and choices.
            since: when the time of a deadline began (`perf_counter`); default now.
        """
        action = self._decide(obs, n, generator, since).action
        return action.view(-1, n, *action.shape[1:])

    def commit(self, act: Tensor) -> None:
        self.base.commit(act)

    def keep(self, rows: Tensor) -> None:
        self.base.keep(rows)

    # -- deciding

    def decide(
        self, obs: Obs, generator: Generator | None, *, since: float | None = None
    ) -> Decision[Features]:
        """One pick for each row, with all that led to it; `since` as in `sample`."""
        return self._decide(obs, 1, generator, since)

    def choose(
        self, obs: Obs, act: Tensor, generator: Generator | None, picks: int = 1
    ) -> Decision[Features]:
        """Edit, score and select among proposals that are there already. Nothing is timed, and
        nothing waits for a GPU that computes.

        Args:
            obs: B observations.
            act: (B, picks * K, H, A), normalised by the base policy's spec.
            generator: draws edits and choices.
            picks: of each observation, each out of its own K proposals and their edits.

        Returns:
            B * picks decisions.
        """
        return self._choose(obs, act, generator, picks, None)

    def _choose(
        self,
        obs: Obs,
        act: Tensor,
        generator: Generator | None,
        picks: int,
        laps: Laps | None,
    ) -> Decision[Features]:
        with torch.inference_mode():
            features = self.score.encode(obs)  # once, however many candidates
        if laps is not None:
            laps.mark("encode")
        with torch.no_grad():  # not inference mode: a base policy may keep what is executed
            if not self.clips and clips(self.base):
                act = self._units.clip(act)  # the edits may leave the bounds, the proposals not
            act, log_prob = self._with_edits(features, act, generator, picks)
            if self.check and act.shape[1] > 1:  # a single candidate is not chosen by its score
                self._units.require_in_range(act)
            if self.clips:
                act = self._units.clip(act)  # as it is executed
        if laps is not None:
            laps.mark("propose")
        with torch.inference_mode():
            q = self.score.score(features, self._units.convert(act, features.device))
        q = q.to(act.device)
        if picks > 1:  # (E, B, n K) -> (E, B n, K): from here on every pick is a row of its own
            q = q.reshape(len(q), -1, act.shape[1] // picks)
            act = act.reshape(-1, q.shape[-1], *act.shape[2:])
        if laps is not None:
            laps.mark("score")
        values = q.amin(0) if self.ensemble == "min" else q.mean(0)
        if values.shape[-1] == 1:
            chosen = values.new_zeros(len(values), dtype=torch.long)
        else:
            chosen = self.select(values, generator)
        if self.gate is None:
            if self._never.device != chosen.device:
                self._never = moved(self._never, chosen.device)
            fell_back = self._never.expand(len(chosen))
        else:
            fell_back = (disagreement(q, chosen) > self.gate) & (chosen != 0)
            chosen = chosen.masked_fill(fell_back, 0)
        action = _pick(act, chosen)
        if laps is not None:
            laps.mark("select")
        self._computes = features.device
        return Decision(
            action=action,
            candidates=act,
            num_base=act.shape[1] - (0 if log_prob is None else log_prob.shape[1]),
            log_prob=log_prob,
            scores=values,
            heads=q,
            chosen=chosen,
            fell_back=fell_back,
            features=features,
            unit=self._units.per_std(act.device),
            num_scored=values.shape[-1],
            timing={} if laps is None else laps.seconds(),
        )

    def metrics(self) -> dict[str, float]:
        """Means over all decisions so far; the spread's over a sample of them."""
        rows = max(self._totals["rows"], 1.0)
        return {
            "steer/spread": self._totals["spread"] / max(self._totals["measured"], 1.0),
            "steer/fell_back": self._totals["fell_back"] / rows,
            "steer/candidates": self._totals["candidates"] / rows,
            "steer/latency_p50_ms": 1e3 * self.latency.percentile(50),
            "steer/latency_p95_ms": 1e3 * self.latency.percentile(95),
        }

    def _decide(
        self, obs: Obs, n: int, generator: Generator | None, since: float | None
    ) -> Decision[Features]:
        started, laps = perf_counter(), Laps(self._computes)
        with torch.no_grad():  # not inference mode: a base policy may keep what it makes
            act = self._propose(obs, n, generator, started if since is None else since)
        laps.mark("propose")
        decision = self._choose(obs, act, generator, n, laps)
        self._count(decision, obs)
        return decision

    def _with_edits(
        self, features: Features, act: Tensor, generator: Generator | None, picks: int
    ) -> tuple[Tensor, Tensor | None]:
        """Each pick's proposals with their edits behind them (B, picks * (K + K'), H, A), and the
        edits' log densities (B * picks, K')."""
        if self.edit is None:
            return act, None
        act = moved(act, features.device)  # a black box proposes on the CPU
        edits = self.edit(features, act, generator)
        groups = [x.reshape(len(x), picks, -1, *x.shape[2:]) for x in (act, edits.act)]
        log_prob = edits.log_prob.reshape(len(act) * picks, -1)
        return torch.cat(groups, 2).flatten(1, 2), log_prob

    def _propose(self, obs: Obs, n: int, generator: Generator | None, since: float) -> Tensor:
        """(B, n K, H, A), the picks' proposals side by side."""
        if self.pace is None:
            return self._sample(obs, n * self.num_candidates, generator)
        return self._propose_in_time(obs, n, generator, since, self.pace)

    def _propose_in_time(
        self, obs: Obs, n: int, generator: Generator | None, since: float, pace: Pace
    ) -> Tensor:
        batches: list[Tensor] = []
        have, now = 0, perf_counter()
        while size := pace.next_batch(have, now - since):
            drawn = self._sample(obs, n * size, generator)
            wait_for(drawn.device)  # what it costs is known once it is done
            batches.append(drawn.reshape(len(drawn), n, size, *drawn.shape[2:]))
            before, now = now, perf_counter()
            pace.learn_batch(size, now - before)
            have += size
        return torch.cat(batches, 2).flatten(1, 2)

    def _sample(self, obs: Obs, count: int, generator: Generator | None) -> Tensor:
        act = self.base.sample(obs, count, generator)
        if act.ndim != 4 or act.shape[1] != count or act.shape[3] != self.spec.dim:
            raise InputError(
                f"expected proposals (B, n={count}, H, A={self.spec.dim}) from the policy, "
                f"received {tuple(act.shape)}"
            )
        if act.shape[2] < self.spec.chunk:
            raise InputError(
                f"the policy proposed chunks of H={act.shape[2]}, the critic scores "
                f"H={self.spec.chunk}"
            )
        return act if act.shape[2] == self.spec.chunk else act[:, :, : self.spec.chunk]

    def _count(self, decision: Decision[Features], obs: Obs) -> None:
        self.latency.add(decision.timing)
        rows, timing = len(decision.chosen), decision.timing
        if self.pace is not None:
            rest = timing["encode"] + timing["score"] + timing["select"]
            self.pace.learn_decision(decision.num_scored, rest, sum(timing.values()))
        self._totals["rows"] += rows
        if self.gate is not None:
            self._totals["fell_back"] += float(decision.fell_back.sum())
        self._totals["candidates"] += rows * decision.num_scored
        if self.latency.count > WATCHED and self.latency.count % 16:
            return
        varied = decision.spread
        self._totals["measured"] += rows
        self._totals["spread"] += float(varied.sum())
        if self.check:
            found = self.diversity.watch(
                varied, decision.num_scored, self.base, obs, self.num_candidates
            )
            if found:
                warnings.warn(found, stacklevel=4)
