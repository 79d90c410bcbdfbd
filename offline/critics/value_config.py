"""Every setting of offline critic training; light to import, so that `--help` is quick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Le

from offline.data.dataset_config import DatasetConfig
from offline.ranges import Between, Count, Decay, NotNegative, Positive, Size, Sizes, Step


@dataclass(frozen=True)
class ValueConfig(DatasetConfig):
    """Settings of `offline.critics.train_value.train_value`.

    Defaults are those published with V-GPS but for three, chosen on development data: the policy
    imitates (`cql_actor`), the conservative weight is .03 instead of 5, and the target critic
    follows four times as fast, as 8,000 steps are far fewer than its million.
    """

    critic: Literal["calql", "iql"] = "calql"
    """Algorithm. The highest of several proposals is safer to take by Cal-QL's values than by
    IQL's."""
    steps: Count = 8000
    """Gradient steps, at least 1."""
    discount: Decay = 0.98
    """Discount per environment step, at least 0 and below 1."""
    lr: Positive = 3e-4
    """Learning rate of the critic, above 0."""
    actor_lr: Positive = 1e-4
    """Learning rate of Cal-QL's policy, above 0."""
    target_rate: Step = 0.02
    """Step of the target critic towards the critic at each update, above 0 and at most 1."""
    ensemble: Annotated[int, Ge(1), Le(10)] = 2
    """Critic heads, 1 to 10."""
    hidden: Sizes = (256, 256)
    """Units of each hidden layer, one number per layer."""
    cql_alpha: NotNegative = 0.03
    """Weight of the conservative term beside the TD loss, at least 0 (calql)."""
    cql_actions: Size = 4
    """Actions drawn from each of the uniform distribution, pi(s) and pi(s'), at least 1 (calql)."""
    cql_actor: Literal["clone", "value"] = "clone"
    """What Cal-QL's policy is trained to do: imitate the data (clone), or maximise the critic
    (value)."""
    cql_backup: Literal["max", "mean"] = "max"
    """Which of the policy's actions a target takes: the best, or their mean value (calql)."""
    expectile: Between = 0.7
    """Expectile of the state value, between 0 and 1 (iql)."""
    reward: Literal["sparse", "dataset"] = "sparse"
    """Reward of an environment step: -1 until success (sparse), or the dataset's own (dataset)."""
