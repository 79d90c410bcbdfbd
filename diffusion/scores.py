"""The numbers that an objective sees of an epoch's images, and how they are scored again.

`ChainScores`    log-probs of the denoising steps that drew the images (trajectory objectives)
`ForwardScores`  denoising losses of the finished images at shared draws of (t, eps)

Both have `score(rows, columns)`, which is differentiable; `at_rollout` is the objective's table
before the first update, which needs no pass. T is denoising steps, or draws.

Rows that are scored are those that this process holds (`ranks.py`): all M of them where it is the
only one.

Shapes: M images, of which H are held; G prompts; S draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.chain import Condition, DenoisingChain, Predictor, score_steps
from diffusion.forward import Draws, ForwardProcess, denoise
from diffusion.objective import ForwardObjective, Rollouts
from diffusion.process import ReverseProcess
from diffusion.ranks import Share, whole

RATIO_PROBES = 16  # steps re-scored each epoch; cheap beside thousands


def take(cond: Condition, rows: Tensor) -> Condition:
    """The conditioning of some rows."""
    return {k: v[rows.to(v.device)] for k, v in cond.items()}


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

    def score(self, rows: Tensor, steps: Tensor) -> Tensor:
        """(m,) log-probs on the CPU, or (m, 2) with the closed-form KL per dimension."""
        cond = take(self.cond, self.group[rows])
        if "kl" not in self.channels:
            return score_steps(self.predict, self.process, self.chain, cond, rows, steps).cpu()
        chain, process = self.chain, self.process
        rows, steps = rows.to(chain.x.device), steps.to(chain.x.device)
        x_t, x_prev = chain.x[steps, rows].float(), chain.x[steps + 1, rows].float()
        t = process.timesteps.to(x_t.device)[steps]
        mean = process.mean(self.predict(x_t, t, cond), x_t, steps)
        with torch.no_grad():
            other = process.mean(self.reference(x_t, t, cond), x_t, steps)
        std = process.std_at(steps, mean).clamp_min(1e-12)
        kl = ((mean - other) / std).square().flatten(1).mean(1) / 2
        return torch.stack([process.log_prob(x_prev, mean, steps), kl], 1).cpu()

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

    `group` (H,) is each image's row in `cond` and in `draws`.
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

    def score(self, rows: Tensor, columns: Tensor) -> Tensor:
        """(m,) or (m, C) terms on the CPU."""
        return self._terms(self.predict, rows, columns).cpu()

    def at_rollout(self, rollouts: Rollouts) -> Tensor | None:
        """The table under the weights that drew the images, where it was made then."""
        return self.rollout_table

    def table(self, predict: Predictor, micro_batch: int) -> Tensor:
        """(M, S) or (M, S, C) terms of every image and draw under `predict`; no graph.

        Every process has the rows that it holds, and all get the whole table.
        """
        images, draws = len(self.sample), self.draws.at.shape[1]
        rows = torch.arange(images).repeat_interleave(draws)
        columns = torch.arange(draws).repeat(images)
        with torch.no_grad():
            parts = [
                self._terms(predict, rows[i : i + micro_batch], columns[i : i + micro_batch]).cpu()
                for i in range(0, len(rows), micro_batch)
            ]
        values = torch.cat(parts)
        values = values.reshape(images, draws, *values.shape[1:])
        return (self.share or whole(images)).gather(values)

    def _terms(self, predict: Predictor, rows: Tensor, columns: Tensor) -> Tensor:
        denoised = denoise(
            predict,
            self.process,
            self.sample,
            self.draws,
            self.group,
            rows,
            columns,
            take(self.cond, self.group[rows]),
            self.anchor,
            self.reference,
        )
        return self.objective.terms(denoised)


def probe(
    scores: ChainScores | ForwardScores, rollouts: Rollouts, count: int
) -> tuple[Tensor, Tensor]:
    """`count` scores under the current weights, spread over images and steps; and the old."""
    used = (rollouts.step_weight > 0).expand(*rollouts.log_prob_old.shape)
    rows, steps = used.nonzero(as_tuple=True)
    # A batch spread over chains and steps, with a graph as in training.
    pick = torch.linspace(0, len(rows) - 1, min(count, len(rows))).long()
    rows, steps = rows[pick], steps[pick]
    share = scores.share or whole(len(rollouts.log_prob_old))
    held = torch.zeros(len(share.held), used.shape[1], dtype=rollouts.log_prob_old.dtype)
    for some in share.items(rows).passes(count):
        s = steps[some.items]
        again = scores.score(some.held, s).detach()
        if not some.padding:
            held[some.held, s] = (again if again.ndim == 1 else again[:, 0]).to(held.dtype)
    return share.gather(held)[rows, steps], rollouts.log_prob_old[rows, steps]


def ratio_error(scores: ChainScores | ForwardScores, rollouts: Rollouts) -> float:
    """Largest |log-prob re-scored - log-prob stored| over a few steps, per dimension.

    Before any update this is 0 up to arithmetic; anything near --clip means that the clip would act
    on rounding, not on learning.
    """
    again, stored = probe(scores, rollouts, RATIO_PROBES)
    return float((again - stored).abs().max())
