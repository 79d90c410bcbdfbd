"""The numbers that an objective sees of an epoch's images, and how they are scored again.

`ChainScores`    log-probs of the denoising steps that drew the images (trajectory objectives)
`ForwardScores`  denoising losses of the finished images at shared draws of (t, eps)

Both have `score(rows, columns)`, which is differentiable; `at_rollout` is the objective's table
before the first update, which needs no pass. T is denoising steps, or draws. Scores stay where
networks compute, and a table is brought back once it is whole: no pass waits for the one before.

Rows that are scored are those that this process holds (`ranks.py`): all M of them where it is the
only one.

Shapes: M images, of which H are held; G prompts; S draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from diffusion.chain import Condition, DenoisingChain, Predictor, score_steps, sent
from diffusion.fitting import Fitting, fitting
from diffusion.forward import Denoised, Draws, ForwardProcess, denoise
from diffusion.frozen_outputs import FrozenOutputs
from diffusion.objective import ForwardObjective, Rollouts, ScoredPart, filled
from diffusion.process import ReverseProcess
from diffusion.ranks import Share, whole

RATIO_PROBES = 16  # steps re-scored each epoch; cheap beside thousands
Weights = Callable[[], AbstractContextManager[object]]  # the context in which weights are in place


class Reference(Protocol):
    """The reference of a policy; `ImagePolicy` has it."""

    def predict_reference(self, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor: ...
    def as_reference(self) -> AbstractContextManager[Any]: ...


class Scored(Protocol):
    """How the numbers that an objective sees are made again; see the module."""

    @property
    def share(self) -> Share | None:
        """Who holds which rows; None where this process holds all."""

    def score(self, rows: Tensor, columns: Tensor) -> Tensor:
        """(m,) or (m, C) numbers of held rows (m,), where networks compute; differentiable."""

    def at_rollout(self, rollouts: Rollouts) -> Tensor | None:
        """The table before the first update, where it is known."""

    def ahead(self, rows: Tensor, columns: Tensor, batch: Fitting) -> AbstractContextManager[None]:
        """Within this context these pairs will be scored in their order."""


def take(cond: Condition, rows: Tensor) -> Condition:
    """The conditioning of some rows."""
    return {k: v[sent(rows, v.device)] for k, v in cond.items()}


@dataclass(frozen=True)
class ChainScores:
    """Log-probs of stored chains (H); with `kl`, the KL of each step from the reference, too.

    `group` (H,) is each chain's row in `cond`. `share` says which of all M rows are held here.
    """

    predict: Predictor
    reference: Predictor
    process: ReverseProcess
    chain: DenoisingChain
    cond: Condition
    group: Tensor
    channels: Sequence[str] = ("log_prob",)
    share: Share | None = None
    reference_weights: Weights = nullcontext

    def score(self, rows: Tensor, steps: Tensor) -> Tensor:
        """(m,) log-probs, or (m, 2) with the closed-form KL per dimension, where networks compute.

        Nothing is brought back, so that a GPU need not be waited for.
        """
        cond = take(self.cond, self.group[rows])
        if "kl" not in self.channels:
            return score_steps(self.predict, self.process, self.chain, cond, rows, steps)
        process, other = self.process, self._reference_means(rows, steps)
        x_t, x_prev, at = self.chain.step(rows, steps)
        mean = process.mean(self.predict(x_t, process.timesteps_at(at), cond), x_t, at)
        std = process.std_at(at, mean).clamp_min(1e-12)
        kl = ((mean - other) / std).square().flatten(1).mean(1) / 2
        return torch.stack([process.log_prob(x_prev, mean, at), kl], 1)

    @cached_property
    def _reference_means(self) -> FrozenOutputs:
        def make(rows: Tensor, steps: Tensor) -> Tensor:
            x_t, _, at = self.chain.step(rows, steps)
            cond, process = take(self.cond, self.group[rows]), self.process
            return process.mean(self.reference(x_t, process.timesteps_at(at), cond), x_t, at)

        return FrozenOutputs(make, self.reference_weights)

    def ahead(self, rows: Tensor, steps: Tensor, batch: Fitting) -> AbstractContextManager[None]:
        """Within this context these steps will be scored in their order."""
        if "kl" not in self.channels:
            return nullcontext()
        return self._reference_means.coming(rows, steps, batch)

    def at_rollout(self, rollouts: Rollouts) -> Tensor | None:
        """The table under the weights that drew the chains: what was stored while drawing."""
        if "kl" not in self.channels:
            return rollouts.log_prob_old
        assert self.chain.kl is not None
        share = self.share or whole(len(self.group))
        return torch.stack([rollouts.log_prob_old, share.gather(self.chain.kl.cpu())], -1)


@dataclass(frozen=True)
class ForwardScores:
    """An objective's terms of finished images at draws of (t, eps) that a prompt's images share.

    `group` (H,) is each image's row in `cond` and in `draws`. `anchor` and `reference` compute with
    the weights that are in place within `anchor_weights` and `reference_weights`.
    """

    objective: ForwardObjective
    process: ForwardProcess
    predict: Predictor
    sample: Tensor
    draws: Draws
    cond: Condition
    group: Tensor
    anchor: Predictor | None = None
    reference: Predictor | None = None
    rollout_table: Tensor | None = None
    share: Share | None = None
    anchor_weights: Weights = nullcontext
    reference_weights: Weights = nullcontext

    def score(self, rows: Tensor, columns: Tensor) -> Tensor:
        """(m,) or (m, C) terms, where networks compute."""
        return self._terms(self.predict, rows, columns)

    def at_rollout(self, rollouts: Rollouts) -> Tensor | None:
        """The table under the weights that drew the images, where it was made then."""
        return self.rollout_table

    @contextmanager
    def ahead(self, rows: Tensor, columns: Tensor, batch: Fitting) -> Iterator[None]:
        """Within this context these draws will be scored in their order."""
        with ExitStack() as stack:
            for frozen in (self._anchor_outputs, self._reference_outputs):
                if frozen is not None:
                    stack.enter_context(frozen.coming(rows, columns, batch))
            yield

    def table(self, predict: Predictor, micro_batch: int | Fitting) -> Tensor:
        """(M, S) or (M, S, C) terms of every image and draw under `predict`; no graph.

        Every process has the rows that it holds, and all get the whole table.
        """
        images, draws = len(self.sample), self.draws.at.shape[1]
        rows = torch.arange(images).repeat_interleave(draws)
        columns = torch.arange(draws).repeat(images)
        parts: list[Tensor] = []

        def part(first: int, last: int) -> None:
            some = slice(first, last)
            parts.append(self._terms(predict, rows[some], columns[some]))

        batch = fitting(micro_batch)
        with torch.no_grad(), self.ahead(rows, columns, batch):
            batch.over(len(rows), part)
        values = torch.cat(parts).cpu()
        values = values.reshape(images, draws, *values.shape[1:])
        return (self.share or whole(images)).gather(values)

    def reference_table(self, policy: Reference, micro_batch: int | Fitting) -> Tensor:
        """The table under the reference, within one switch of weights. Its distances to an average
        of the weights mean nothing: the average is not asked."""
        known: dict[str, Any] = {"reference_weights": nullcontext}
        if self.anchor is not None:
            known |= {"anchor": _zeros, "anchor_weights": nullcontext}
        with policy.as_reference():
            return replace(self, **known).table(policy.predict_reference, micro_batch)

    def _terms(self, predict: Predictor, rows: Tensor, columns: Tensor) -> Tensor:
        def known(outputs: FrozenOutputs | None) -> Predictor | None:
            return None if outputs is None else lambda x_t, t, cond: outputs(rows, columns)

        frozen = known(self._anchor_outputs), known(self._reference_outputs)
        return self.objective.terms(self._denoised(predict, rows, columns, *frozen))

    def _denoised(
        self,
        predict: Predictor,
        rows: Tensor,
        columns: Tensor,
        anchor: Predictor | None = None,
        reference: Predictor | None = None,
    ) -> Denoised:
        cond = take(self.cond, self.group[rows])
        data = self.sample, self.draws, self.group, rows, columns, cond
        return denoise(predict, self.process, *data, anchor, reference)

    @cached_property
    def _anchor_outputs(self) -> FrozenOutputs | None:
        return self._outputs(self.anchor, self.anchor_weights)

    @cached_property
    def _reference_outputs(self) -> FrozenOutputs | None:
        return self._outputs(self.reference, self.reference_weights)

    def _outputs(self, predict: Predictor | None, weights: Weights) -> FrozenOutputs | None:
        if predict is None:
            return None
        return FrozenOutputs(lambda *pairs: self._denoised(predict, *pairs).output, weights)


def _zeros(x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
    return torch.zeros_like(x_t)


def probe(
    scores: Scored,
    rollouts: Rollouts,
    count: int,
    micro_batch: int | Fitting,
) -> tuple[Tensor, Tensor]:
    """`count` scores under the current weights, spread over images and steps; and the old."""
    used = (rollouts.step_weight > 0).expand(*rollouts.log_prob_old.shape)
    rows, steps = used.nonzero(as_tuple=True)
    # A batch spread over chains and steps, with a graph as in training.
    pick = torch.linspace(0, len(rows) - 1, min(count, len(rows))).long()
    rows, steps = rows[pick], steps[pick]
    share = scores.share or whole(len(rollouts.log_prob_old))
    picked, parts = share.items(rows), list[ScoredPart]()

    def part(first: int, last: int) -> None:
        some = picked.part(first, last)
        s = steps[some.items]
        again = scores.score(some.held, s).detach()
        again = again if again.ndim == 1 else again[:, 0]
        parts.append((some.held, s, again, some.padding))

    fitting(micro_batch).over(picked.most, part)
    held = filled(parts, len(share.held), rollouts.log_prob_old)
    return share.gather(held)[rows, steps], rollouts.log_prob_old[rows, steps]


def ratio_error(scores: Scored, rollouts: Rollouts, micro_batch: int | Fitting) -> float:
    """Largest |log-prob re-scored - log-prob stored| over a few steps, per dimension.

    Before any update this is 0 up to arithmetic; anything near --clip means that the clip would act
    on rounding, not on learning.
    """
    again, stored = probe(scores, rollouts, RATIO_PROBES, micro_batch)
    return float((again - stored).abs().max())
