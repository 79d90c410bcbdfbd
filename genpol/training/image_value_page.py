"""The page of a run of `genpol value --model`, read from its folder, and its example pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffusion.pipelines import ImagePolicy
from diffusion.values.learning import ValueLearning
from genpol.reports.charts import BLUE, GREEN, GREY, known, plain, png, read_log, small_multiples
from genpol.reports.grids import grid
from genpol.reports.page import Panel, code, duration, figure, image, page, paragraph, table
from genpol.runs.run import Run, read_config
from offline.documents import read_document
from offline.files import disk_errors, write_beside

PAGE = "report.html"
PICTURES = "samples/ordered"
PROMPTS = 4  # whose pictures are shown
LEFT = 0.6  # of the steps, when the pictures are ordered
CURVES = {
    "value/loss": "loss",
    "value/error_within": "squared error within prompts",
    "value/rank": "rank correlation, held out",
    "value/share_of_best": "share of the best image's gain, held out",
    "value/r2": "R^2, held out",
}
Rows = Sequence[Mapping[str, float]]


def at_share(rows: Rows, left: float) -> Mapping[str, float] | None:
    """The row whose share of the steps that are left is nearest to `left`."""
    steps = max((row["step"] for row in rows), default=0.0)
    return min(rows, key=lambda row: abs(1 - row["step"] / steps - left)) if steps else None


def finish_pictures(
    run: Run, policy: ImagePolicy, learning: ValueLearning, prompts: Sequence[str]
) -> None:
    """Save pictures of held-out prompts, each row from the highest value to the lowest."""
    examples = learning.held_out.examples
    steps = examples.step[0]
    state = int((1 - steps / steps[-1] - LEFT).abs().argmin())
    values = learning.held_out_values(state)
    spread = examples.reward.amax(1) - examples.reward.amin(1)
    chosen = (spread > 0).nonzero().flatten()[:PROMPTS].tolist()
    if not chosen:
        return
    order = values[chosen].argsort(1, descending=True)
    latents, captions = [], []
    for n, places in zip(chosen, order, strict=True):
        latents.append(examples.x[n, places, -1].float())
        for i, place in enumerate(places.tolist()):
            numbers = f"V {values[n, place]:.3g}, reward {examples.reward[n, place]:.3g}"
            captions.append(f"{numbers}. {prompts[n]}" if i == 0 else numbers)
    images = policy.decode(torch.cat(latents))
    shown = grid(
        images,
        captions,
        title=f"Held-out prompts. Each row from the highest value to the lowest, seen after "
        f"{int(steps[state])} of {int(steps[-1])} steps",
        columns=examples.reward.shape[1],
    )
    run.log_images(int(learning.average.meta.get("steps", 0)), PICTURES, shown)


def write_page(folder: Path) -> Path:
    """Write `folder`/report.html again, from what the folder holds.

    Raises:
        InputError: the disk refuses, or a file of the run cannot be read.
    """
    path, config = folder / PAGE, read_config(folder, "value")
    document = read_document(folder / "value" / "value.json", dict[str, Any])
    rows = document["about"]["held_out"]
    summary = read_document(folder / "summary.json", dict[str, float | None])
    panels = [
        Panel("Result", _result(rows, config)),
        Panel("Held-out prompts, by step", _by_step(rows)),
    ]
    pictures = sorted((folder / "samples").glob("*ordered*.png"))
    if pictures:
        shown = image(pictures[-1].read_bytes(), "held-out images in the order of their values")
        panels.append(
            Panel("Images in the order of their values", f'<div class="wide">{shown}</div>')
        )
    log = read_log(folder / "metrics.csv")
    curves = [(name, title, *known(log, name)) for name, title in CURVES.items()]
    if chart := small_multiples([c for c in curves if len(c[2])], float(log["step"][-1])):
        panels.append(Panel("Learning", figure(chart, "Columns of metrics.csv against the step.")))
    facts = [[k, str(v)] for k, v in config.items() if v not in (None, "", [], False)]
    panels += [
        Panel("Settings", table(("option", "value"), facts)),
        Panel("Cost", _cost(summary)),
        Panel("Use it", code(f"genpol generate --model {config['model']} --value {folder} ...")),
    ]
    title = f"value of {config['reward']} on {config['model']}"
    with disk_errors(f"cannot write {path}", "Free some space; continue with --resume"):
        write_beside(path, page(panels, title).encode())
    return path


def _result(rows: Rows, config: Mapping[str, Any]) -> str:
    found = [
        "The value says, of an unfinished image, what reward it will have. It was judged by "
        f"held-out prompts, {config['images_per_prompt']} images of each."
    ]
    for left in (LEFT, 0.3):
        row = at_share(rows, left)
        if row is not None and "rank_correlation" in row:
            found.append(
                f"With {1 - row['step'] / rows[-1]['step']:.0%} of the steps to go, its rank "
                f"correlation with the reward within a prompt is {row['rank_correlation']:.2f}, "
                f"and the image it prefers has {row['share_of_best']:.0%} of the gain of the best "
                "image over a random one."
            )
    return "".join(paragraph(text) for text in found)


def _by_step(rows: Rows) -> str:
    from matplotlib.figure import Figure

    chart = Figure(figsize=(9.2, 3.4), dpi=110, layout="constrained")
    axes = chart.subplots()
    steps = np.array([row["step"] for row in rows])
    for name, words, colour in (
        ("rank_correlation", "rank correlation", BLUE),
        ("rank_without_hat", "the same without x0_hat", GREY),
        ("share_of_best", "share of the best image's gain", GREEN),
    ):
        values = np.array([row.get(name, np.nan) for row in rows])
        axes.plot(steps, values, "o-", ms=4, color=colour, label=words)
    axes.axhline(0, color=GREY, lw=0.8)
    axes.set(xlabel="denoising steps done", ylim=(min(-0.1, *axes.get_ylim()), 1.02))
    axes.legend(frameon=False, fontsize=9)
    plain(axes)
    head = (
        "steps done",
        "noise level",
        "rank correlation",
        "without x0_hat",
        "share of best",
        "R²",
    )
    names = ("rank_correlation", "rank_without_hat", "share_of_best", "r2")
    body = [
        [f"{row['step']:.0f}", f"{row['level']:.3f}"]
        + [f"{row[name]:.2f}" if name in row else "" for name in names]
        for row in rows
    ]
    words = (
        "How well the value ranks the images of one held-out prompt, by how far their chains have "
        "come. A choice at random is 0 and a perfect one is 1."
    )
    return figure(png(chart), words) + table(head, body)


def _cost(summary: Mapping[str, float | None]) -> str:
    def number(name: str) -> float:
        return summary.get(name) or 0.0

    return paragraph(
        f"{number('data/images'):.0f} images were drawn and judged by the reward in "
        f"{duration(number('time/drawing_cpu_seconds'))} of CPU time, and "
        f"{number('train/steps'):.0f} gradient steps took "
        f"{duration(number('time/learning_cpu_seconds'))}."
    )
