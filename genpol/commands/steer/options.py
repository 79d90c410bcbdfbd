"""The options of `genpol steer`, and their checks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Arm = Literal["base", "steered", "mode", "random"]
ARMS: tuple[Arm, ...] = ("base", "steered", "mode", "random")


@dataclass(frozen=True)
class Steer:
    """Evaluate a policy with and without value steering, on paired episodes."""

    policy: str
    """Folder of `genpol clone`, robomimic:FILE, octo:DIR, lerobot:DIR, module:function, ws://..."""
    value: tuple[str, ...]
    """Folder of `genpol value`; several are composed."""
    value_weights: tuple[float, ...] = ()
    """Weights of several values; default equal."""
    env: str | None = None
    """Environment, such as metaworld/push-v3; default the one the value was trained on."""
    num_candidates: int = 32
    """Proposals that are ranked (K)."""
    temperature: float = 1.0
    """Choose by softmax(value / temperature), in units of value; 0 takes the best."""
    margin: float | None = None
    """Keep the base's own sample unless another is better by this much; replaces --temperature."""
    gate: float | None = None
    """Fall back to the base's sample where the critics disagree by more than this."""
    tune: str | None = None
    """Dataset whose held-out episodes choose temperature and gate; then neither is given."""
    deadline_ms: float | None = None
    """Propose only as many candidates as fit in this time."""
    filtered: str | None = None
    """A clone of the successful episodes alone, as one more arm (genpol clone --filter success)."""
    episodes: int = 50
    """Paired episodes."""
    arms: tuple[Arm, ...] = ARMS
    """What is compared; base and steered always are."""
    parallel: int = 50
    """Episodes side by side; results depend on it, as they share one noise stream."""
    max_steps: int | None = None
    """Time limit of an episode; default the environment's."""
    instruction: str | None = None
    """What the policy is told to do; default the environment's own."""
    language_model: str = "shipped"
    """Sentence embedding for a value trained with language: "shipped", or a folder."""
    videos: int = 4
    """Episodes filmed side by side, base and steered."""
    seed: int = 0
    """Seed of initial states and noise."""
    trust: bool = False
    """Load checkpoints that are pickles, which can run code when they are opened."""
    any_task: bool = False
    """Use a value trained on another environment."""
    output: Path = Path("runs/steer")
    """Run folder: summary.json, episodes.csv, index.html, videos/."""
    wandb: Literal["online", "offline", "disabled"] | None = None
    """Where wandb logs; default online when logged in, else offline."""


def check(config: Steer) -> None:
    """Check what needs no loading.

    Raises:
        InputError: names the flag.
    """
    from offline.errors import InputError

    for name in ("num_candidates", "episodes", "parallel"):
        if getattr(config, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} must be at least 1")
    if config.temperature < 0:
        raise InputError(f"--temperature must not be negative, received {config.temperature:g}")
    if config.margin is not None and config.margin < 0:
        raise InputError(f"--margin must not be negative, received {config.margin:g}")
    if config.value_weights and len(config.value_weights) != len(config.value):
        raise InputError(
            f"{len(config.value_weights)} --value-weights for {len(config.value)} values"
        )
    if config.tune and config.gate is not None:
        raise InputError("--tune chooses the gate itself; drop --gate or --tune")
    if config.tune and config.margin is not None:
        raise InputError("--tune chooses a temperature, which --margin replaces; drop one of them")
