"""Settings of the offline-to-online backbone, whatever the agent; light to import."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from offline.critics.critic_config import CriticConfig
from offline.option_check import require


@dataclass(frozen=True)
class RLConfig(CriticConfig):
    """Settings of data, critic and loop. Rates are per update, steps are environment steps."""

    steps: int = 20_000
    """Environment steps."""
    utd: float = 1.0
    """Critic updates per environment step; may be below 1."""
    policy_utd: float = 1.0
    """Updates of the policy per environment step, at most those of the critic."""
    batch_size: int = 256
    """Transitions per update."""
    offline_fraction: float = 0.5
    """Share of each batch that comes from --data, once there is experience to mix it with."""
    imagined_fraction: float = 0.0
    """Share of each batch that comes from a world model, where there is one."""
    action_chunk: int = 4
    """Actions proposed, scored and executed together (H)."""
    n_step: int | None = None
    """Rewards summed before a target bootstraps, at least H; default H."""
    discount: float = 0.99
    """Per environment step."""
    reward: Literal["sparse", "zero-one", "dataset"] = "sparse"
    """"sparse": -1 a step until success; "zero-one": 1 at success; "dataset": the environment's."""
    reward_scale: float = 1.0
    """Multiplies every reward; the temperature is in the same units."""
    replay_capacity: int = 1_000_000
    """Environment steps kept; the oldest are overwritten."""
    memory_gb: float = 2.0
    """What of it is larger lives in a memory-mapped file; larger datasets are streamed."""
    num_envs: int = 1
    """Environments side by side."""
    offline_updates: int = 0
    """Updates of the whole agent on --data, and on what a world model imagines, before the first
    environment step; with --steps 0 that is all."""
    start_steps: int = 0
    """Steps of uniformly random actions first, for learning from scratch."""
    update_after: int = 500
    """Steps before the first update; the policy acts meanwhile."""
    image_encoder: Literal["small", "resnet34"] = "small"
    """Network for image observations."""
    obs_keys: tuple[str, ...] = ()
    """One-dimensional observations to use; default all."""
    image_keys: tuple[str, ...] = ()
    """Images to use; default none."""
    random_shift: int = 4
    """Pixels by which images are shifted at random in training."""
    seed: int = 0
    """Of everything random."""
    eval_every: int = 2_000
    """Environment steps between evaluations."""
    eval_episodes: int = 50
    """Layouts evaluated on, the same every time and never trained on."""
    log_every: int = 200
    """Environment steps between logged rows."""
    checkpoint_every: int = 5_000
    """Environment steps between checkpoints."""

    def check(self) -> None:
        """Check every number.

        Raises:
            InputError: names the option and the range it should be in.
        """
        CriticConfig.check(self)
        for name in (
            "batch_size", "action_chunk", "replay_capacity", "num_envs",
            "eval_every", "eval_episodes", "log_every", "checkpoint_every",
        ):  # fmt: skip
            require(self, name, getattr(self, name) >= 1, "at least 1")
        for name in ("steps", "start_steps", "update_after", "offline_updates", "random_shift"):
            require(self, name, getattr(self, name) >= 0, "at least 0")
        for name in ("utd", "policy_utd", "reward_scale", "memory_gb"):
            require(self, name, getattr(self, name) > 0, "above 0")
        for name in ("offline_fraction", "imagined_fraction"):
            require(self, name, 0 <= getattr(self, name) <= 1, "between 0 and 1")
        require(self, "discount", 0 <= self.discount < 1, "at least 0 and below 1")
        require(
            self,
            "n_step",
            self.n_step is None or self.n_step >= self.action_chunk,
            f"at least the action chunk ({self.action_chunk})",
        )
        require(
            self,
            "imagined_fraction",
            self.offline_fraction + self.imagined_fraction <= 1,
            "at most 1 together with --offline-fraction",
        )
