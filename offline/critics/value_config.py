"""Every setting of offline critic training; light to import, so that `--help` is quick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from offline.option_check import require


@dataclass(frozen=True)
class ValueConfig:
    """Settings of `offline.critics.train_value.train_value`.

    Defaults are those published with V-GPS but for three, chosen on development data: the policy
    imitates (`cql_actor`), the conservative weight is .03 instead of 5, and the target critic
    follows four times as fast, as 8,000 steps are far fewer than its million.
    """

    critic: Literal["calql", "iql"] = "calql"
    """Algorithm; Cal-QL is safer to take the argmax of."""
    steps: int = 8000
    """Gradient steps."""
    batch_size: int = 256
    """Transitions per step."""
    action_chunk: int = 4
    """Actions scored together (H); the policy to steer must propose at least as many."""
    discount: float = 0.98
    """Per environment step."""
    seed: int = 0
    """Of everything random."""
    lr: float = 3e-4
    """Learning rate of the critic."""
    actor_lr: float = 1e-4
    """Learning rate of Cal-QL's policy."""
    target_rate: float = 0.02
    """Step of the target critic towards the critic."""
    ensemble: int = 2
    """Critic heads, 1 to 10."""
    hidden: tuple[int, ...] = (256, 256)
    """Units of each hidden layer."""
    cql_alpha: float = 0.03
    """Weight of the conservative term against the TD loss (Cal-QL)."""
    cql_actions: int = 4
    """Actions drawn from each of uniform, pi(s) and pi(s') (Cal-QL)."""
    cql_actor: Literal["clone", "value"] = "clone"
    """What Cal-QL's policy is trained to do: imitate the data, or maximise the critic."""
    cql_backup: Literal["max", "mean"] = "max"
    """Which of the policy's actions the backup takes (Cal-QL)."""
    expectile: float = 0.7
    """Of the value function (IQL)."""
    reward: Literal["sparse", "dataset"] = "sparse"
    """"sparse": -1 a step until success; "dataset": the environment's own."""
    scale: Literal["bounds", "p01_p99"] = "bounds"
    """What of an action dimension is mapped to [-1, 1]."""
    obs_keys: tuple[str, ...] = ()
    """One-dimensional observations to use; default all."""
    image_keys: tuple[str, ...] = ()
    """Images to use; default none."""
    image_encoder: Literal["small", "resnet34"] = "small"
    """Network for images."""
    random_shift: int = 4
    """Pixels by which images are shifted at random in training."""
    memory_gb: float = 2.0
    """Datasets larger than this are streamed."""
    log_every: int = 100
    """Steps between logged rows."""

    def check(self) -> None:
        """Check every number.

        Raises:
            InputError: names the option and the range it should be in.
        """
        at_least_one = ("steps", "batch_size", "action_chunk", "cql_actions", "log_every")
        for name in at_least_one:
            require(self, name, getattr(self, name) >= 1, "at least 1")
        for name in ("lr", "actor_lr", "memory_gb"):
            require(self, name, getattr(self, name) > 0, "above 0")
        for name in ("cql_alpha", "random_shift"):
            require(self, name, getattr(self, name) >= 0, "at least 0")
        require(self, "discount", 0 <= self.discount < 1, "at least 0 and below 1")
        require(self, "target_rate", 0 < self.target_rate <= 1, "above 0 and at most 1")
        require(self, "expectile", 0 < self.expectile < 1, "between 0 and 1")
        require(self, "ensemble", 1 <= self.ensemble <= 10, "1 to 10")
        require(
            self, "hidden", bool(self.hidden) and min(self.hidden) >= 1, "one or more sizes above 0"
        )
