"""The options of `genpol steer`, and their checks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Gt, Le

from genpol.commands.chunk_options import CHUNKS, ChunkOptions, check_chunks
from genpol.commands.wandb_options import WANDB, WandbOptions
from offline.ranges import Amount, Count, Finite, NotNegative, Seed, Size, Threads

Arm = Literal["base", "steered", "mode", "random"]
ARMS: tuple[Arm, ...] = ("base", "steered", "mode", "random")
# The order of help: subject -> fields.
GROUPS: dict[str, tuple[str, ...]] = {
    "what most people need": (
        "policy", "value", "env", "num_candidates", "temperature", "tune", "episodes", "videos",
        "seed", "output",
    ),
    "choice": (
        "margin", "gate", "value_weights", "candidate_noise", "deadline_ms", "any_task",
    ),
    "chunks": CHUNKS,
    "comparison": ("arms", "filtered", "parallel"),
    "environment and instruction": ("max_steps", "instruction", "language_model"),
    "run": ("device", "threads", "trust", *WANDB),
}  # fmt: skip


@dataclass(frozen=True)
class Steer(WandbOptions, ChunkOptions):
    """Evaluate a policy with and without value steering, on paired episodes."""

    policy: str
    """Policy to steer: a folder of `genpol clone` or `genpol train`, or robomimic:FILE, octo:DIR,
    lerobot:DIR, module:function or ws://HOST:PORT."""
    value: tuple[str, ...]
    """Folders of `genpol value` or `genpol train` to choose by. Scores of several values are
    standardised over the candidates and summed with --value-weights."""
    value_weights: tuple[Finite, ...] = ()
    """Weight of each value. A negative one avoids what that value rates highly. Default: equal."""
    env: str | None = None
    """Environment to act in: metaworld/pick-place-v3, an OGBench or gymnasium id, or module:name of
    one of yours. Default: the environment that the value was trained on."""
    num_candidates: Size = 32
    """Proposals that are ranked for each decision (K), at least 1."""
    temperature: NotNegative = 1.0
    """Temperature of the choice by softmax(value / temperature), in units of the value, at least 0.
    0 takes the best."""
    margin: NotNegative | None = None
    """Choose the best proposal only where it beats the base policy's own sample by this much, in
    units of the value, at least 0. This replaces --temperature. Default: off."""
    gate: NotNegative | None = None
    """Keep the base policy's own sample where the critics disagree by more than this, in units of
    the value, at least 0. Default: off."""
    candidate_noise: NotNegative = 0.0
    """Candidates around the policy's proposal, for policies that always propose the same (ACT, an
    L1 or MSE head): the policy is asked once, and the others lie at most this far from its answer,
    in standard deviations of the data, at least 0. 0 asks the policy for all candidates."""
    tune: str | None = None
    """Dataset whose held-out episodes choose temperature and gate. --margin and --gate cannot be
    given beside it. Default: off."""
    deadline_ms: Annotated[float, Gt(0), Le(1e9)] | None = None
    """Milliseconds for a decision, above 0. Only as many candidates are proposed as fit in it.
    Default: no limit."""
    filtered: str | None = None
    """Clone of the successful episodes alone (`genpol clone --filter success`), run as one more
    arm. Default: none."""
    episodes: Count = 50
    """Episodes of each arm, at least 1. All arms begin them in the same states."""
    arms: tuple[Arm, ...] = ARMS
    """What is compared. base and steered always are."""
    parallel: Size = 50
    """Episodes run side by side, at least 1. They share one noise stream, so results depend on
    this."""
    max_steps: Count | None = None
    """Steps after which an episode is cut off. Default: the environment's own limit."""
    instruction: str | None = None
    """What the policy is told to do. Default: the environment's own instruction."""
    language_model: str = "shipped"
    """Sentence encoder for a value trained with language: "shipped", or a folder."""
    videos: Amount = 4
    """Episodes filmed, base and steered side by side."""
    seed: Seed = 0
    """Seed of initial states and noise."""
    device: str | None = None
    """Device of the networks: cpu, cuda, cuda:1, mps or auto. Default: auto, which is cuda where
    there is one, else cpu."""
    threads: Threads | None = None
    """Threads of PyTorch on the CPU, at least 1. Default: $OMP_NUM_THREADS, else one for small
    networks, and for images or wide layers as many as a measurement at the start finds faster."""
    trust: bool = False
    """Load checkpoints that are pickles. A pickle can run code when it is opened."""
    any_task: bool = False
    """Allow a value that was trained on another environment."""
    output: Path = Path("runs/steer")
    """Run folder: summary.json, episodes.csv, index.html and videos/."""


def check(config: Steer) -> None:
    """Check what needs no loading.

    Raises:
        InputError: names the flag.
    """
    from offline.errors import InputError
    from offline.option_check import check_numbers

    check_numbers(config)
    check_chunks(config, valued=True)
    if config.value_weights and len(config.value_weights) != len(config.value):
        raise InputError(
            f"{len(config.value_weights)} --value-weights for {len(config.value)} values"
        )
    if config.tune and config.gate is not None:
        raise InputError("--tune chooses the gate itself; drop --gate or --tune")
    if config.tune and config.margin is not None:
        raise InputError("--tune chooses a temperature, which --margin replaces; drop one of them")
