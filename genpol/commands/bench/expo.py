"""`genpol bench expo`: what EXPO's learning costs, in CPU-seconds, part by part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from genpol.agents.config import FAITHFUL, TrainConfig, with_preset
from genpol.commands.wandb_options import WANDB, WandbOptions
from genpol.runs.machine import on_this_machine
from offline.ranges import Amount, Count, Seed, Threads

if TYPE_CHECKING:
    from genpol.benchmarks.expo import Parts

# The problem that both presets solve: obs 39, act 4 (`genpol.benchmarks.expo`) and these numbers.
PROBLEM: dict[str, Any] = {
    "agent": "expo",
    "batch_size": 256,
    "utd": 20.0,
    "num_candidates": 8,
    "edits": 1,
    "denoising_steps": 10,
    "value_ensemble": 10,
    "subset": 2,
    "hidden": (256, 256, 256),
    "action_chunk": 1,
}

# The settings of EXPO's learning that may be measured otherwise than the preset has them.
CHOICES = ("candidates", "candidate_dtype", "critic_dtype", "cache_age")
BEARABLE = 8.0  # times float32's seconds up to which choices in bfloat16 are compared, too
# The order of help: subject -> fields.
GROUPS: dict[str, tuple[str, ...]] = {
    "what most people need": ("preset", "env_steps", "learn_steps", "threads", "device", "output"),
    "learning": CHOICES,
    "run": ("compile", "seed", *WANDB),
}  # fmt: skip
# What help shows for settings that --preset decides.
DEFAULT_TEXTS = dict.fromkeys(CHOICES, "what --preset says")


@dataclass(frozen=True)
class BenchExpo(WandbOptions):
    """Measure EXPO's learning: CPU-seconds per critic update and per step.

    Batch 256, 20 critic updates per environment step, 8 samples and 8 edits for each target, 10
    denoising steps, ten critics of 3 x 256, observations of 39 numbers and actions of 4. An
    environment step is the choice of an action, the critic's updates, and one update each of base
    policy, edit policy and temperature; the simulator is not included.
    """

    preset: Literal["faithful", "fast"] = "fast"
    """What is measured: EXPO with the settings of its released code and its published network
    (faithful), or with the defaults of `genpol train` (fast)."""
    env_steps: Count = 5
    """Environment steps that are measured, at least 1. One more warms up."""
    learn_steps: Amount = 500
    """Updates before the choices of cheaper candidates are compared with the full chain's. 0 leaves
    the comparison out."""
    candidates: Literal["chain", "two-step", "student", "noise-filter"] | None = None
    """Where targets get base candidates from, as in `genpol train`."""
    candidate_dtype: Literal["float32", "bfloat16"] | None = None
    """Arithmetic of the candidate chain, as in `genpol train`."""
    critic_dtype: Literal["float32", "bfloat16"] | None = None
    """Arithmetic of the critic's hidden layers, as in `genpol train`."""
    cache_age: Amount | None = None
    """Updates for which base candidates are reused, as in `genpol train`. A few steps fill little
    of a cache, so its saving does not show here."""
    threads: Threads | None = None
    """Threads of PyTorch on the CPU, at least 1. Default: $OMP_NUM_THREADS, else one."""
    device: str | None = None
    """Device of the networks: cpu, cuda, cuda:1, mps or auto. Default: auto, which is cuda where
    there is one, else cpu."""
    compile: bool = False
    """Compile chains, trunks and critic heads, as `genpol train --compile` does."""
    seed: Seed = 0
    """Seed of everything random."""
    output: Path = Path("runs/bench")
    """Run folder."""
    wandb: Literal["online", "offline", "disabled"] = "disabled"
    """Where wandb logs."""


def settings(config: BenchExpo) -> TrainConfig:
    """The settings that are measured."""
    train = with_preset(TrainConfig(seed=config.seed), PROBLEM, set())
    if config.preset == "faithful":
        train = with_preset(train, FAITHFUL, set())
    given = {name: getattr(config, name) for name in CHOICES if getattr(config, name) is not None}
    return replace(train, **given)


