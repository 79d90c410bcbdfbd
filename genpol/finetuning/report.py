"""The page's panels about a fine-tuning run on the shipped world, read from its run folder."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genpol.finetuning import page, record
from genpol.finetuning.samples import Scores, read_evaluation
from genpol.reports.page import Pair, Panel, code, duration, figure, pairs, paragraph, table
from offline.documents import read_document

Floats = NDArray[np.float64]
CHECKER, GOLD, WHOLLY = "attributes_hard", "gold", "gold_wholly"
ROWS = {  # the table's rows
    "reward": "training reward (the training checker's probabilities)",
    CHECKER: "attributes right, by the training checker",
    GOLD: "attributes right, by the gold checker",
    WHOLLY: "pictures right in everything, by the gold checker",
}
RESAMPLES = 4000


@dataclass(frozen=True)
class RunRecord:
    """A finished run: configuration, summary, log rows (column -> (steps,), NaN where blank)."""

    folder: Path
    config: dict[str, Any]
    summary: dict[str, float]
    log: dict[str, Floats]
    before: Scores
    after: Scores


def read_run(folder: Path) -> RunRecord:
    """Read what `genpol finetune` left in a folder."""
    with open(folder / "metrics.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return RunRecord(
        folder=folder,
        config=read_document(folder / "config.json", dict[str, Any]),
        summary=read_document(folder / "summary.json", dict[str, Any]),
        log={n: np.array([float(row[n] or "nan") for row in rows]) for n in rows[0]},
        before=read_evaluation(folder / "samples" / "evaluation_before.csv"),
        after=read_evaluation(folder / "samples" / "evaluation_after.csv"),
    )


def finetune_panels(folder: Path, model_folder: str) -> list[Panel]:
    """All panels of the run in `folder`, whose pipeline can be loaded from `model_folder`."""
    run, general = read_run(folder), record.read_run(folder)
    controls = []
    if general.controls and general.after is not None:
        controls = [Panel("Beside it: the pipeline without training", page.beside(general))]
    return [
        Panel("Fine-tuning an image pipeline on a reward", story(run)),
        Panel("Reward while training", curves(run)),
        Panel("Before and after, on held-out prompts", comparison(run)),
        *controls,
        Panel("The same prompts and seeds, before and after", gallery(run)),
        Panel("Where the weights are", weights(run, model_folder)),
    ]


# -- statistics -----------------------------------------------------------------------------------


def bootstrap(statistic: Callable[..., Floats], *columns: Floats) -> tuple[float, float]:
    """95 % percentile interval of a statistic of paired columns (n,), by resampling prompts.

    `statistic` takes the columns' resampled means, each (RESAMPLES,). The seed is fixed, so the
    same run gives the same page.
    """
    rng = np.random.default_rng(0)
    n = len(columns[0])
    rows = rng.integers(n, size=(RESAMPLES, n))
    values = statistic(*(column[rows].mean(1) for column in columns))
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)


def unseen_share(checker_gain: Any, gold_gain: Any) -> Any:
    """Share of the gain that only the training checker sees: (checker - gold) / checker.

    NaN where the checker sees no gain.
    """
    gain = np.where(np.asarray(checker_gain) > 0, checker_gain, np.nan)
    return (gain - gold_gain) / gain


# -- panels ---------------------------------------------------------------------------------------


def story(run: RunRecord) -> str:
    """What happened, in plain words."""
    cfg, n = run.config, len(run.before.prompts)
    rounds, took = int(run.summary["train/epochs"]), duration(run.summary["time/seconds"])
    images = rounds * cfg["prompts_per_epoch"] * cfg["images_per_prompt"]
    start, end = run.before.scores[GOLD].mean(), run.after.scores[GOLD].mean()
    return "\n".join(
        [
            paragraph(
                "The model is a small Stable Diffusion pipeline (text encoder, VAE, UNet and "
                "scheduler of the usual classes) that draws captioned scenes of shapes. It is "
                "competent but makes mistakes: wrong colours, missing textures, misplaced objects."
            ),
            paragraph(
                "The reward is a small neural network, the training checker, that looks at a "
                "picture and says how likely each requested attribute (shape, colour, size, "
                "texture, place) is there. PRDP (arXiv 2402.08714) draws several pictures of each "
                "prompt. It changes the pipeline so that differences in log-probability "
                "predict differences in reward. Only a LoRA was trained: a small addition to the "
                "UNet's weights."
            ),
            paragraph(
                f"This run drew and learnt from {images:,} pictures in {rounds} epochs. It took "
                f"{took}, with evaluations. On {n} held-out prompts, the share of requested "
                f"attributes that the picture shows went from {start:.1%} to {end:.1%}. The gold "
                "checker measured that share: rules on pixels, written separately from the "
                "training checker and never trained on."
            ),
        ]
    )


def curves(run: RunRecord) -> str:
    """Reward on seen and held-out prompts, and KL, against epochs."""
    from matplotlib.figure import Figure

    steps, count = run.log["step"], int(run.config["eval_images"])
    chart = Figure(figsize=(9.2, 3.6), dpi=110, layout="constrained")
    score, divergence = chart.subplots(1, 2, width_ratios=[2, 1])
    seen = run.log["reward/mean"]
    known = np.isfinite(seen)
    score.plot(
        steps[known],
        100 * seen[known],
        color="#9a9aa0",
        lw=1.2,
        label="reward, prompts it trains on",
    )
    for name, label, colour in (
        ("reward", "reward, held-out prompts", "#0a66c2"),
        (GOLD, "gold checker, held-out prompts", "#1a7f37"),
    ):
        values = run.log[f"eval/{name}"].copy()
        # Evaluations at both ends use more prompts; the curve keeps to those of the others.
        values[0] = run.before.scores[name][:count].mean()
        values[-1] = run.after.scores[name][:count].mean()
        known = np.isfinite(values)
        score.plot(steps[known], 100 * values[known], "o-", ms=3.5, color=colour, label=label)
    score.set(xlabel="epoch", ylabel="score (% of requested attributes)")
    score.legend(frameon=False, fontsize=9)
    kl = run.log["kl/nats"]
    known = np.isfinite(kl)
    divergence.plot(steps[known], kl[known], color="#8a3ffc")
    divergence.set(xlabel="epoch", ylabel="KL from the original (nats per picture)", ylim=(0, None))
    for axes in (score, divergence):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    buffer = io.BytesIO()
    chart.savefig(buffer, format="png")
    held_out = min(count, len(run.before.prompts))
    caption = (
        f"Left: mean score of each epoch's pictures, and of {held_out} held-out prompts with fixed "
        "seeds. Right: KL divergence from the original pipeline, "
        f"{kl[np.isfinite(kl)][-1]:.1f} nats per picture in the last epoch."
    )
    return figure(buffer.getvalue(), caption)


def comparison(run: RunRecord) -> str:
    """Table of held-out scores, and the share of the gain that only the training checker sees."""
    rows = []
    for name, label in ROWS.items():
        if name not in run.before.scores:
            continue
        old, new = run.before.scores[name], run.after.scores[name]
        low, high = bootstrap(lambda gain: gain, new - old)
        gain = f"{points((new - old).mean())} [{points(low)}, {points(high)}]"
        rows.append([label, with_interval(old), with_interval(new), gain])
    head = ["held-out score", "before, %", "after, %", "gain, points"]
    note = (
        f"{len(run.before.prompts)} prompts, one picture each, the same seeds before and after. In "
        "brackets: 95 % bootstrap intervals over prompts; for the gain, over paired differences. "
        "The intervals do not include the variation between training seeds."
    )
    return "\n".join([table(head, rows), paragraph(agreement(run)), paragraph(note, "note")])


def agreement(run: RunRecord) -> str:
    """How much of the training checker's gain the gold checker confirms, in words."""
    checker = run.after.scores[CHECKER] - run.before.scores[CHECKER]
    gold = run.after.scores[GOLD] - run.before.scores[GOLD]
    if checker.mean() <= 0:
        return "The training checker sees no gain in attributes, so there is no gain to confirm."
    share = float(unseen_share(checker.mean(), gold.mean()))
    low, high = bootstrap(unseen_share, checker, gold)
    seen = (
        f"A policy trained on a checker can learn to exploit that checker's errors. The training "
        f"checker sees a gain of {points(checker.mean())} points, and the gold checker one of "
        f"{points(gold.mean())}. "
    )
    if share <= 0:
        return seen + "The gold checker sees all of the gain."
    return seen + (
        f"Only the training checker sees {share:.0%} of the gain (95 % interval {low:.0%} to "
        f"{high:.0%}). The gold checker confirms the rest."
    )


