"""The options of `genpol train`, what they are when not given, and their checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from genpol.agents.config import FAITHFUL, TrainConfig, usual

Preset = Literal["default", "faithful"]
PRESETS: dict[Preset, dict[str, Any]] = {"default": {}, "faithful": FAITHFUL}
# What a run may go on with differently; everything else would make it another run.
CHANGEABLE = (
    "steps", "eval_every", "log_every", "checkpoint_every", "videos", "wandb", "device", "trust",
)  # fmt: skip


@dataclass(frozen=True)
class Train(TrainConfig):
    """Improve a policy by reinforcement learning, offline to online (EXPO and its peers)."""

    env: str | None = None
    """Environment, such as metaworld/pick-place-v3; default the one --data was collected in."""
    data: str | None = None
    """Demonstrations: a .hdf5 file, a LeRobot folder, or minari:NAME. Without, learn from scratch
    (see --start-steps) or from --base alone."""
    base: str | None = None
    """Start from this policy: folder of `genpol clone`, or a black box, which stays frozen:
    robomimic:FILE, octo:DIR, lerobot:DIR, module:function, ws://..."""
    value: str | None = None
    """Start the critic from this folder of `genpol value`."""
    preset: Preset = "default"
    """"faithful": settings of EXPO's released code; options given beside it win."""
    max_steps: int | None = None
    """Time limit of an episode; default the environment's."""
    distractors: int = 0
    """State dimensions added to the observations that neither depend on actions nor matter."""
    videos: int = 0
    """Evaluation episodes filmed before training and at the end."""
    trust: bool = False
    """Load checkpoints that are pickles, which can run code when they are opened."""
    device: str | None = None
    """cpu, cuda, cuda:1, mps; default cuda where there is one."""
    output: Path = Path("runs/train")
    """Run folder; the policy is in its policy/, the critic in its value/."""
    resume: Path | None = None
    """Continue the run in this folder, bit for bit; --steps may be raised."""
    wandb: Literal["online", "offline", "disabled"] | None = None
    """Where wandb logs; default online when logged in, else offline."""


def defaults(words: Sequence[str]) -> Train:
    """What the options are when they are not given: those of --preset, if that is given, and what
    is usual for --agent and --world-model."""
    plain = Train()
    preset = _said(words, "--preset", plain.preset)
    settings: dict[str, Any] = {}
    if not _said(words, "--resume", ""):  # else they are those of the run that goes on
        settings = usual(
            _said(words, "--agent", plain.agent),
            _said(words, "--world-model", plain.world_model),
            data=bool(_said(words, "--data", "")),
        )
    if preset in PRESETS:
        settings |= {"preset": preset} | PRESETS[preset]
    return replace(plain, **settings)


def _said(words: Sequence[str], option: str, default: str) -> Any:
    """The word after an option, or after its equals sign; the last one counts, as in parsing."""
    said = default
    for before, word in pairwise(("", *words)):
        if before.replace("_", "-") == option:
            said = word
        name, equals, value = word.partition("=")
        if equals and name.replace("_", "-") == option:
            said = value
    return said


def require_preset(config: Train) -> None:
    """Check that --preset has been applied, which happens where the command line is read.

    Raises:
        InputError: none of its settings is in `config`.
    """
    from offline.errors import InputError

    preset, usual = PRESETS[config.preset], Train()
    telling = {k: v for k, v in preset.items() if v != getattr(usual, k, v)}
    if telling and not any(getattr(config, name) == v for name, v in telling.items()):
        raise InputError(
            f'preset="{config.preset}" alone changes nothing in Python: pass '
            'Train(**PRESETS["faithful"] | options) instead'
        )


def check(config: Train) -> None:
    """Check what needs no loading.

    Raises:
        InputError: names the option.
    """
    from offline.errors import InputError

    config.check()
    if config.env is None and config.data is None:
        raise InputError("--env is needed: the environment to act in, such as metaworld/push-v3")
    if config.videos < 0:
        raise InputError(f"--videos must be at least 0, received {config.videos}")
    if config.distractors < 0:
        raise InputError(f"--distractors must be at least 0, received {config.distractors}")
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
    if config.agent in ("sac", "rlpd") and config.base:
        raise InputError(f"--agent {config.agent} has no base policy: drop --base, or use expo")
