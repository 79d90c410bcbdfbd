"""Settings of the offline-to-online backbone, whatever the agent; light to import."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from offline.option_check import require


@dataclass(frozen=True)
class RLConfig:
    """Of data, critic and loop. Rates are per update, steps are environment steps."""

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
    value_ensemble: int = 10
    """Critic heads (E)."""
    subset: int = 2
    """Heads whose minimum is the target, drawn afresh for every update."""
    hidden: tuple[int, ...] = (256, 256, 256)
    """Units of each hidden layer of critic and actor."""
    lr: float = 3e-4
    """Learning rate of critic, actor and edit policy."""
    target_rate: float = 0.005
    """Step of the target critic towards the critic."""
    critic_dtype: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the critic's hidden layers in training; weights stay float32, and so does
    every score that candidates are ranked by."""
    layer_norm: bool = True
    """LayerNorm in the critic's hidden layers, but for `lipschitz="spectral"`, which excludes it.
    It keeps values of unseen actions from growing; MBPO, VaGraM and RAVL are published without."""
    value_diversity: float = 0.0
    """Weight of the diversity of the heads' action gradients (EDAC, RAVL); 0 is off."""
    lipschitz: Literal["none", "spectral", "adversarial"] = "none"
    """Bound the critic's Lipschitz constant: "spectral" normalises its layers, "adversarial"
    penalises how much a small change of the state changes the value."""
    lipschitz_bound: float = 1.0
    """Largest singular value of each layer (c, spectral)."""
    lipschitz_weight: float = 0.1
    """Of the penalty (lambda, adversarial)."""
    lipschitz_radius: float = 0.1
    """Largest change of each standardised state dimension (epsilon, adversarial)."""
    lipschitz_attack: Literal["fgsm", "pgd", "uniform"] = "fgsm"
    """How the change is found: one step along the gradient's sign, several, or at random."""
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
        for name in (
            "batch_size", "action_chunk", "replay_capacity", "num_envs", "value_ensemble", "subset",
            "eval_every", "eval_episodes", "log_every", "checkpoint_every",
        ):  # fmt: skip
            require(self, name, getattr(self, name) >= 1, "at least 1")
        for name in ("steps", "start_steps", "update_after", "offline_updates", "random_shift"):
            require(self, name, getattr(self, name) >= 0, "at least 0")
        for name in ("value_diversity", "lipschitz_weight"):
            require(self, name, getattr(self, name) >= 0, "at least 0")
        for name in (
            "utd", "policy_utd", "reward_scale", "lr", "memory_gb", "lipschitz_bound",
            "lipschitz_radius",
        ):  # fmt: skip
            require(self, name, getattr(self, name) > 0, "above 0")
        for name in ("offline_fraction", "imagined_fraction"):
            require(self, name, 0 <= getattr(self, name) <= 1, "between 0 and 1")
        require(self, "discount", 0 <= self.discount < 1, "at least 0 and below 1")
        require(self, "target_rate", 0 < self.target_rate <= 1, "above 0 and at most 1")
        require(self, "subset", self.subset <= self.value_ensemble, "at most --value-ensemble")
        require(
            self, "hidden", bool(self.hidden) and min(self.hidden) >= 1, "one or more sizes above 0"
        )
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
