"""Settings of world models and of what is imagined with them; light to import."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from offline.option_check import check_numbers, require
from offline.ranges import Amount, Between, Count, NotNegative, Positive, Size, Sizes, Step

WorldModelName = Literal["none", "mle", "mse", "vagram", "simulator"]


@dataclass(frozen=True)
class WorldModelConfig:
    """Of the model, its training and its rollouts. Steps are environment steps."""

    world_model: WorldModelName = "none"
    """What a model of the environment learns by: the likelihood of a Gaussian (mle), the squared
    error of a prediction (mse), or that error weighted by the value's gradient (vagram).
    "simulator" uses the simulator itself, to see what a perfect model would do."""
    ensemble: Size = 7
    """Models in the ensemble, at least 1."""
    elites: Size = 5
    """Models that imagine: those that predict held-out data best. At least 1."""
    model_hidden: Sizes = (200, 200, 200, 200)
    """Units of each hidden layer of a model, one number per layer."""
    model_dtype: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the models' hidden layers in training. Weights, errors on held-out data and
    imagined transitions are float32."""
    model_lr: Positive = 1e-3
    """Learning rate of the models, above 0."""
    model_weight_decay: NotNegative = 5e-5
    """Weight decay of the models, at least 0."""
    model_batch_size: Count = 256
    """Transitions per update of each model, at least 1."""
    model_every: Count = 250
    """Environment steps between trainings of the models, at least 1."""
    model_updates: Count = 1_000
    """Most updates of one training, at least 1. A training ends earlier when the error on held-out
    data stops falling."""
    model_patience: Count = 5
    """Epochs without a lower error on held-out data after which a training ends, at least 1."""
    model_holdout: Between = 0.1
    """Share of the transitions that is held out, between 0 and 1."""
    known: tuple[Literal["reward", "termination"], ...] = ()
    """What the environment's own rule computes instead of the model, where that rule is known.
    Default: nothing."""
    rollout_lengths: tuple[Size, Size] = (1, 1)
    """Decisions imagined from each real state, at the start and at the end, at least 1."""
    rollout_schedule: tuple[Amount, Amount] = (0, 0)
    """Environment steps at which the number of decisions of --rollout-lengths begins to grow, and
    at which it has grown, linearly."""
    rollouts_per_step: Count = 40
    """Real states imagined from for each environment step, at least 1."""
    imagined_keep: Count = 1
    """Trainings of the models whose imagined transitions are kept, at least 1. Those of older
    trainings are forgotten."""
    imagined_capacity: Count | None = None
    """Imagined transitions that are kept, instead of --imagined-keep, at least 1. New ones replace
    the oldest, so a number below those of one training loses the first decisions of its branches.
    Default: no fixed number."""
    vagram_clip: Step = 0.95
    """Quantile of the norms that gradients are clipped to, above 0 and at most 1 (vagram)."""
    vagram_warmup: Amount = 1_000
    """Environment steps after the first training in which models learn by plain squared error
    (vagram)."""

    def check(self) -> None:
        """Check every number.

        Raises:
            InputError: names the option and the range it should be in.
        """
        check_numbers(self)
        first, last = self.rollout_lengths
        require(self, "rollout_lengths", 1 <= first <= last, "two lengths, 1 <= first <= last")
        begin, end = self.rollout_schedule
        require(self, "rollout_schedule", 0 <= begin <= end, "two steps, 0 <= first <= last")

    def rollout_length(self, step: int) -> int:
        """Decisions to imagine from each state, at an environment step."""
        (first, last), (begin, end) = self.rollout_lengths, self.rollout_schedule
        share = 1.0 if step >= end else max(0.0, (step - begin) / (end - begin))
        return round(first + share * (last - first))
