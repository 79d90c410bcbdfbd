"""Settings of the offline-to-online backbone, whatever the agent; light to import."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Gt, Le

from offline.critics.critic_config import CriticConfig
from offline.option_check import require
from offline.ranges import Amount, Count, Decay, Few, Positive, Seed, Share, Size


@dataclass(frozen=True)
class RLConfig(CriticConfig):
    """Settings of data, critic and loop. Rates are per update, steps are environment steps."""

    steps: Amount = 20_000
    """Environment steps, at least 0."""
    utd: Annotated[float, Gt(0), Le(10_000)] = 1.0
    """Critic updates per environment step, above 0. It may be below 1."""
    policy_utd: Annotated[float, Gt(0), Le(10_000)] = 1.0
    """Policy updates per environment step, above 0 and at most --utd."""
    batch_size: Count = 256
    """Transitions per update, at least 1."""
    offline_fraction: Share = 0.5
    """Share of each batch that comes from --data, 0 to 1, once replay has something to mix it
    with."""
    imagined_fraction: Share = 0.0
    """Share of each batch that comes from the world model, 0 to 1. Together with --offline-fraction
    it is at most 1."""
    action_chunk: Size = 4
    """Actions that are proposed, scored and executed together (H), at least 1."""
    n_step: Size | None = None
    """Environment steps whose rewards a target sums before it bootstraps, at least H. Default: H,
    the --action-chunk."""
    discount: Decay = 0.99
    """Discount per environment step, at least 0 and below 1."""
    reward: Literal["sparse", "zero-one", "dataset"] = "sparse"
    """Reward of an environment step: -1 until success (sparse), 1 at success and 0 elsewhere
    (zero-one), or the environment's own (dataset)."""
    reward_scale: Positive = 1.0
    """Factor of every reward, above 0. Entropy temperatures are in the scaled units."""
    replay_capacity: Count = 1_000_000
    """Environment steps that the replay keeps, at least 1. New steps then replace the oldest."""
    memory_gb: Positive = 2.0
    """Memory for the replay, and again for --data, in GiB, above 0. A larger replay keeps its
    largest arrays in files in the run folder. Larger data is streamed from its files."""
    num_envs: Size = 1
    """Environments that act at the same time, at least 1."""
    offline_updates: Amount = 0
    """Updates of the whole agent before the first environment step, on --data and on what a world
    model imagines. With --steps 0 the agent is trained offline only."""
    start_steps: Amount = 0
    """Environment steps of uniformly random actions at the start."""
    update_after: Amount = 500
    """Environment steps before the first update. The policy acts meanwhile."""
    image_encoder: Literal["small", "resnet34"] = "small"
    """Network for images."""
    obs_keys: tuple[str, ...] = ()
    """One-dimensional observations to use. Default: all."""
    image_keys: tuple[str, ...] = ()
    """Images to use, by the name of their observation. Default: none."""
    random_shift: Few = 4
    """Largest random shift of images in training, in pixels."""
    actor_layer_norm: bool = True
    """Normalise the hidden layers of the actor (rlpd, sac, dsrl) by LayerNorm. SAC, RLPD and MBPO
    are published without."""
    follow_statistics: bool = True
    """Where neither --data nor --base nor --value brings the statistics that observations are
    standardised by, take them from the replay at 2,000 environment steps, at every doubling, and at
    128,000 for the last time. Without, they stay those of 2,000 random steps."""
    seed: Seed = 0
    """Seed of everything random."""
    eval_every: Count = 2_000
    """Environment steps between evaluations, at least 1."""
    eval_episodes: Count = 50
    """Episodes of each evaluation, at least 1. Their initial states are the same every time and are
    never trained on."""
    log_every: Count = 200
    """Environment steps between rows of metrics.csv, at least 1."""
    checkpoint_every: Count = 5_000
    """Environment steps between checkpoints, at least 1."""

    def check(self) -> None:
        """Check every number.

        Raises:
            InputError: names the option and the range it should be in.
        """
        CriticConfig.check(self)
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
