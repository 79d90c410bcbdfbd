"""`genpol bench beside`: how work fares beside other programs that keep the processors busy."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from genpol.commands.wandb_options import WANDB, WandbOptions
from offline.ranges import Count, Positive, Seed, Threads

if TYPE_CHECKING:
    from genpol.benchmarks.beside import Child

# Work -> its name in the table, and the unit of its times.
WORKS = {
    "decision": ("decision, one after another", 1e3, "ms"),
    "paced": ("decision, at --rate", 1e3, "ms"),
    "expo_step": ("EXPO step", 1.0, "s"),
    "epoch": ("fine-tuning epoch", 1.0, "s"),
}
# (arm and "idle" or "beside", work) -> wall-clock seconds, and CPU-seconds per call.
Found = dict[tuple[str, str], dict[str, list[float]]]
LATENCY, CPU = 4.0, 1.3  # targets: p95 beside over idle p50, and CPU-seconds beside over idle
# The order of help: subject -> fields.
GROUPS: dict[str, tuple[str, ...]] = {
    "what most people need": ("rounds", "busy", "busy_threads", "usual", "threads", "output"),
    "size of the work": (
        "decisions", "paced_decisions", "rate", "expo_steps", "utd", "epochs", "prompts_per_epoch",
    ),
    "run": ("seed", *WANDB),
}  # fmt: skip


@dataclass(frozen=True)
class BenchBeside(WandbOptions):
    """Measure decisions, an EXPO step and a fine-tuning epoch beside busy programs.

    Idle and beside take turns. The busy programs are processes of PyTorch that multiply matrices
    without a pause. A decision is that of the shipped flow policy with 32 proposals, steered by the
    shipped value, for one robot. The step is that of `genpol bench expo`, the epoch that of the
    shipped pipeline. With --usual the same is measured as PyTorch comes: with its own number of
    threads, which spin while they wait.
    """

    rounds: Count = 2
    """Turns of idle and beside, at least 1."""
    busy: Count = 2
    """Busy programs, at least 1."""
    busy_threads: Threads = 2
    """Threads of each, at least 1."""
    usual: bool = True
    """Measure as PyTorch comes, too. This takes minutes beside the busy programs."""
    threads: Threads | None = None
    """Threads of PyTorch on the CPU, at least 1. Default: those that commands take."""
    decisions: Count = 200
    """Decisions of each turn, at least 1."""
    paced_decisions: Count = 50
    """Decisions of each turn that are made at --rate, at least 1."""
    rate: Positive = 10.0
    """Decisions per second of a robot that executes chunks in between, above 0."""
    expo_steps: Count = 1
    """Environment steps of each turn, at least 1."""
    utd: Count = 20
    """Critic updates of an environment step, at least 1."""
    epochs: Count = 1
    """Fine-tuning epochs of each turn, at least 1."""
    prompts_per_epoch: Count = 4
    """Prompts of an epoch, at least 1, with 8 images each."""
    seed: Seed = 0
    """Seed of everything random."""
    output: Path = Path("runs/bench")
    """Run folder."""
    wandb: Literal["online", "offline", "disabled"] = "disabled"
    """Where wandb logs."""


def run(config: BenchBeside) -> None:
    """Measure, write the run folder, print the table; ends every process that it starts."""
    from genpol.benchmarks import beside
    from genpol.runs.processor import measure_speed
    from genpol.runs.quiet import hush
    from genpol.runs.run import Run

    hush()
    document = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(config).items()}
    speed = measure_speed()
    with (
        Run(config.output, document, command="bench beside", wandb=config.wandb) as folder,
        ExitStack() as children,
    ):
        workers: dict[str, Child] = {}
        threads: dict[str, int] = {}
        for side in ("", "usual_")[: 1 + config.usual]:
            child, chosen = beside.worker(settings(config), usual=bool(side))
            workers[side] = children.enter_context(child)
            threads |= {f"bench/{side}{work}_threads": count for work, count in chosen.items()}
        busy = [
            children.enter_context(beside.busy(config.busy_threads)) for _ in range(config.busy)
        ]
        for program in busy:
            program.answer()  # is ready
        found: Found = {}
        for turn in range(1, config.rounds + 1):
            for when, word in (("idle", "-"), ("beside", "+")):
                for program in busy:
                    program.tell(word)
                for side, child in workers.items():
                    add(found, f"{side}{when}", measure(config, child))
            folder.log(turn, results(found))
        final = results(found) | {name: float(n) for name, n in threads.items()} | speed.metrics()
        folder.summary(final)
    print(as_table(final))
    print(speed)


def settings(config: BenchBeside) -> dict[str, Any]:
    """What a worker is told; see `genpol.benchmarks.beside_work`."""
    from genpol.commands.bench import expo
    from genpol.commands.finetune.command import complete
    from genpol.commands.finetune.options import Finetune

    learning = asdict(expo.settings(expo.BenchExpo(seed=config.seed)))
    tuning = complete(Finetune(prompts_per_epoch=config.prompts_per_epoch, seed=config.seed))
    finetune = {k: v for k, v in asdict(tuning).items() if not isinstance(v, Path)}
    return {
        "threads": config.threads,
        "expo": learning | {"utd": float(config.utd)},
        "finetune": finetune,
    }


def measure(config: BenchBeside, child: Child) -> dict[str, dict[str, Any]]:
    """Every work of one turn in one process."""
    from genpol.benchmarks.beside import ask

    return {
        "decision": ask(child, "decision", config.decisions),
        "paced": ask(child, "decision", config.paced_decisions, 1 / config.rate),
        "expo_step": ask(child, "expo_step", config.expo_steps),
        "epoch": ask(child, "epoch", config.epochs),
    }


def add(found: Found, where: str, turn: dict[str, dict[str, Any]]) -> None:
    """Put the times of a turn to those of earlier ones."""
    for work, times in turn.items():
        kept = found.setdefault((where, work), {"wall": [], "cpu": []})
        kept["wall"] += times["wall"]
        kept["cpu"].append(times["cpu"])


def results(found: Found) -> dict[str, float]:
    """Metrics of all turns so far; see docs/metrics.md."""
    import numpy as np

    out: dict[str, float] = {}
    for (where, work), times in found.items():
        side, when = ("usual_", where[6:]) if where.startswith("usual_") else ("", where)
        name = f"bench/{side}{work}_{when}"
        out[f"{name}_p50_s"] = float(np.percentile(times["wall"], 50))
        out[f"{name}_p95_s"] = float(np.percentile(times["wall"], 95))
        out[f"{name}_cpu_s"] = float(np.mean(times["cpu"]))
    for side in ("", "usual_"):
        for work in WORKS:
            name = f"bench/{side}{work}"
            if f"{name}_beside_cpu_s" not in out:
                continue
            out[f"{name}_latency_ratio"] = out[f"{name}_beside_p95_s"] / out[f"{name}_idle_p50_s"]
            out[f"{name}_cpu_ratio"] = out[f"{name}_beside_cpu_s"] / out[f"{name}_idle_cpu_s"]
    for work in WORKS:
        usual = out.get(f"bench/usual_{work}_idle_p50_s")
        if usual is not None:
            out[f"bench/{work}_idle_ratio"] = out[f"bench/{work}_idle_p50_s"] / usual
    return out


def as_table(metrics: dict[str, float]) -> str:
    """For people."""
    titles = ("idle p50", "idle p95", "p50", "p95", "p95/idle p50", "idle CPU", "CPU", "CPU ratio")
    lines = [f"{'':34}{'threads':>8}" + "".join(f"{title:>13}" for title in titles)]
    for side in ("", "usual_"):
        for work, (label, scale, unit) in WORKS.items():
            name = f"bench/{side}{work}"
            if f"{name}_cpu_ratio" not in metrics:
                continue
            if work == "decision" and side:
                lines.append("as PyTorch comes, with threads that spin:")
            times = [
                metrics[f"{name}_{part}_s"] * scale
                for part in ("idle_p50", "idle_p95", "beside_p50", "beside_p95")
            ]
            cpu = [metrics[f"{name}_{part}_cpu_s"] * scale for part in ("idle", "beside")]
            shown = [f"{x:.3g}" for x in times] + [f"{metrics[f'{name}_latency_ratio']:.2f}"]
            shown += [f"{x:.3g}" for x in cpu] + [f"{metrics[f'{name}_cpu_ratio']:.2f}"]
            count = metrics[f"bench/{side}{'decision' if work == 'paced' else work}_threads"]
            lines.append(
                f"{label + ', ' + unit:34}{count:>8.0f}" + "".join(f"{x:>13}" for x in shown)
            )
    lines.append(
        f"targets: p95 of a decision at most {LATENCY:g} times its idle p50, CPU at most {CPU:g} "
        "times the idle one"
    )
    slower = {work: metrics.get(f"bench/{work}_idle_ratio") for work in WORKS}
    if all(ratio is not None for ratio in slower.values()):
        each = ", ".join(f"{WORKS[work][0]} {ratio:.2f}" for work, ratio in slower.items())
        lines.append(f"idle p50 in that of PyTorch as it comes: {each}")
    return "\n".join(lines)
