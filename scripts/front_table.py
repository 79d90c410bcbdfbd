"""The README's table of results, and the speeds on docs/RESULTS.md, from docs/results alone.

    python -m scripts.front_table

Twelve comparisons, those that the kit's method loses included. Figures and outcomes are computed
from the committed files by the functions that make the large tables.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from genpol.reports.stats import iqm_interval
from scripts import (
    edge_of_reach,
    expo_table,
    lipschitz_table,
    steer_table,
    tiny_results,
    vagram_table,
)
from scripts.results_table import Table, write_block

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
Row = tuple[str, str, str, str, str]  # what, this method, the other, outcome, heading


def _rows(script: Any, name: str = "") -> list[dict[str, str]]:
    path = RESULTS / f"{name}.csv" if name else script.RESULTS
    return Table(path, script.COLUMNS).rows()


def _json(name: str) -> dict[str, float]:
    return json.loads((RESULTS / f"{name}.json").read_text())


def _order(mine: float, other: float, more: str = "better", less: str = "worse") -> str:
    return more if mine > other else less if mine < other else "equal"


def _short(names: Iterable[str]) -> str:
    """Tasks or environments without their version, in the order of the figures."""
    return " / ".join(re.sub(r"-v\d+$", "", name) for name in names)


def images() -> Iterator[Row]:
    """Fine-tuning against the untouched pipeline, and against guidance alone."""
    rows = tiny_results.read(RESULTS / "tiny_attributes.csv")

    def mean(run: str, column: str) -> float:
        return 100 * float(np.mean([float(r[column]) for r in rows if r["run"] == run]))

    before, demo = mean("demo", "gold_before"), mean("demo", "gold_after")
    long = mean("long", "gold_after")
    minutes = np.mean([float(r["seconds"]) for r in rows if r["run"] == "demo"]) / 60
    yield (
        f"Images: attributes right after {minutes:.0f} minutes of fine-tuning on one core",
        f"{demo:.1f} %", f"before: {before:.1f} %", _order(demo, before), "images",
    )  # fmt: skip
    guided = max(
        tiny_results.read(RESULTS / "tiny_pipeline.csv"), key=lambda r: float(r["guidance_scale"])
    )
    alone = 100 * float(guided["gold"])
    yield (
        "Images: longer fine-tuning, beside guidance alone, which doubles the cost of an image",
        f"{long:.1f} %", f"guidance {float(guided['guidance_scale']):.0f}: {alone:.1f} %",
        _order(long, alone), "images",
    )  # fmt: skip


def steering() -> Iterator[Row]:
    """Cal-QL at temperature 0.3 against one sample, filtered cloning and mode decoding."""
    rows = steer_table.complete(_rows(steer_table))
    shares: dict[tuple[str, str], dict[str, list[int]]] = {}
    for row in rows:
        cell = shares.setdefault((row["task"], row["policy"]), {})
        wins = cell.setdefault(row["arm"], [0, 0])
        wins[0] += int(row["successes"])
        wins[1] += int(row["episodes"])
    table = {
        key: {arm: 100 * wins / count for arm, (wins, count) in cell.items()}
        for key, cell in shares.items()
    }

    def compare(control: bool, mine: str, other: str) -> tuple[str, str, str]:
        cells = [cell for (task, _), cell in table.items() if ("@" in task) == control]
        better = sum(cell[mine] > cell[other] for cell in cells)
        a, b = (np.mean([cell[arm] for cell in cells]) for arm in (mine, other))
        return f"{a:.0f} %", f"{b:.0f} %", f"better in {better} of {len(cells)} pairs"

    tasks = len({task for task, _ in table if "@" not in task})
    kinds = len({kind for _, kind in table})
    for what, control, mine, other, beside in (
        (f"Robots: success of {kinds} frozen policies on {tasks} tasks, steered by Cal-QL",
         False, "calql", "base", "one sample"),
        ("Robots: the same, beside cloning the successful episodes",
         False, "calql", "filtered", "filtered cloning"),
        ("Robots: the same, where demonstrators err towards a random side",
         True, "calql", "mode", "mode decoding"),
    ):  # fmt: skip
        a, b, outcome = compare(control, mine, other)
        yield what, a, f"{beside}: {b}", outcome, "robots"


def learning() -> Iterator[Row]:
    """EXPO against the others, seed by seed."""
    rows = _rows(expo_table)
    names = {"rlpd-clone": "RLPD from the same clone", "bestofn": "best-of-N"}
    for arm, name in names.items():
        ends, others, better = [], [], 0
        for task in expo_table.TASKS:
            expo, other = (
                expo_table.Outcome.of([r for r in rows if (r["task"], r["arm"]) == (task, which)])
                for which in ("expo", arm)
            )
            low = iqm_interval(expo.less(other), np.random.default_rng(0))[1]
            better += low > 0
            for shown, outcome in ((ends, expo), (others, other)):
                final = list(outcome.final.values())
                shown.append(f"{100 * iqm_interval(final, np.random.default_rng(0))[0]:.0f}")
        yield (
            f"Reinforcement learning: success of EXPO on {_short(expo_table.TASKS)}, beside {name}",
            f"{' / '.join(ends)} %", f"{' / '.join(others)} %",
            f"better beyond the interval on {better} of {len(ends)}", "reinforcement-learning",
        )  # fmt: skip


def world_models() -> Iterator[Row]:
    """Three published claims."""
    text = vagram_table.report(_rows(vagram_table))
    number = r"([+-][\d,]+)"
    found = re.findall(rf"squared error {number} \({number} to {number}\)", text)
    gains = [tuple(int(part.replace(",", "")) for part in group) for group in found]
    better = sum(low > 0 for _, low, _ in gains)
    yield (
        f"World models: return with VaGraM less that with squared error, {len(gains)} groups",
        " / ".join(f"{middle:+d}" for middle, _, _ in gains), "0",
        f"better beyond the interval in {better} of {len(gains)}", "vagram",
    )  # fmt: skip

    rows = _rows(lipschitz_table, "lipschitz")

    def returned(env: str, arm: str) -> tuple[float, float, float]:
        seeds = {r["seed"] for r in rows if (r["env"], r["arm"]) == (env, arm)}
        runs = [
            [r for r in rows if (r["env"], r["arm"], r["seed"]) == (env, arm, seed)]
            for seed in sorted(seeds)
        ]
        late = [vagram_table.late_return(run) for run in runs]
        return iqm_interval(late, np.random.default_rng(0))

    envs = list(dict.fromkeys(r["env"] for r in rows))
    bound, free = ([returned(env, arm)[0] for env in envs] for arm in ("single+spectral", "single"))
    higher = sum(a > b for a, b in zip(bound, free, strict=True))
    yield (
        f"World models: return on {_short(envs)} with one model and a bounded value (spectral), "
        "beside no bound",
        " / ".join(f"{x:.0f}" for x in bound), " / ".join(f"{x:.0f}" for x in free),
        f"higher on {higher} of {len(envs)} environments",
        "bounded-values-instead-of-an-ensemble",
    )  # fmt: skip

    rows = _rows(edge_of_reach)
    best = max(float(r["eval/return"]) for r in rows)

    def largest(arm: str) -> list[float]:
        of_arm = [r for r in rows if r["arm"] == arm]
        return [
            max(x for r in of_arm if r["seed"] == seed if isfinite(x := float(r["critic/q_data"])))
            for seed in sorted({r["seed"] for r in of_arm})
        ]

    diverse, plain = largest("RAVL, weight 1"), largest("two heads")
    less = sum(a < b for a, b in zip(diverse, plain, strict=True))
    above = sum(value > best for value in diverse)
    yield (
        f"World models: largest mean value with ten diverse heads, where no return is above "
        f"{best:.0f}",
        " / ".join(f"{x:,.0f}" for x in diverse),
        f"two plain heads: {' / '.join(f'{x:,.0f}' for x in plain)}",
        f"less on {less} of {len(diverse)} seeds, still too large on {above}", "the-edge-of-reach",
    )  # fmt: skip


def speeds() -> Iterator[Row]:
    """Beside other implementations, measured in one run each."""
    ours = _json("bench_finetune")
    yield (
        "Speed: images a second when fine-tuning, beside DDPO's usual loop",
        f"{ours['bench/images_per_second']:.1f}", f"{ours['bench/images_per_second_ddpo']:.1f}",
        f"{ours['bench/ratio']:.2f} times as many", "speed",
    )  # fmt: skip
    ours = _json("bench_world_model")
    yield (
        "Speed: environment steps a CPU-second of MBPO, beside mbrl-lib",
        f"{ours['bench/env_steps_per_cpu_s']:.2f}",
        f"{ours['bench/peer_env_steps_per_cpu_s']:.2f}",
        f"{ours['bench/ratio_env_step']:.2f} times as many", "speed",
    )  # fmt: skip


def front() -> str:
    """Markdown: twelve rows, each with a link to its table."""
    lines = [
        "| what is compared | this method | compared with | outcome | table |",
        "|---|---|---|---|---|",
    ]
    for part in (images, steering, learning, world_models, speeds):
        for what, mine, other, outcome, place in part():
            link = f"[table](docs/RESULTS.md#{place})"
            lines.append(f"| {what} | {mine} | {other} | {outcome} | {link} |")
    return "\n".join(lines)


def speed_page() -> str:
    """Markdown: every committed measurement of speed."""
    tune, model = _json("bench_finetune"), _json("bench_world_model")
    lines = [
        "**Fine-tuning.** `genpol bench finetune`, the shipped pipeline on two CPU cores. "
        f"{100 * tune['bench/model_share']:.0f} % of the time is spent in the UNet's forward and "
        f"backward passes. The kit draws and learns from {tune['bench/ratio']:.2f} times the "
        "images per second of the same PRDP loop in DDPO's usual structure, with the same gradient "
        "([results/bench_finetune.json](results/bench_finetune.json)).",
        "",
        "**EXPO.** `genpol bench expo` at the published sizes: batch 256, 20 updates a step, 8 "
        "samples and 8 edits, 10 denoising steps, ten critics of 3 x 256. CPU-seconds on one core, "
        "two for the published code, the simulator not included:",
        "",
        "| | critic update | environment step | first update after |",
        "|---|---|---|---|",
    ]
    for name, title in (
        ("published", "published JAX code, two cores"),
        ("faithful", "`--preset faithful`: the released algorithm and network, float32"),
        ("fast", "`--preset fast`, the default: narrow network, one edit clipped, float32"),
    ):
        found = _json(f"bench_expo_{name}")
        first = found["bench/first_update_s"]
        lines.append(
            f"| {title} | {found['bench/critic_update_cpu_s']:.2g} | "
            f"{found['bench/env_step_cpu_s']:.3g} | {first:.2g} s |"
        )
    fast = _json("bench_expo_fast")
    lines += [
        "",
        f"With `--candidate-dtype bfloat16` the best of the sixteen candidates is the same one in "
        f"{100 * fast['bench/agreement_bf16']:.1f} % of the states. With a chain of two steps it "
        f"is the same one in {100 * fast['bench/agreement_two_step']:.0f} %, so the whole chain is "
        "the default ([results/bench_expo_fast.json](results/bench_expo_fast.json)).",
        "",
        "**World models.** `genpol bench world-model --pieces 1 --peer PYTHON`, MBPO on Hopper at "
        "equal sizes and counts, one thread: "
        f"{model['bench/env_steps_per_cpu_s']:.2f} environment steps per CPU-second, beside "
        f"{model['bench/peer_env_steps_per_cpu_s']:.2f} of mbrl-lib 0.2.0, which is "
        f"{model['bench/ratio_env_step']:.2f} times as many "
        "([results/bench_world_model.json](results/bench_world_model.json)).",
        "",
        *beside(),
        "",
        *decisions(),
    ]
    return "\n".join(lines)


def beside() -> Iterator[str]:
    """What work takes beside busy programs: with the kit's threads, and as PyTorch comes."""
    found = _json("bench_beside")
    yield "**Beside other programs.** `genpol bench beside`: two busy processes of PyTorch with two"
    yield "threads each, on two cores. The kit computes these in one thread. PyTorch as it comes"
    yield "has two, which spin while they wait. Seconds, and CPU-seconds of all threads"
    yield "([results/bench_beside.json](results/bench_beside.json)):"
    yield ""
    yield "| work | threads | idle p50 | beside p95 | times as long | CPU idle | CPU beside |"
    yield "|---|---|---|---|---|---|---|"
    for work, title in (
        ("decision", "a decision, one after another"),
        ("paced", "a decision, ten a second"),
        ("expo_step", "an EXPO step"),
        ("epoch", "a fine-tuning epoch"),
    ):
        for prefix, whose in (("", "the kit's"), ("usual_", "as it comes")):
            idle, late, cpu, cpu_beside = (
                found[f"bench/{prefix}{work}_{name}_s"]
                for name in ("idle_p50", "beside_p95", "idle_cpu", "beside_cpu")
            )
            numbers = (idle, late, late / idle, cpu, cpu_beside)
            cells = [title, whose, *(f"{float(f'{number:.2g}'):g}" for number in numbers)]
            yield f"| {' | '.join(cells)} |"
    yield ""
    slower = [
        found[f"bench/{work}_idle_p50_s"] / found[f"bench/usual_{work}_idle_p50_s"]
        for work in ("decision", "expo_step", "epoch")
    ]
    yield f"The price is speed on an idle machine: {slower[0]:.2f} times the time of a decision,"
    yield f"{slower[1]:.2f} times that of an EXPO step and {slower[2]:.2f} times that of an epoch,"
    yield "in less CPU time. `OMP_WAIT_POLICY=ACTIVE` and `--threads 2` bring that speed back."


def decisions() -> Iterator[str]:
    """What steering adds to a decision, per policy and number of proposals."""
    import csv

    with open(RESULTS / "steering_latency.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    yield "**A steered decision.** From observation to executed actions, one robot on the CPU,"
    yield "median milliseconds, softmax selection (`python -m scripts.steer_latency`):"
    yield ""
    yield "| policy | threads | proposals | one sample | steered | times as long |"
    yield "|---|---|---|---|---|---|"
    for row in rows:
        if row["select"] == "softmax":
            cells = [row["policy"], row["threads"], row["candidates"], row["base_p50_ms"]]
            cells += [row["steered_p50_ms"], row["ratio_p50"]]
            yield f"| {' | '.join(cells)} |"


def main() -> None:
    write_block("front", front(), ROOT / "README.md")
    write_block("speed", speed_page())


if __name__ == "__main__":
    main()
