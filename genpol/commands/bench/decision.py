"""`genpol bench decision`: what a robot's decision costs, steered and not, on the CPU or a GPU."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from genpol.commands.wandb_options import WANDB, WandbOptions
from genpol.runs.machine import on_this_machine
from offline.ranges import Count, Seed, Size, Threads

Kind = Literal["diffusion", "flow", "gaussian"]
# The order of help: subject -> fields.
GROUPS: dict[str, tuple[str, ...]] = {
    "what most people need": ("num_candidates", "decisions", "device", "threads", "output"),
    "run": ("policies", "compile", "seed", *WANDB),
}  # fmt: skip
PARTS = ("propose", "encode", "score", "select")


@dataclass(frozen=True)
class BenchDecision(WandbOptions):
    """Measure a robot's decision: milliseconds of one sample, and steered among K.

    From an observation on the CPU to the action there, for one robot. Base and steered take turns.
    The networks have the usual sizes of `genpol clone` and `genpol value`, and untrained weights.
    """

    num_candidates: Size = 32
    """Proposals that are ranked for each decision (K), at least 1."""
    decisions: Count = 200
    """Decisions of each arm, at least 1, in turns of 20."""
    policies: tuple[Literal["diffusion", "flow", "gaussian"], ...] = (
        "diffusion",
        "flow",
        "gaussian",
    )
    """Kinds of policies that propose."""
    compile: bool = False
    """Compile chains and heads with torch.compile, as `genpol train --compile` does."""
    threads: Threads | None = None
    """Threads of PyTorch on the CPU, at least 1. Default: $OMP_NUM_THREADS, else one."""
    device: str | None = None
    """Device of the networks: cpu, cuda, cuda:1, mps or auto. Default: auto, which is cuda where
    there is one, else cpu."""
    seed: Seed = 0
    """Seed of weights and states."""
    output: Path = Path("runs/bench-decision")
    """Run folder."""
    wandb: Literal["online", "offline", "disabled"] = "disabled"
    """Where wandb logs."""


@on_this_machine()
def run(config: BenchDecision) -> None:
    """Time the decisions of each kind of policy; print a table."""
    from genpol.agents.compiled import compile_networks
    from genpol.benchmarks import decision as bench
    from genpol.runs.device import pick_device
    from genpol.runs.quiet import hush
    from genpol.runs.run import Run
    from offline.option_check import check_numbers

    hush()
    check_numbers(config)
    device = pick_device(config.device)
    document: dict[str, Any] = asdict(config) | {"output": str(config.output)}
    final: dict[str, float] = {}
    with Run(config.output, document, command="bench decision", wandb=config.wandb) as folder:
        for kind in dict.fromkeys(config.policies):
            arms = bench.make_arms(kind, config.num_candidates, device, config.seed)
            if config.compile:
                compile_networks([arms.policy, arms.value], device)  # type: ignore[list-item]
            timed = bench.time_decisions(arms, config.decisions, config.seed)
            final |= timed.metrics(kind)
        folder.summary(final)
    print(as_table(final, config.num_candidates, device))


def as_table(metrics: dict[str, float], candidates: int, device: str) -> str:
    """For people."""
    columns = ("base_p50", "steered_p50", "steered_p95", *PARTS)
    lines = [f"milliseconds on {device}, K = {candidates}"]
    lines.append(f"{'policy':12}" + "".join(f"{name.replace('_', ' '):>13}" for name in columns))
    for kind in dict.fromkeys(key.removeprefix("bench/").split("_")[0] for key in metrics):
        cells = [metrics[f"bench/{kind}_{name}_ms"] for name in columns]
        lines.append(f"{kind:12}" + "".join(f"{cell:>13.3f}" for cell in cells))
    return "\n".join(lines)