@on_this_machine()
def run(config: BenchExpo) -> None:
    """Measure the first update, then whole environment steps, then compare choices."""
    import time

    import torch

    from genpol.agents.compiled import compile_networks
    from genpol.benchmarks import expo as bench
    from genpol.runs.allocator import keep_freed_memory
    from genpol.runs.device import pick_device
    from genpol.runs.measure import count_flop
    from genpol.runs.processor import measure_speed, times_slower
    from genpol.runs.quiet import hush
    from genpol.runs.run import Run
    from offline.option_check import check_numbers

    hush()
    check_numbers(config)
    keep_freed_memory()
    device, speed = pick_device(config.device), measure_speed()
    train = settings(config)
    train.check()
    document = {f.name: getattr(train, f.name) for f in fields(train)} | asdict(config)
    with Run(config.output, document, command="bench expo", wandb=config.wandb) as folder:
        agent = bench.make_bench_agent(train, device)
        task = bench.ToyTask(bench.OFFLINE_ROWS + bench.REPLAY_SLOTS, device, config.seed)
        torch.manual_seed(config.seed)  # draws the batches
        generator = torch.Generator().manual_seed(config.seed)
        if config.compile:
            compile_networks(agent.networks(), device)
        agent.update_critic(task.sample(train.batch_size), generator)
        final = {
            "bench/first_update_s": bench.seconds_since_start(),
            "bench/first_update_cpu_s": time.process_time(),
        }
        bench.env_step(agent, task, train, generator)
        batch = task.sample(train.batch_size)
        flop = count_flop(lambda: agent.update_critic(batch, generator))
        measured: list[Parts] = []
        for step in range(config.env_steps):
            with bench.Parts(agent, device) as parts, parts.part("env_step"):
                bench.env_step(agent, task, train, generator)
            folder.log(step + 1, results([parts], train.utd))
            measured.append(parts)
        if device != "cpu":
            final["bench/env_step_unclocked_wall_s"] = seconds_a_step(
                lambda: bench.env_step(agent, task, train, generator), config.env_steps, device
            )
        final |= results(measured, train.utd) | speed.metrics()
        final["bench/critic_update_gflop"] = flop / 1e9
        if device == "cpu" and train.candidate_dtype == train.critic_dtype == "float32":
            final["bench/speed_share"] = speed.share(flop, final["bench/critic_update_cpu_s"])
        if config.learn_steps:
            bench.learn(agent, task, train, config.learn_steps, generator)
            low = device != "cpu" or times_slower("bfloat16") < BEARABLE
            final |= bench.agreements(agent, task, train.num_candidates, low=low)
        folder.summary(final)
    print(as_table(final))
    print(speed)


def seconds_a_step(step: Callable[[], None], count: int, device: str) -> float:
    """Wall-clock seconds of a step, the mean of some in a row."""
    import time

    from genpol.runs.measure import synchronise

    synchronise(device)
    began = time.perf_counter()
    for _ in range(count):
        step()
    synchronise(device)
    return (time.perf_counter() - began) / count


def results(measured: list[Parts], utd: float) -> dict[str, float]:
    """Means over environment steps; see docs/metrics.md."""
    out = {}
    for clock, unit in (("cpu", "cpu_s"), ("wall", "wall_s")):
        seconds: dict[str, float] = {}
        for parts in measured:
            for part, spent in getattr(parts, clock).items():
                seconds[part] = seconds.get(part, 0.0) + spent / len(measured)
        out[f"bench/env_step_{unit}"] = seconds.pop("env_step")
        out[f"bench/critic_update_{unit}"] = seconds.pop("critic_update") / utd
        if clock == "cpu":
            out |= {f"bench/part_{part}_{unit}": spent for part, spent in seconds.items()}
    return out


def as_table(metrics: dict[str, float]) -> str:
    """For people."""
    rows = {
        "critic update": "critic_update",
        "environment step": "env_step",
        "first update, from the start": "first_update",
    }
    lines = [f"{'seconds':32}{'CPU':>8}{'wall':>8}"]
    for label, name in rows.items():
        wall = metrics.get(f"bench/{name}_wall_s", metrics.get(f"bench/{name}_s", float("nan")))
        lines.append(f"{label:32}{metrics[f'bench/{name}_cpu_s']:>8.3f}{wall:>8.3f}")
    if (share := metrics.get("bench/speed_share")) is not None:
        gflop = metrics["bench/critic_update_gflop"]
        lines.append(f"a critic update is {gflop:.3g} GFLOP: {share:.0%} of this machine's float32")
    if (seconds := metrics.get("bench/env_step_unclocked_wall_s")) is not None:
        lines.append(f"{'environment step, parts not timed':32}{'':8}{seconds:>8.3f}")
    lines.append("of an environment step, CPU:")
    for name, value in metrics.items():
        if name.startswith("bench/part_"):
            label = name.removeprefix("bench/part_").removesuffix("_cpu_s").replace("_", " ")
            lines.append(f"  {label:30}{value:>8.3f}")
    for name, value in metrics.items():
        if name.startswith("bench/agreement_"):
            label = name.removeprefix("bench/agreement_").replace("_", " ")
            lines.append(f"{'same choice as full chain, ' + label:40}{value:>8.1%}")
    return "\n".join(lines)
