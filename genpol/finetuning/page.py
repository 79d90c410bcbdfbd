"""The page of a fine-tuning run, read from its folder: result, controls, curves, pictures, cost.

Works during a run and after it, and for folders that an earlier version left. Everything is inside
the HTML. `write_page(folder)` writes it again.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import numpy as np

from diffusion.config import FinetuneConfig
from diffusion.prompts.sources import GENERATORS
from diffusion.recommended import recommended
from genpol.finetuning.controls import best_of_k_kl, equal_k
from genpol.finetuning.curves import metric_charts, reward_chart
from genpol.finetuning.record import RunRecord, read_run
from genpol.finetuning.samples import Scores
from genpol.finetuning.win_rate import win_rate
from genpol.reports.intervals import decimals, difference, gained, with_interval
from genpol.reports.page import Pair, Panel, code, duration, figure, page, pairs, paragraph, table
from offline.files import disk_errors, write_beside

PAGE = "report.html"
SHARES = ("gold", "gold_wholly", "attributes", "attributes_hard")  # rewards that are shares
# What is said of a run first; of the rest, only what differs from the recommended value.
FACTS = ("model", "pipeline_class", "algorithm", "reward", "prompts", "lora", "train", "seed")


def write_page(folder: Path) -> Path:
    """Write `folder`/report.html.

    Raises:
        InputError: the disk refuses, or a file of the run cannot be read.
    """
    run, path = read_run(folder), folder / PAGE
    title = f"{run.config.get('algorithm', 'prdp')} on {run.config.get('reward')}"
    with disk_errors(f"cannot write {path}", "Free some space; continue with --resume"):
        write_beside(path, page(panels(run), title).encode())
    return path


def panels(run: RunRecord) -> list[Panel]:
    """All panels for which the run has something to show yet."""
    found = [Panel("Result", result(run))]
    if run.pair is not None:
        found.append(Panel("Held-out prompts, before and after", comparison(run)))
    if run.controls and run.after is not None:
        found.append(Panel("Beside it: the pipeline without training", beside(run)))
    if (curves := reward_chart(run)) is not None:
        found.append(Panel("Rewards while training", figure(curves, reward_words(run))))
    charts, words = metric_charts(run)
    if charts is not None:
        text = "Columns of metrics.csv against the epoch. docs/metrics.md has their equations."
        found.append(Panel("Other metrics", figure(charts, f"{text} {words}".strip())))
    if run.pair is not None:
        found.append(Panel("The same prompts and noise, before and after", gallery(run)))
    return [
        *found,
        Panel("Settings", settings(run)),
        Panel("Time and cost", cost(run)),
        Panel("Weights and commands", weights(run)),
    ]


# -- panels ---------------------------------------------------------------------------------------


def result(run: RunRecord) -> str:
    """What came out, in a few sentences."""
    of = run.config.get("epochs")
    if run.pair is None:
        now, start = run.last("eval/reward"), _first(run, "reward")
        words = f"The run has done {run.epochs} of {of} epochs."
        if now is not None and start is not None and run.epochs:
            words += f" The held-out reward began at {start:.4g} and was {now:.4g} at last."
        return paragraph(words)
    before, after = run.pair
    old, new = before.scores["reward"], after.scores["reward"]
    gain, low, high = difference(old, new)
    digits = decimals(old, new)
    sure = "good" if low > 0 else "part"
    found = [
        paragraph(
            f"On {len(new)} {_whose(run)} the mean reward went from {old.mean():.{digits}f} to "
            f"{new.mean():.{digits}f}, by {gain:+.{digits}f} (95 % interval {low:+.{digits}f} to "
            f"{high:+.{digits}f}). The fine-tuned picture has the higher reward in "
            f"{win_rate(new, old)} of the prompts; ties count half.",
            sure,
        )
    ]
    for name in _golds(after):
        g_gain, g_low, g_high = difference(before.scores[name], after.scores[name])
        digits = decimals(before.scores[name], after.scores[name])
        line = (
            f"{name}, which was not trained on, changed by {g_gain:+.{digits}f} "
            f"({g_low:+.{digits}f} to {g_high:+.{digits}f})."
        )
        if low > 0 and g_high < 0:
            line += " The reward rose and this fell: training may have exploited the reward."
        found.append(paragraph(line, "part" if g_high < 0 else ""))
    if (largest := _largest(run)) is not None:
        k, scores = largest
        found.append(
            paragraph(
                f"The untrained pipeline with the best of {k} gets a reward of "
                f"{scores.scores['reward'].mean():.{decimals(old, new)}f}. The fine-tuned picture, "
                f"which is drawn once, has the higher reward in "
                f"{win_rate(new, scores.scores['reward'])} of the prompts."
            )
        )
    note = (
        "This is one run with one seed. Intervals and win rates are over prompts, not over "
        "training seeds."
    )
    return "\n".join([*found, paragraph(note, "note")])


def comparison(run: RunRecord) -> str:
    """Every held-out score before and after, with paired intervals and win rates."""
    assert run.pair is not None
    before, after = run.pair
    rows = []
    for name in after.scores:
        if name not in before.scores:
            continue
        old, new = before.scores[name], after.scores[name]
        digits = decimals(old, new)
        rows.append(
            [
                _label(run, name),
                with_interval(old, digits),
                with_interval(new, digits),
                gained(old, new, digits),
                str(win_rate(new, old)),
            ]
        )
    note = (
        f"{len(after.prompts)} {_whose(run)}, one picture each, the same noise before and after. "
        "In brackets: 95 % bootstrap intervals over prompts; for the gain, over paired "
        "differences. Wins: share of prompts whose picture scores higher after training, ties "
        "half, with a 95 % Wilson interval."
    )
    head = ["score", "before", "after", "gain", "wins"]
    return table(head, rows) + paragraph(note, "note")


def beside(run: RunRecord) -> str:
    """Best of K and guidance without training, on the same prompts."""
    assert run.after is not None
    same = {n: s for n, s in run.controls.items() if s.prompts == run.after.prompts}
    names = [n for n in run.after.scores if all(n in s.scores for s in same.values())]
    arms = {"fine-tuned": run.after} | ({"untrained": run.before} if run.pair else {})
    arms |= {f"untrained, {name.replace('_', ' ')}": scores for name, scores in same.items()}
    digits = {n: decimals(*(s.scores[n] for s in arms.values() if s)) for n in names}
    calls, n = _reward_calls(run), len(run.after.prompts)
    means = [
        [
            _arm(arm, calls, n),
            *(with_interval(s.scores[name], digits[name]) for name in names),
            _kl(run, arm),
        ]
        for arm, s in arms.items()
        if s
    ]
    wins = [
        [arm, *(str(win_rate(run.after.scores[name], s.scores[name])) for name in names)]
        for arm, s in arms.items()
        if s and arm != "fine-tuned"
    ]
    words = (
        f"Training asked the reward {calls:,} times. The best of K asks it K times a prompt, here "
        f"of {n} prompts. The training reward chooses the best candidate, the other scores judge "
        "what it chose. Everything is drawn by the weights that training started from."
    )
    note = (
        "KL: from the untrained pipeline, in nats. Of fine-tuning it is the mean over whole "
        "trajectories in the last epoch; of the best of K it is at most log K - (K - 1) / K for an "
        "image. The two are bounds of the same kind, and not the same number."
    )
    return "\n".join(
        [
            paragraph(words),
            table(["arm", *names, "KL"], means),
            paragraph("How often the fine-tuned picture scores higher (ties half):"),
            table(["against", *names], wins),
            paragraph(note, "note"),
        ]
    )


def reward_words(run: RunRecord) -> str:
    """Caption of the large chart."""
    count = run.config.get("eval_images")
    return (
        "Grey: rewards of each epoch's training images, drawn before its update. Dots: held-out "
        f"prompts with the same noise every time; all points are over the same prompts (the first "
        f"{count}), while the tables are over all."
    )


def gallery(run: RunRecord) -> str:
    """Before/after pictures of the first held-out prompts, with their scores."""
    assert run.pair is not None
    before, after = run.pair
    name = "gold" if "gold" in after.scores and "gold" in before.scores else "reward"
    share = name in SHARES
    shown = list(zip(before.pictures, after.pictures, strict=False))
    items = [
        Pair(
            after.prompts[i],
            old.read_bytes(),
            new.read_bytes(),
            _mark(before.scores[name][i], share),
            _mark(after.scores[name][i], share),
        )
        for i, (old, new) in enumerate(shown)
    ]
    what = (
        "the share of requested attributes that the gold checker finds" if share else "the reward"
    )
    words = (
        "In each pair, left is the pipeline that training started from and right the fine-tuned "
        "one, from the same noise. These are the first held-out prompts; they were not chosen. "
        f"Under each picture: {what}."
    )
    return paragraph(words) + "\n" + pairs(items)


def settings(run: RunRecord) -> str:
    """What was trained on what, and which settings differ from the recommended ones."""
    config = run.config
    given = [name for name in FACTS if config.get(name) is not None]
    facts = [[name.replace("_", " "), _value(config[name])] for name in given]
    model, algorithm = config.get("model"), config.get("algorithm") or "prdp"
    usual = {f.name: f.default for f in fields(FinetuneConfig) if f.default is not MISSING}
    usual |= recommended(model, algorithm)
    rows = [
        [name.replace("_", " "), _value(config[name]), _value(value)]
        for name, value in usual.items()
        if name not in FACTS and value is not None and config.get(name, value) != value
    ]
    found = [table(["", "this run"], facts)]
    if rows:
        found.append(paragraph("Settings that differ from those recommended for this model:"))
        found.append(table(["setting", "this run", "recommended"], rows))
    else:
        found.append(paragraph("All other settings are those recommended for this model."))
    note = "config.json has every setting, the versions of the libraries and the command."
    return "\n".join([*found, paragraph(note, "note")])


def cost(run: RunRecord) -> str:
    """Images, reward calls and time."""
    config, rows = run.config, []
    images = run.last("train/images")
    if images:
        rows.append(["images drawn for training", f"{images:,.0f}"])
    rows.append(["reward calls of training", f"{_reward_calls(run):,}"])
    if run.after is not None:
        rows.append(["held-out images of each final evaluation", f"{len(run.after.prompts):,}"])
        extra = len(run.after.prompts) * sum(n.startswith("guidance_") for n in run.controls)
        if (largest := _largest(run)) is not None:
            extra += largest[0] * len(run.after.prompts)
        if extra:
            rows.append(["images of the untrained pipeline, for comparison", f"{extra:,}"])
    wall = run.summary.get("time/seconds") or run.last("time/seconds")
    cpu = run.summary.get("time/cpu_seconds") or run.last("time/cpu_seconds")
    if wall:
        rows.append(["time, with everything", duration(float(wall))])
    if cpu:
        rows.append(["processor time of all threads", duration(float(cpu))])
        if images:
            rows.append(["CPU-seconds for each training image", f"{float(cpu) / images:.3g}"])
    speed = run.log.get("time/images_per_second")
    if speed is not None and np.isfinite(speed).any():
        rows.append(["training images a second, median epoch", f"{np.nanmedian(speed):.3g}"])
    if (peak := run.last("memory/peak_mb")) is not None:
        rows.append(["peak memory", f"{peak:,.0f} MB"])
    note = "Processor time is of the CPU. Work on a GPU is in the time with everything only."
    device = [["device", str(config["device"])]] if config.get("device") else []
    return table(["", "this run"], [*device, *rows]) + paragraph(note, "note")


def weights(run: RunRecord) -> str:
    """Where the weights are, and the commands to use and to extend the run."""
    config, folder = run.config, run.folder
    kind, model = ("lora" if config.get("train") != "full" else "unet"), str(config.get("model"))
    place = shlex.quote(str(folder))
    generate = ["genpol generate", f"--model {shlex.quote(model)}", f"--{kind} {place}/{kind}"]
    words = config.get("prompts")
    given = shlex.quote(str(words)) if words else "prompts.txt"
    count = " --num-prompts 16" if words in GENERATORS else ""
    generate.append(f"--prompts {given}{count} --output images")
    more = f"genpol finetune --resume {place} --epochs {2 * int(config.get('epochs') or 1)}"
    found = [
        paragraph(f"The weights are in {(folder / kind).resolve()}."),
        code(" \\\n    ".join(generate) + "\n" + more),
    ]
    name = config.get("pipeline_class")
    if kind == "lora" and name and model not in ("tiny", "tiny-flow"):
        found += _elsewhere(name, model, str((folder / kind).resolve()))
    note = (
        "In the run folder: config.json, metrics.csv (every number of every epoch), summary.json, "
        "checkpoints/, and in samples/ every held-out prompt with its scores."
    )
    return "\n".join([*found, paragraph(note, "note")])


def _elsewhere(pipeline: str, model: str, lora: str) -> list[str]:
    """How a LoRA is loaded in a program of one's own; nothing for a class of the user's own."""
    import diffusers

    kind: Any = getattr(diffusers, pipeline, None)
    if kind is None:
        return []
    if hasattr(kind, "load_lora_weights"):
        opening = f"from diffusers import {pipeline}\npipe = {pipeline}.from_pretrained({model!r})"
        words = "In plain diffusers:"
        return [paragraph(words), code(f"{opening}\npipe.load_lora_weights({lora!r})")]
    words = f"In Python (diffusers itself loads no LoRA into a {pipeline}):"
    return [
        paragraph(words),
        code(f"from diffusion import load_lora\nload_lora(pipe, {lora!r})  # a {pipeline}"),
    ]


# -- numbers as text ------------------------------------------------------------------------------


def _whose(run: RunRecord) -> str:
    trained = run.config.get("held_out") == 0 and not run.config.get("eval_prompts")
    return "prompts that are trained on, as --held-out is 0," if trained else "held-out prompts"


def _first(run: RunRecord, name: str) -> float | None:
    values = run.evaluations(name)[1]
    return float(values[0]) if len(values) else None


def _golds(scores: Scores) -> list[str]:
    return [name for name in scores.scores if name != "reward"]


def _label(run: RunRecord, name: str) -> str:
    return f"reward ({run.config.get('reward')})" if name == "reward" else name


def _largest(run: RunRecord) -> tuple[int, Scores] | None:
    """K and scores of the largest best of K that is of the final evaluation's prompts."""
    found = [
        (int(name.removeprefix("best_of_")), scores)
        for name, scores in run.controls.items()
        if name.startswith("best_of_") and run.after and scores.prompts == run.after.prompts
    ]
    return max(found, key=lambda one: one[0]) if found else None


def _reward_calls(run: RunRecord) -> int:
    calls = run.summary.get("train/reward_calls")
    if calls is None:
        config = run.config
        each = (config.get("prompts_per_epoch") or 0) * (config.get("images_per_prompt") or 0)
        calls = run.epochs * each
    return int(calls)


def _arm(arm: str, calls: int, n: int) -> str:
    """An arm's name, and what it cost in reward calls where it chose by the reward."""
    if "best of " not in arm:
        return arm
    k = int(arm.rsplit(" ", 1)[1])
    same = ", as many as training" if calls and k == equal_k(calls, n) else ""
    return f"{arm} ({k * n:,} reward calls{same})"


def _kl(run: RunRecord, arm: str) -> str:
    if arm == "fine-tuned":
        kl = run.last("kl/nats")
        return "" if kl is None else f"{kl:.3g}"
    if "best of " in arm:
        return f"≤ {best_of_k_kl(int(arm.rsplit(' ', 1)[1])):.2f}"
    return "0" if arm == "untrained" else ""


def _mark(score: float, share: bool) -> float | str:
    return float(score) if share else f"{float(score):.4g}"


def _value(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(str, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)
