"""`ModelTraining`: fits a `Dynamics` to all steps collected so far.

Each update draws a batch for every member on its own and minimises, per step and member,

    squared error   mean_m w_m (y_m - y^_m)^2,    w = 1 if no weights are given,
    likelihood      mean_m ( (y_m - y^_m)^2 / var_m + log var_m ) / 2        (probabilistic members)

m over the standardised change of the state and the reward, and in addition the cross-entropy of
termination. What is known by a rule is left out. A share of the steps is held out: each member
keeps its best weights by the squared error on these, training ends when no member gets better any
more, and the best members are the elites (MBPO, Janner et al. 2019, arXiv 1906.08253, judges
probabilistic members so too: the likelihood of a deterministic simulator never stops growing).

Metrics, over elites and held-out steps, in standardised units:

    model/loss             of the latest training batches, mean over members
    model/holdout_loss     squared error and cross-entropy on held-out steps
    model/holdout_mse      squared error of the state's change, mean over dimensions; 1 is the mean
    model/reward_mse       that of the reward, if it is learnt
    model/termination_f1   of terminations, if they are learnt; 1 if there is none and none is seen
    model/holdout_nll      likelihood's loss (probabilistic)
    model/calibration_1    share of errors within one predicted standard deviation, less .683
    model/calibration_2    within two, less .954; below 0 is overconfident (probabilistic)
    model/disagreement     standard deviation of the elites' predicted change, mean over dimensions
    model/epochs, model/updates, model/steps

Shape legend: E members, B batch, N steps, D state dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from offline.draws import moved
from offline.errors import Diverged
from offline.models.dynamics import Dynamics, Outputs
from offline.models.held_out import split_rows
from offline.models.world_model import Steps
from offline.models.world_model_config import WorldModelConfig
from offline.networks.optimizers import load_optimizer

Weights = Callable[[Steps], Tensor]

LEAST_EPOCH = 25  # updates: what few steps there are is passed over more than once
EPOCHS = 10  # at least, however many steps there are: else a budget would end unobserved
IMPROVED = 0.01  # relative
BOUND_WEIGHT = 0.01  # pulls the bounds of the log variance together (PETS)
ROWS_AT_ONCE = 1_024


@dataclass(frozen=True)
class Table:
    """N steps as the networks see them."""

    x: Tensor
    """(N, D + A)."""
    target: Tensor
    """(N, D + 1)."""
    terminated: Tensor
    """(N,)."""
    weight: Tensor | None
    """(N, D + 1), of the squared errors."""

    def __len__(self) -> int:
        return len(self.x)

    def take(self, rows: Tensor) -> Table:
        """Those rows, in the shape of the indices."""
        weight = None if self.weight is None else self.weight[rows]
        return Table(self.x[rows], self.target[rows], self.terminated[rows], weight)


class ModelTraining:
    """Training of a model, with what is kept from one time to the next.

    Args:
        model: to train.
        config: rates, sizes and budgets.
    """

    def __init__(self, model: Dynamics, config: WorldModelConfig) -> None:
        self.model, self.config = model, config
        rest = [p for name, p in model.named_parameters() if not name.startswith("weights.")]
        self.optimizer = torch.optim.Adam(
            [
                {"params": list(model.weights), "weight_decay": config.model_weight_decay},
                {"params": rest, "weight_decay": 0.0},
            ],
            lr=config.model_lr,
            fused=True,
        )

    def fit(
        self,
        steps: Steps,
        generator: Generator,
        weights: Tensor | Weights | None = None,
        keys: Tensor | None = None,
    ) -> dict[str, float]:
        """Train on these steps, from where the last training ended.

        Args:
            steps: all there are.
            generator: draws the batches; kept by the caller, who saves its state.
            weights: (N, D), at least 0, of the squared errors of each step's state, or what
                computes them, which is asked once and after the model took its units from the
                steps. The loss is divided by their mean, the reward's weight of 1 included.
            keys: (N,) what identifies each step among all there ever are, and with that decides
                whether it is held out; default its row, for a table that only grows.

        Returns:
            Metrics, see the top of the file.

        Raises:
            InputError: too few steps to hold one out.
            Diverged: a loss on held-out steps is not finite.
        """
        model, config = self.model, self.config
        keys = torch.arange(len(steps)) if keys is None else keys
        train, test = split_rows(keys, config.model_holdout)
        device = model.state_mean.device
        steps = steps.to(device)
        train = train.to(device)
        model.normalize_by(steps.take(train))
        weight = weights(steps) if callable(weights) else weights
        table = self._table(steps, train, weight)
        held = table.take(test.to(device))

        epoch = max(LEAST_EPOCH, math.ceil(len(train) / config.model_batch_size))
        epoch = min(epoch, max(1, config.model_updates // EPOCHS))
        best, kept = self._held_out_loss(held), self._snapshot()
        updates = epochs = stale = 0
        total = torch.zeros((), device=device)
        while updates < config.model_updates and stale < config.model_patience:
            count = min(epoch, config.model_updates - updates)
            total.zero_()
            for _ in range(count):
                total += self.update(table, train, generator)
            loss = self._held_out_loss(held)
            better = loss < (1 - IMPROVED) * best
            for param, snapshot in zip(model.parameters(), kept, strict=True):
                snapshot[better] = param.detach()[better]
            best = torch.where(better, loss, best)
            stale = 0 if better.any() else stale + 1
            updates, epochs = updates + count, epochs + 1
        with torch.no_grad():
            for param, snapshot in zip(model.parameters(), kept, strict=True):
                param.copy_(snapshot)
        model.elites.copy_(best.argsort(stable=True)[: len(model.elites)].sort().values)
        return {
            "model/loss": float(total) / count,
            "model/holdout_loss": float(best[model.elites].mean()),
            **self._metrics(held),
            "model/epochs": float(epochs),
            "model/updates": float(updates),
            "model/steps": float(len(keys)),
        }

    # -- the loss

    def _table(self, steps: Steps, train: Tensor, weight: Tensor | None) -> Table:
        model = self.model
        if weight is not None:
            if model.probabilistic:
                raise ValueError("weights are those of squared errors: pass none for a likelihood")
            if weight.shape != steps.state.shape:
                raise ValueError(f"weights are {tuple(steps.state.shape)}, got {weight.shape}")
            weight = F.pad(weight.detach().to(steps.state), (0, 1), value=1.0)
            scored = weight if model.reward_rule is None else weight[:, :-1]
            weight = weight / scored[train].mean(dtype=torch.float64).float().clamp(min=1e-30)
        x = model.inputs(steps.state, steps.act)
        return Table(x, model.targets(steps), steps.terminated, weight)

    def update(self, table: Table, train: Tensor, generator: Generator) -> Tensor:
        """One step of every member, each on a batch of its own: the loss, mean over members."""
        model = self.model
        shape = (model.ensemble, self.config.model_batch_size)
        drawn = torch.randint(len(train), shape, generator=generator, device=generator.device)
        batch = table.take(train[moved(drawn, train.device)])
        losses = self._losses(model.outputs(batch.x), batch).mean(1)
        loss = losses.sum()
        if model.probabilistic:
            loss = loss + BOUND_WEIGHT * (model.most_log_var - model.least_log_var).sum()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return losses.detach().mean()

    def _losses(self, out: Outputs, batch: Table) -> Tensor:
        """(C, B) of what C members say of their batches."""
        mean, target, log_var, weight = out.mean, batch.target, out.log_var, batch.weight
        if self.model.reward_rule is not None:
            mean, target = mean[..., :-1], target[..., :-1]
            log_var = None if log_var is None else log_var[..., :-1]
            weight = None if weight is None else weight[..., :-1]
        errors = (mean - target).square()
        if weight is not None:
            errors = errors * weight
        if log_var is not None:
            errors = (errors * (-log_var).exp() + log_var) / 2
        losses = errors.mean(-1)
        if self.model.termination_rule is None:
            truth = batch.terminated.expand_as(out.logit)
            losses = losses + F.binary_cross_entropy_with_logits(out.logit, truth, reduction="none")
        return losses

    # -- held-out steps

    @torch.no_grad()
    def _held_out_loss(self, held: Table) -> Tensor:
        """(E,)."""
        total = torch.zeros(self.model.ensemble, device=held.x.device)
        for rows in torch.arange(len(held), device=held.x.device).split(ROWS_AT_ONCE):
            part = held.take(rows)
            out = replace(self.model.outputs(self._for_all(part.x)), log_var=None)
            total += self._losses(out, part).sum(1)
        loss = total / len(held)
        if not torch.isfinite(loss).all():
            raise Diverged(
                "the world model diverged: its losses on held-out data are NaN or infinite. Lower "
                "--model-lr, or look for such numbers in the data"
            )
        return loss

    def _for_all(self, x: Tensor) -> Tensor:
        return x.expand(self.model.ensemble, *x.shape)

    @torch.no_grad()
    def _metrics(self, held: Table) -> dict[str, float]:
        model, elites = self.model, self.model.elites
        parts = [model.outputs(self._for_all(x)) for x in held.x.split(ROWS_AT_ONCE)]
        mean = torch.cat([part.mean for part in parts], 1)[elites]
        error = mean - held.target
        metrics = {
            "model/holdout_mse": float(error[..., :-1].square().mean()),
            "model/disagreement": float(mean[..., :-1].std(0, correction=0).mean()),
        }
        scored = error if model.reward_rule is None else error[..., :-1]
        if model.reward_rule is None:
            metrics["model/reward_mse"] = float(error[..., -1].square().mean())
        if model.termination_rule is None:
            seen = torch.cat([part.logit for part in parts], 1)[elites] > 0
            metrics["model/termination_f1"] = f1(seen, held.terminated > 0)
        if model.probabilistic:
            whole = torch.cat([part.log_var for part in parts if part.log_var is not None], 1)
            log_var = whole[elites][..., : scored.shape[-1]]
            z = scored * (-log_var / 2).exp()
            metrics["model/holdout_nll"] = float((z.square() + log_var).mean() / 2)
            for sigmas in (1, 2):
                share = float((z.abs() <= sigmas).float().mean())
                metrics[f"model/calibration_{sigmas}"] = share - math.erf(sigmas / math.sqrt(2))
        return metrics

    # -- going on later

    def _snapshot(self) -> list[Tensor]:
        return [param.detach().clone() for param in self.model.parameters()]

    def state_dict(self) -> dict[str, Any]:
        """The model with its units and elites, and the optimiser."""
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take on what `state_dict` returned; training then goes on bit for bit."""
        self.model.load_state_dict(state["model"])
        load_optimizer(self.optimizer, state["optimizer"])


def f1(seen: Tensor, truth: Tensor) -> float:
    """2 TP / (2 TP + FP + FN) of booleans, `truth` broadcast; 1 if there is nothing to see."""
    truth = truth.expand_as(seen)
    wrong, right = int((seen != truth).sum()), int((seen & truth).sum())
    return 2 * right / (2 * right + wrong) if right or wrong else 1.0
