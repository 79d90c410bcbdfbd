"""The options of `genpol train`, what they are when not given, and their checks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from genpol.agents.config import FAITHFUL, RECORDED, TrainConfig, usual
from genpol.agents.tuning_checks import check_tuning
from genpol.commands.dataset_options import paths
from genpol.commands.wandb_options import WANDB, WandbOptions
from offline.errors import InputError, did_you_mean
from offline.ranges import Amount, Count, Few, Positive, Size, Threads

Preset = Literal["default", "faithful"]
PRESETS: dict[Preset, dict[str, Any]] = {"default": {}, "faithful": FAITHFUL}
# What a run may go on with differently; everything else would make it another run.
CHANGEABLE = (
    "steps", "eval_every", "log_every", "checkpoint_every", "videos", "wandb", "device", "threads",
    "env_workers", "compile", "trust",
    "lr", "base_lr", "model_lr", "utd",  # which keep a run that diverged from doing so again
)  # fmt: skip
# The order of help: subject -> fields.
GROUPS: dict[str, tuple[str, ...]] = {
    "what most people need": (
        "env", "data", "base", "value", "agent", "steps", "reward", "action_chunk", "utd",
        "num_candidates", "world_model", "seed", "device", "output", "resume",
    ),
    "agent": (
        "preset", "policy", "denoising_steps", "network", "features", "width", "base_lr",
        "base_ema", "base_filter", "pretrain_steps", "edits", "edit_scale", "adaptive_edit_scale",
        "edit_scale_lr", "clip_edits", "edit_layer_norm", "edit_entropy", "init_temperature",
        "target_entropy", "act_select", "act_temperature", "candidates", "candidate_dtype",
        "cache_age", "backup_uses_average", "actor_layer_norm", "expectile", "fql_alpha",
        "noise_bound",
    ),
    "fine-tuning by reward (prdp, grpo, ddpo, rtb, prdp-forward, nft, awm)": (
        "beta", "kl_cap", "clip", "group_size", "groups", "layouts", "inner_steps", "sampler",
        "noise_level", "step_weights", "kl_weight", "draws", "loss_weight", "mix",
    ),
    "critic": (
        "value_ensemble", "subset", "hidden", "lr", "layer_norm", "critic_dtype", "target_rate",
        "discount", "n_step", "backup", "entropy_backup", "critic_pretrain",
        "critic_pretrain_steps",
    ),
    "world model": (
        "imagined_fraction", "ensemble", "elites", "model_hidden", "model_dtype", "model_lr",
        "model_weight_decay", "model_batch_size", "model_every", "model_updates",
        "model_patience", "model_holdout", "known", "rollout_lengths", "rollout_schedule",
        "rollouts_per_step", "imagined_keep", "imagined_capacity", "vagram_clip", "vagram_warmup",
    ),
    "bounds on values": (
        "lipschitz", "lipschitz_bound", "lipschitz_weight", "lipschitz_radius",
        "lipschitz_attack", "value_diversity",
    ),
    "observations, environment and reward": (
        "success", "obs_keys", "image_keys", "image_size", "image_encoder", "random_shift",
        "num_envs", "env_workers", "max_steps", "distractors", "reward_scale", "follow_statistics",
    ),
    "learning": (
        "batch_size", "policy_utd", "data_weights", "offline_fraction", "offline_updates",
        "start_steps", "update_after", "replay_capacity", "memory_gb",
    ),
    "evaluation": ("eval_every", "eval_episodes", "videos"),
    "run": ("log_every", "checkpoint_every", "compile", "threads", "trust", *WANDB),
}  # fmt: skip


@dataclass(frozen=True)
class Train(TrainConfig, WandbOptions):
    """Improve a policy by reinforcement learning, offline to online (EXPO, peers).

    --agent, --world-model, --data and --preset change the defaults of other options. Help shows the
    defaults beside them: `genpol train --agent sac --help`.
    """

    env: str | None = None
    """Environment to act in: metaworld/pick-place-v3, an OGBench or gymnasium id, or module:name of
    one of yours. Default: the environment that --data was collected in."""
    data: tuple[str, ...] = ()
    """Demonstrations, and episodes of one's own: .hdf5 files, LeRobot folders, recordings of
    `genpol serve --record`, minari:NAME, or module:function@PATH of a reader of yours. Default:
    none; the agent learns from --base, or from scratch (see --start-steps)."""
    data_weights: tuple[Positive, ...] = ()
    """Share of --offline-fraction that each --data gives, in any unit, above 0. Default: equal
    shares, whatever the datasets' sizes."""
    success: tuple[str, ...] = ()
    """Who says which episodes succeeded: all, last-reward, a FILE.csv of labels, or module:function
    of each episode. One for all --data, or one for each, where "data" is the default. Default:
    labels.csv in the folder of --data, else what the dataset says."""
    image_size: Size | None = None
    """Height and width that the pictures of --data are resized to, at least 1. Default: as they are
    stored."""
    base: str | None = None
    """Policy to start from: a folder of `genpol clone`, or robomimic:FILE, octo:DIR, lerobot:DIR,
    module:function or ws://HOST:PORT, which stay frozen. "recorded" is the policy that a recording
    in --data was made with, which is not asked again. Default: a policy cloned from --data."""
    value: str | None = None
    """Critic to start from: a folder of `genpol value`. It is the reward of prdp and its peers, and
    stays as it is there. Default: a new critic."""
    preset: Preset = "default"
    """Set of defaults. "faithful" has the settings of EXPO's released code."""
    max_steps: Count | None = None
    """Steps after which an episode is cut off. Default: the environment's own limit."""
    distractors: Few = 0
    """Meaningless dimensions added to the observations; no action changes them."""
    env_workers: Few = 0
    """Environments of --num-envs that compute at the same time, each in a process of its own, at
    most --num-envs. 0 steps them one after the other in this process. The numbers are the same."""
    videos: Amount = 0
    """Evaluation episodes filmed before training and at the end."""
    trust: bool = False
    """Load checkpoints that are pickles. A pickle can run code when it is opened."""
    device: str | None = None
    """Device of the networks: cpu, cuda, cuda:1, mps or auto. Default: auto, which is cuda where
    there is one, else cpu."""
    compile: bool = False
    """Compile chains, trunks and critic heads with torch.compile. The first updates take a minute
    or so, later ones less time on a GPU. Numbers differ in their last bits."""
    threads: Threads | None = None
    """Threads of PyTorch on the CPU, at least 1. Default: $OMP_NUM_THREADS, else one for small
    networks, and for images or wide layers as many as a measurement at the start finds faster."""
    output: Path = Path("runs/train")
    """Run folder. The policy is left in its policy/ and the critic in its value/."""
    resume: Path | None = None
    """Run folder to go on with, bit for bit. --steps may be raised. --lr, --base-lr, --model-lr and
    --utd may be others, where the run diverged. Default: a new run."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "data", paths(self.data))
        object.__setattr__(self, "success", paths(self.success))

    @classmethod
    def recommended(cls, **options: Any) -> Train:
        """`Train(**options)`, in which the options that are not given have the defaults that
        `genpol train` would give them: those recommended for the agent, the world model, data
        or none, and the preset. Data that is passed as an object is not seen here: say
        `offline_fraction` beside it.

        Raises:
            InputError: no such preset.
            TypeError: no such option.
        """
        plain = cls(**options)
        if plain.preset not in PRESETS:
            raise InputError(f'no preset "{plain.preset}".{did_you_mean(plain.preset, PRESETS)}')
        chosen = usual(plain.agent, plain.world_model, data=bool(plain.data))
        return cls(**(chosen | PRESETS[plain.preset] | options))


def defaults(given: Train) -> Train:
    """The defaults of the options that were not given beside `given`, see `Train.recommended`.

    With --resume they are the plain ones: the others are read from the run that goes on.
    """
    if given.resume:
        return Train(**{"preset": given.preset} | PRESETS[given.preset])
    return Train.recommended(
        agent=given.agent, world_model=given.world_model, data=given.data, preset=given.preset
    )


def require_preset(config: Train) -> None:
    """Check that --preset has been applied, which happens where the command line is read.

    Raises:
        InputError: none of its settings is in `config`.
    """
    preset, usual = PRESETS[config.preset], Train()
    telling = {k: v for k, v in preset.items() if v != getattr(usual, k, v)}
    if telling and not any(getattr(config, name) == v for name, v in telling.items()):
        raise InputError(
            f'preset="{config.preset}" alone changes nothing in Python: pass '
            f'Train.recommended(preset="{config.preset}", ...) instead'
        )


def check(config: Train) -> None:
    """Check what needs no loading.

    Raises:
        InputError: names the option.
    """
    config.check()
    if config.env is None and not config.data:
        raise InputError("--env is needed: the environment to act in, such as metaworld/push-v3")
    if config.env_workers > config.num_envs:
        raise InputError(
            f"--env-workers {config.env_workers} is more than there are environments: pass at most "
            f"--num-envs, which is {config.num_envs}"
        )
    modelled = config.world_model != "none"
    if not modelled and config.imagined_fraction:
        raise InputError(
            f"--imagined-fraction {config.imagined_fraction} needs a --world-model: name one"
        )
    if modelled and not config.imagined_fraction:
        raise InputError(
            f"--world-model {config.world_model} would be trained and never used: "
            "--imagined-fraction is 0"
        )
    for name in ("world_model", "lipschitz"):
        if config.agent == "bc" and getattr(config, name) != "none":
            raise InputError(
                f"--{name.replace('_', '-')} {getattr(config, name)} is for values, and --agent bc "
                "learns none: drop it, or use another agent"
            )
    check_tuning(config)
    check_recorded(config)
    if config.agent in ("sac", "rlpd") and config.base:
        raise InputError(f"--agent {config.agent} has no base policy: drop --base, or use expo")


def check_recorded(config: Train) -> None:
    """Check that nothing is asked of --base recorded but what was recorded.

    Raises:
        InputError: something is; names the option.
    """
    if config.base != RECORDED:
        return
    if config.agent not in ("expo", "bestofn"):
        raise InputError(
            f"--agent {config.agent} needs the base policy itself: --base recorded is for expo and "
            "bestofn"
        )
    if config.steps or not config.offline_updates:
        raise InputError(
            "--base recorded learns from a recording alone: pass --data DIR, --steps 0 and "
            "--offline-updates N"
        )
    for name, none in (("world_model", "none"), ("candidates", "chain"), ("videos", 0)):
        if (given := getattr(config, name)) != none:
            raise InputError(
                f"--{name.replace('_', '-')} {given} asks the base policy, which --base recorded "
                "does not have: leave it out"
            )