def gallery(run: RunRecord) -> str:
    """Before/after pictures of the first held-out prompts."""
    old, new = run.before, run.after
    items = [
        Pair(prompt, first.read_bytes(), second.read_bytes(), float(before), float(after))
        for prompt, first, second, before, after in zip(
            old.prompts,
            old.pictures,
            new.pictures,
            old.scores[GOLD],
            new.scores[GOLD],
            strict=False,
        )
    ]
    words = (
        "In each pair, left is the original pipeline and right the fine-tuned one, from the same "
        "noise. These are the first held-out prompts; they were not chosen. The number is the "
        "share of requested attributes that the gold checker finds."
    )
    return paragraph(words) + "\n" + pairs(items)


def weights(run: RunRecord, model_folder: str) -> str:
    """Where the LoRA is, and how to load it without this package."""
    cfg, lora = run.config, (run.folder / "lora").resolve()
    prompt = run.after.prompts[0]
    snippet = f"""import torch
from diffusers import StableDiffusionPipeline
pipe = StableDiffusionPipeline.from_pretrained({model_folder!r}, safety_checker=None)
pipe.load_lora_weights({str(lora)!r})
image = pipe({prompt!r}, num_inference_steps={cfg["num_inference_steps"]},
             guidance_scale={cfg["guidance_scale"]}, eta={cfg["eta"]},
             generator=torch.Generator().manual_seed(0)).images[0]"""
    return "\n".join(
        [
            paragraph(f"The LoRA is in {lora}, in the layout that diffusers loads:"),
            code(snippet),
            paragraph(
                f"Everything else about the run is in {run.folder.resolve()}: config.json, "
                "metrics.csv (every number of every epoch), summary.json, checkpoints and samples.",
                "note",
            ),
        ]
    )


# -- numbers as text ------------------------------------------------------------------------------


def points(share: float) -> str:
    """A difference of shares in signed percentage points."""
    return f"{100 * share:+.1f}"


def with_interval(values: Floats) -> str:
    """Mean and 95 % interval in per cent."""
    low, high = bootstrap(lambda mean: mean, values)
    return f"{100 * values.mean():.1f} [{100 * low:.1f}, {100 * high:.1f}]"
