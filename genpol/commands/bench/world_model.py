"""`genpol bench world-model`: what learning with a world model costs, beside mbrl-lib."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from genpol.commands.wandb_options import WANDB, WandbOptions
from genpol.runs.machine import on_this_machine
from offline.ranges import Count, Seed, Threads

if TYPE_CHECKING:
    from genpol.commands.train.command import Train

# The order of help: subject -> fields.
GROUPS: dict[str, tuple[str, ...]] = {
    "what most people need": ("env_steps", "pieces", "peer", "output"),
    "size of the work": (
        "explore", "model_every", "model_epochs", "rollouts_per_step", "sac_updates",
        "critic_dtype", "model_dtype",
    ),
    "run": ("threads", "seed", *WANDB),
}  # fmt: skip


@dataclass(frozen=True)
class BenchWorldModel(WandbOptions):
    """Measure MBPO on Hopper: environment steps per CPU-second.

    mbrl-lib is measured beside it with --peer.

    7 models of 4 x 200 with 5 elites, trained by likelihood, termination by Hopper's own rule;
    rollouts of one step; SAC of 2 x 256 with batches of 256, 5 % of them real, one update of the
    actor for each of the critic; no LayerNorm in the critic, as in the peer's. Time
    runs from the first training of the models on.
    """

    env_steps: Count = 250
    """Environment steps that are measured in each piece, a multiple of --model-every."""
    pieces: Count = 2
    """Runs that are measured, each from the start, at least 1. The peer's runs come between
    ours."""
    explore: Count = 5_000
    """Random environment steps at the start, which are not measured; at least the batch size,
    256."""
    model_every: Count = 250
    """Environment steps between trainings of the models, at least 1."""
    model_epochs: Count = 20
    """Passes of each training over the data that the first training sees, at least 1."""
    rollouts_per_step: Count = 400
    """Real states imagined from for each environment step. Times --model-every it must divide by
    the 5 elites."""
    sac_updates: Count = 20
    """Updates of critic and actor for each environment step, at least 1."""
    critic_dtype: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the critic's hidden layers, as in `genpol train`. The peer's is float32."""
    model_dtype: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the models' hidden layers, as in `genpol train`. The peer's is float32."""
    peer: str | None = None
    """Python of an environment with mbrl 0.2.0, which is then measured too; see
    scripts/mbrl_peer.py. Default: none, only ours is measured."""
    threads: Threads | None = None
    """Threads of PyTorch on the CPU, at least 1; the peer gets as many. Default: $OMP_NUM_THREADS,
    else one."""
    seed: Seed = 0
    """Seed of everything random."""
    output: Path = Path("runs/bench")
    """Run folder."""
    wandb: Literal["online", "offline", "disabled"] = "disabled"
    """Where wandb logs."""


def settings(config: BenchWorldModel) -> Train:
    """The run of `genpol train` that is measured.

    Raises:
        InputError: a number is out of its range.
    """
    from genpol.benchmarks.world_model import BATCH, ENV, HELD_OUT, SIZES, model_updates
    from genpol.commands.train.command import Train
    from offline.errors import InputError
    from offline.option_check import check_numbers

    check_numbers(config)
    if config.env_steps % config.model_every:
        raise InputError(
            f"--env-steps must be a multiple of --model-every ({config.model_every}), so that all "
            f"that belongs to a training of the models is measured, received {config.env_steps}"
        )
    if config.explore < BATCH:
        raise InputError(f"--explore must be at least {BATCH}, received {config.explore}")
    if config.rollouts_per_step * config.model_every % SIZES["--elites"]:
        raise InputError(
            "--rollouts-per-step times --model-every must divide by the 5 elites, "
            f"as the peer wants it, received {config.rollouts_per_step} and {config.model_every}"
        )
    first = config.explore + config.model_every - 1
    updates = model_updates(config.explore, config.model_every, config.model_epochs)
    chosen: dict[str, Any] = {
        "agent": "sac",
        "env": ENV,
        "world_model": "mle",
        "known": ("termination",),
        "steps": first + config.env_steps,
        "start_steps": config.explore,
        "update_after": first,
        "model_every": config.model_every,
        "model_updates": updates,
        "model_patience": updates + 1,
        "model_holdout": HELD_OUT,
        "rollouts_per_step": config.rollouts_per_step,
        "imagined_capacity": config.rollouts_per_step * config.env_steps,
        "utd": float(config.sac_updates),
        "policy_utd": float(config.sac_updates),
        "target_entropy": -3.0,
        "layer_norm": False,  # the peer's networks have none
        "actor_layer_norm": False,
        "critic_dtype": config.critic_dtype,
        "model_dtype": config.model_dtype,
        "threads": config.threads,
        "seed": config.seed,
        "output": config.output,
        "videos": 0,
    }
    train = Train.recommended(**chosen)
    train.check()
    return train


@on_this_machine()
def run(config: BenchWorldModel) -> None:
    """Measure ours and, between its pieces, the peer's; write the run folder.

    Raises:
        InputError: a number is out of its range, Hopper is not installed, or the peer fails.
    """
    from genpol.benchmarks import world_model as bench
    from genpol.runs.allocator import keep_freed_memory
    from genpol.runs.processor import measure_speed
    from genpol.runs.quiet import hush
    from genpol.runs.run import Run

    hush()
    train = settings(config)
    options = {
        "--explore": config.explore,
        "--model-every": config.model_every,
        "--epochs": config.model_epochs,
        "--rollouts-per-step": config.rollouts_per_step,
        "--sac-updates": config.sac_updates,
        "--seed": config.seed,
        "--threads": config.threads or 1,
    }
    keep_freed_memory()
    speed = measure_speed()
    document = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(train).items()}
    document |= {k: str(v) if isinstance(v, Path) else v for k, v in asdict(config).items()}
    ours: list[dict[str, float]] = []
    peers: list[dict[str, float]] = []
    loop, envs = make(train)  # refuses what is missing, before the folder is made
    with Run(config.output, document, command="bench world-model", wandb=config.wandb) as folder:
        for piece in range(config.pieces):
            if piece:
                loop, envs = make(train)
            loop.run(train.update_after)
            ours.append(bench.measure(loop, config.env_steps))
            envs.close()
            if config.peer is not None:
                peers.append(bench.measure_peer(config.peer, options, config.env_steps))
            folder.log(piece + 1, bench.compared(ours[-1:], peers[-1:]))
        final = bench.compared(ours, peers) | speed.metrics()
        folder.summary(final)
    print(as_table(final))
    print(speed)


def make(train: Train) -> tuple[Any, Any]:
    """The loop before its first step, and its environments."""
    from genpol.commands.train.inputs import load_inputs
    from genpol.commands.train.wiring import make_loop
    from genpol.runs.rng import seed_everything

    seed_everything(train.seed)
    inputs = load_inputs(train)
    envs = inputs.make_envs()
    return make_loop(train, inputs, envs), envs


def as_table(metrics: dict[str, float]) -> str:
    """For people."""
    both = "bench/peer_env_steps" in metrics
    rows = {
        "environment steps per CPU-second": ("env_steps_per_cpu_s", 1.0, ".2f"),
        "environment step, ms": ("env_step_cpu_s", 1e3, ".1f"),
        "update of SAC, ms": ("sac_update_cpu_s", 1e3, ".2f"),
        "  of the critic, ms": ("critic_update_cpu_s", 1e3, ".2f"),
        "  of the actor, ms": ("actor_update_cpu_s", 1e3, ".2f"),
        "update of the models, ms": ("model_update_cpu_s", 1e3, ".2f"),
        "training of the models, s": ("model_training_cpu_s", 1.0, ".2f"),
        "imagined transition, us": ("rollout_cpu_s", 1e6, ".1f"),
        "environment steps": ("env_steps", 1.0, ".0f"),
        "updates of SAC": ("sac_updates", 1.0, ".0f"),
        "updates of the models": ("model_updates", 1.0, ".0f"),
        "imagined transitions": ("imagined", 1.0, ".0f"),
    }
    lines = [f"{'':36}{'genpol':>10}" + f"{'mbrl':>10}" * both]
    for label, (name, scale, form) in rows.items():
        found = (metrics.get(f"bench/{side}{name}") for side in ("", "peer_")[: 1 + both])
        cells = ("" if value is None else format(scale * value, form) for value in found)
        lines.append((f"{label:36}" + "".join(f"{cell:>10}" for cell in cells)).rstrip())
    if both:
        lines.append(
            f"{metrics['bench/ratio_env_step']:.2f} times mbrl's environment steps per CPU-second "
            f"({metrics['bench/ratio_lowest']:.2f} to {metrics['bench/ratio_highest']:.2f} in "
            f"single pieces)"
        )
    return "\n".join(lines)
