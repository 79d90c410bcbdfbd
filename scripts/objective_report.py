"""Write the tables and figures of docs/OBJECTIVES.md from the committed rows."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from scripts.objective_tables import (
    ARMS,
    BEST_OF,
    COMPARED,
    CURVES,
    HELD_BY,
    OFFSET_PROMPTS,
    PROMPTS,
    RESULTS,
    SEEDS,
    SWEPT,
    TUNING,
)
from scripts.results_table import Table, write_block

PAGE = Path(__file__).parents[1] / "docs" / "OBJECTIVES.md"
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # two-sided, n - 1 degrees of freedom
COLOURS = dict(zip(ARMS, plt.get_cmap("tab10").colors, strict=False))
Rows = list[dict[str, str]]


def write() -> None:
    """Every block and picture for which there are rows."""
    parts = [text for model in ("tiny", "tiny-flow") if (text := comparison(model))]
    parts += [text for text in (compute_text(), beta_text(), tuning_text()) if text]
    write_block("objectives", "\n\n".join(parts), PAGE)
    print(f"wrote {PAGE}")


def numbers(rows: Iterable[dict[str, str]], column: str) -> list[float]:
    return [float(row[column]) for row in rows]


def percent(values: list[float], expected: int = len(SEEDS)) -> str:
    """ "81.3 (79.0 to 83.6)": the mean in percent and its 95 % interval over seeds."""
    if not values:
        return "not run"
    mean, count = 100 * float(np.mean(values)), len(values)
    text = f"{mean:.1f}"
    if count in T_95:
        half = 100 * T_95[count] * float(np.std(values, ddof=1)) / math.sqrt(count)
        text += f" ({mean - half:.1f} to {mean + half:.1f})"
    return text if count == expected else f"{text}, {count} of {expected} seeds"


def of(table: Table, **key: object) -> Rows:
    return [r for r in table.rows() if all(r[k] == str(v) for k, v in key.items())]


def comparison(model: str) -> str:
    """Gold against the number of training prompts, as a table and a picture."""
    everything = of(COMPARED, model=model)
    if not everything:
        return ""
    first = next((r for r in everything if r["arm"] in ARMS), everything[0])
    control = percent(list({r["seed"]: float(r["gold_before"]) for r in everything}.values()))
    head = ["", *(f"{n:,} prompts" for n in PROMPTS), "CPU-seconds", "KL (nats)"]
    offsets = [n for n in OFFSET_PROMPTS if of(COMPARED, model=model, offset=1, prompts=n)]
    head[5:5] = [f"{n:,}, offset rewards" for n in offsets]
    lines = [head, ["---"] * len(head)]
    blank = [""] * len(offsets)
    lines.append(["no training", *[control] * len(PROMPTS), *blank, "0", "0"])
    for count in BEST_OF:
        rows = of(COMPARED, model=model, arm=f"best of {count}")
        cell = percent(numbers(rows, "gold"))
        spent = f"{np.mean(numbers(rows, 'cpu_seconds')):.0f}" if rows else ""
        lines.append([f"best of {count}, no training", *[cell] * len(PROMPTS), *blank, spent, "0"])
    for arm in ARMS:
        rows = of(COMPARED, model=model, arm=arm, offset=0)
        if not rows:
            continue
        cells = [
            percent(numbers([r for r in rows if r["prompts"] == str(n)], "gold")) for n in PROMPTS
        ]
        for n in offsets:
            found = of(COMPARED, model=model, arm=arm, offset=1, prompts=n)
            cells.append(percent(numbers(found, "gold")))
        spent, kl = (np.mean(numbers(rows, name)) for name in ("cpu_seconds", "kl_nats"))
        lines.append([arm, *cells, f"{spent:.0f}", f"{kl:.1f}"])
    picture = draw_prompts(model)
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    images = int(first["images"])
    return (
        f"### {model}: gold score against the number of training prompts\n\n"
        "Share of attributes that the gold checker finds right, in percent, on 256 held-out "
        f"prompts, after {images:,} images and as many reward calls: the mean of {len(SEEDS)} "
        "seeds and its 95 % interval. *Offset rewards* add a constant to the rewards of each "
        "prompt, with a standard deviation of 1.\n\n"
        f"{table}\n\n![Gold score against prompts](results/{picture})"
    )


def draw_prompts(model: str) -> str:
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for arm in ARMS:
        points = []
        for n in PROMPTS:
            values = numbers(of(COMPARED, model=model, arm=arm, offset=0, prompts=n), "gold")
            if values:
                points.append((n, np.mean(values), min(values), max(values)))
        if points:
            x, mean, low, high = np.array(points).T
            axes.plot(x, 100 * mean, marker="o", color=COLOURS[arm], label=arm)
            axes.fill_between(x, 100 * low, 100 * high, color=COLOURS[arm], alpha=0.12, lw=0)
    everything = of(COMPARED, model=model)
    base = 100 * float(np.mean(numbers(everything, "gold_before")))
    axes.axhline(base, color="black", ls=":", label="no training")
    for count, style in zip(BEST_OF, ("--", "-."), strict=True):
        if rows := of(COMPARED, model=model, arm=f"best of {count}"):
            level = 100 * float(np.mean(numbers(rows, "gold")))
            axes.axhline(level, color="grey", ls=style, label=f"best of {count}")
    axes.set_xscale("log")
    axes.set_xticks(PROMPTS, [f"{n:,}" for n in PROMPTS])
    axes.set(xlabel="training prompts", ylabel="gold score on held-out prompts, %", title=model)
    axes.legend(fontsize=8, ncols=2)
    name = f"objectives_{model.replace('-', '_')}.png"
    figure.savefig(RESULTS / name, dpi=110)
    plt.close(figure)
    return name


def crossing(curve: Rows, level: float, before: float, axis: str) -> float:
    """Where a curve first reaches a gold score, linearly between its points; inf if never."""
    x, y = [0.0, *numbers(curve, axis)], [before, *numbers(curve, "gold")]
    for (x0, y0), (x1, y1) in itertools.pairwise(zip(x, y, strict=True)):
        if y1 >= level:
            return x1 if y1 == y0 else x0 + (x1 - x0) * max(0.0, (level - y0) / (y1 - y0))
    return math.inf


def compute_text() -> str:
    """CPU-seconds and images to the gold score that trajectory PRDP ends at."""
    if not CURVES.rows():
        return ""
    ratios: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for model in ("tiny", "tiny-flow"):
        for seed in SEEDS:
            ends = of(COMPARED, model=model, arm="prdp", prompts=PROMPTS[-1], offset=0, seed=seed)
            base = of(CURVES, model=model, arm="prdp", seed=seed)
            if not ends or not base:
                continue
            level, before = float(base[-1]["gold"]), float(ends[0]["gold_before"])
            for arm in ARMS:
                curve = of(CURVES, model=model, arm=arm, seed=seed)
                for axis in ("cpu_seconds", "images"):
                    if curve:
                        whole = float(base[-1][axis])
                        reached = crossing(curve, level, before, axis)
                        ratios[model, arm][axis].append(reached / whole)
    lines = [
        "| | CPU-seconds | images | seeds that reach it |",
        "|---|---|---|---|",
    ]
    for (model, arm), found in ratios.items():
        cells = []
        for axis in ("cpu_seconds", "images"):
            values = sorted(found[axis])
            middle = values[len(values) // 2]
            cells.append("not reached" if math.isinf(middle) else f"{middle:.2f}")
        reached = sum(not math.isinf(v) for v in found["images"])
        cells.append(f"{reached} of {len(found['images'])}")
        lines.append(f"| {model}: {arm} | " + " | ".join(cells) + " |")
    return (
        "### Compute to the same gold score\n\n"
        "What an arm spends until it is at the gold score that `prdp` ends at, over what `prdp` "
        "spends in all: the median over seeds, at 100,000 prompts. Evaluations are not counted.\n\n"
        + "\n".join(lines)
        + f"\n\n![Gold score against CPU-seconds](results/{draw_compute()})"
    )


def draw_compute() -> str:
    models = [m for m in ("tiny", "tiny-flow") if of(CURVES, model=m)]
    figure, panels = plt.subplots(
        1, len(models), figsize=(6 * len(models), 4), layout="constrained", squeeze=False
    )
    for axes, model in zip(panels[0], models, strict=True):
        for arm in ARMS:
            curves = [of(CURVES, model=model, arm=arm, seed=seed) for seed in SEEDS]
            starts = numbers(of(COMPARED, model=model, arm=arm, prompts=PROMPTS[-1]), "gold_before")
            whole = [c for c in curves if c]
            if whole and starts:
                x = np.mean([[0.0, *numbers(c, "cpu_seconds")] for c in whole], 0)
                y = np.mean([[np.mean(starts), *numbers(c, "gold")] for c in whole], 0)
                axes.plot(x, 100 * y, marker="o", color=COLOURS[arm], label=arm)
        axes.set_xscale("symlog", linthresh=20)
        axes.set(xlabel="CPU-seconds", ylabel="gold score, %", title=model)
        axes.legend(fontsize=8)
    figure.savefig(RESULTS / "objectives_compute.png", dpi=110)
    plt.close(figure)
    return "objectives_compute.png"


def beta_text() -> str:
    """Gold and reward against KL over what holds an objective to the reference."""
    if not SWEPT.rows():
        return ""
    lines = ["| | setting | reward, % | gold, % | KL (nats) |", "|---|---|---|---|---|"]
    figure, axes = plt.subplots(figsize=(6.5, 4.2), layout="constrained")
    for arm, (name, values) in HELD_BY.items():
        points = []
        for value in values:
            rows = [
                row
                for row in of(SWEPT, model="tiny", arm=arm)
                if f"{name}={value:g}" in row["setting"].split()
            ]
            if not rows:
                continue
            kl = float(np.mean(numbers(rows, "kl_nats")))
            points.append((kl, 100 * float(np.mean(numbers(rows, "gold")))))
            cells = [percent(numbers(rows, column)) for column in ("reward", "gold")]
            lines.append(f"| {arm} | {name} {value:g} | {cells[0]} | {cells[1]} | {kl:.2f} |")
        if points:
            x, y = zip(*sorted(points), strict=True)
            axes.plot(x, y, marker="o", color=COLOURS[arm], label=f"{arm} ({name})")
    axes.set_xscale("log")
    axes.set(xlabel="KL from the untrained policy, nats an image", ylabel="gold score, %")
    axes.legend(fontsize=8)
    figure.savefig(RESULTS / "objectives_beta.png", dpi=110)
    plt.close(figure)
    return (
        "### Reward against KL\n\n"
        "On `tiny`, 100,000 prompts, at the learning rate of the tables above. KL is that of the "
        "denoising steps from the untrained policy's, on held-out prompts, for every objective.\n\n"
        + "\n".join(lines)
        + "\n\n![Gold score against KL](results/objectives_beta.png)"
    )


def tuning_text() -> str:
    """What tuning gave, arm by arm."""
    if not TUNING.rows():
        return ""
    lines = ["| | setting | gold, % | KL (nats) |", "|---|---|---|---|"]
    for row in TUNING.rows():
        name = f"{row['model']}: {row['arm']}"
        gold = f"{100 * float(row['gold']):.1f}"
        lines.append(f"| {name} | {row['setting']} | {gold} | {float(row['kl_nats']):.1f} |")
    return (
        "### Tuning\n\n"
        "Seed 1000, 256 training prompts, 512 images: what each setting ends at. The comparison "
        "takes the best of each arm.\n\n" + "\n".join(lines)
    )
