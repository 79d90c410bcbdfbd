"""The page of a training run, read from its folder: result, curves, films, settings.

Works for every agent, during a run and after it. Where the environment does not report success, the
page shows the return instead.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from genpol.reports.charts import known
from genpol.reports.page import Panel, code, duration, figure, page, paragraph, table
from genpol.reports.stats import mcnemar, paired_difference, paired_outcomes
from genpol.steering.report import film
from genpol.training.curves import diagnostic_charts, evaluation_chart, model_charts
from genpol.training.record import TrainRecord, commands, read_run
from offline.files import write_beside

CHOOSING = ("expo", "bestofn", "idql")  # agents whose films show candidates and their values
_FILM = re.compile(r"step-(\d+)-episode-(\d+)\.(?:mp4|gif)")


def write_page(folder: Path) -> Path:
    """Write `folder`/index.html, with the films inside it.

    Raises:
        InputError: as `read_run`.
    """
    config, path = read_run(folder).config, folder / "index.html"
    title = f"{config['agent']} on {config['env']}"
    write_beside(path, page(panels(folder), title).encode())
    return path


def panels(folder: Path, *, chosen: int | None = None) -> list[Panel]:
    """All panels of the run in `folder`.

    Args:
        folder: of the run.
        chosen: show only so many layouts on film, those first on which the outcome differs (and
            say so); default all that were filmed, which are the first ones.
    """
    run = read_run(folder)
    what = "Success" if run.measure == "eval/success" else "Return"
    found = [
        Panel("Result", verdict(run)),
        Panel(f"{what} on layouts never trained on", curve(run)),
    ]
    if (charts := diagnostic_charts(run.log)) is not None:
        found.append(Panel("Training metrics", diagnostics(run, charts)))
    if (charts := model_charts(run.log)) is not None:
        words = f"Columns of metrics.csv against {run.unit}. docs/metrics.md has their equations."
        found.append(Panel("World model and critic", figure(charts, words)))
    if shown := films(run, chosen):
        found.append(Panel("The same layouts, before and after", shown))
    return [*found, Panel("Settings, cost and commands", settings(run))]


# -- panels ---------------------------------------------------------------------------------------


def verdict(run: TrainRecord) -> str:
    """Level before training and now, with the paired test."""
    first, last = run.ends
    layouts = f"{run.config['eval_episodes']} layouts never trained on"
    what = "Success" if run.measure == "eval/success" else "Mean return"
    if first == last:
        return paragraph(f"{what} on {layouts}, before training: {_level(run, first)}.")
    tested, sure = _paired(run, first, last)
    line = (
        f"{what} on {layouts}: {_level(run, first)} before training, {_level(run, last)} "
        f"after {run.so_far(last)}."
    )
    note = (
        "The second figure is the last evaluation, not the best one. This is one run with one "
        "seed: the interval and the test are over layouts, not over training seeds."
    )
    rest = [paragraph(tested)] if tested else []
    return "\n".join([paragraph(line, "good" if sure else "part"), *rest, paragraph(note, "note")])


def _level(run: TrainRecord, step: int) -> str:
    if run.measure == "eval/return":
        return f"{run.at('eval/return', step):.4g}"
    share, low, high = (100 * run.at(f"eval/success{end}", step) for end in ("", "_low", "_high"))
    return f"{share:.0f} % [{low:.0f}, {high:.0f}]"


def _paired(run: TrainRecord, first: int, last: int) -> tuple[str, bool]:
    """The paired comparison in words, and whether the gain is statistically significant.

    Without single episodes there are no words, and a gain counts if the two success intervals do
    not overlap.
    """
    old, new = run.outcomes.get(first), run.outcomes.get(last)
    if old is None or new is None or not np.array_equal(old.seeds, new.seeds):
        apart = run.measure == "eval/success" and (
            run.at("eval/success_low", last) > run.at("eval/success_high", first)
        )
        return "", apart
    if run.measure == "eval/return":
        draw = np.random.default_rng(0)
        gain, low, high = paired_difference(old.returns, new.returns, draw)
        words = (
            f"Layout by layout, the return changes by {gain:+.4g} on average (95 % interval "
            f"{low:+.4g} to {high:+.4g}, bootstrap over pairs)."
        )
        return words, low > 0
    found, p = paired_outcomes(old.success, new.success), mcnemar(old.success, new.success)
    words = (
        f"Layout by layout: {found['only_other']} failed before and succeed now, "
        f"{found['only_base']} succeeded before and fail now, {found['both']} succeed and "
        f"{found['neither']} fail both times (p = {p:.2g}, exact McNemar test, two-sided)."
    )
    return words, p < 0.05 and found["only_other"] > found["only_base"]


def curve(run: TrainRecord) -> str:
    """The chart of evaluations."""
    if run.measure == "eval/success":
        what = "Share of the evaluation layouts that succeed, with 95 % Wilson intervals."
    else:
        what = "Mean sum of the environment's own rewards. The environment reports no success."
    start = " The dashed line is the level before training."
    return figure(evaluation_chart(run.log, run.unit), what + start)


def diagnostics(run: TrainRecord, charts: bytes) -> str:
    """The small multiples."""
    words = f"Columns of metrics.csv against {run.unit}."
    if run.measure == "eval/success" and "train/success" in run.log:
        words += " Success while training is a mean over several episodes, with exploration and on"
        words += " training layouts."
    return figure(charts, words)


def films(run: TrainRecord, chosen: int | None = None) -> str | None:
    """Filmed layouts, each before and after; None where nothing was filmed."""
    found: dict[int, dict[int, Path]] = {}  # episode -> step -> film
    for path in sorted((run.folder / "videos").glob("step-*")):
        if match := _FILM.fullmatch(path.name):
            found.setdefault(int(match[2]), {})[int(match[1])] = path
    if not found:
        return None
    words = (
        "Left: before training. Right: now. Both start from the same initial state. These are the "
        "first evaluation layouts; they were not chosen."
    )
    episodes = sorted(found)
    if chosen is not None:
        episodes.sort(key=lambda i: not _differs(run, i, found[i]))  # stable: the first ones first
        episodes = episodes[:chosen]
        words = (
            "Left: before training. Right: now. Both start from the same initial state. Of "
            f"{len(found)} filmed layouts, those with a different outcome come first: these were "
            "chosen to show the change. The numbers above are over all layouts."
        )
    if run.config["agent"] in CHOOSING:
        words += (
            " Under the frames: the critic's values of all candidates at each decision (grey) and "
            "of the executed one (blue). In the corner: where each candidate would move the hand."
        )
    rows = []
    for i in episodes:
        steps = sorted(found[i])
        shown = [steps[0], steps[-1]] if len(steps) > 1 else steps
        two = "".join(
            film(found[i][step], f"videos/{found[i][step].name}", _caption(run, i, step))
            for step in shown
        )
        rows.append(f'<div class="pair"><div class="two">{two}</div></div>')
    return paragraph(words) + "\n".join(rows)


def _differs(run: TrainRecord, episode: int, at: dict[int, Path]) -> bool:
    ends = [run.outcomes[step] for step in (min(at), max(at)) if step in run.outcomes]
    return len(ends) == 2 and bool(ends[0].success[episode] != ends[1].success[episode])


def _caption(run: TrainRecord, episode: int, step: int) -> str:
    words = f"layout {episode}, step {step:,}"
    if (found := run.outcomes.get(step)) is None or run.measure != "eval/success":
        return words
    length = found.lengths[episode]
    ended = f"success after {length}" if found.success[episode] else f"no success in {length}"
    return f"{words}: {ended} steps"


def settings(run: TrainRecord) -> str:
    """Settings of the run, its cost, and the commands to repeat and to use it."""
    config, last, offline = run.config, int(run.log["step"][-1]), run.offline_updates
    start = config.get("base") or (config.get("data") and "cloned from the data") or "nothing"
    rows = [
        ["agent", str(config["agent"])],
        ["environment", str(config["env"])],
        ["starts from", str(start)],
        ["data", str(config.get("data") or "none")],
        ["environment steps", f"{max(0, last - offline):,} of {config['steps']:,}"],
    ]
    if offline:
        rows.append(["updates before the first step", f"{min(last, offline):,} of {offline:,}"])
    if (model := config.get("world_model", "none")) != "none":
        layers = " x ".join(map(str, config["model_hidden"]))
        learnt = "" if model == "simulator" else f", {config['ensemble']} of {layers} units"
        rows.append(["world model", model + learnt])
    if (bounded := config.get("lipschitz", "none")) != "none":
        rows.append(["bound on the critic", bounded])
    for name in ("episodes", "updates"):
        if len(values := known(run.log, f"train/{name}")[1]):
            rows.append([name, f"{values[-1]:,.0f}"])
    cost = [known(run.log, f"time/{kind}_seconds")[1] for kind in ("cpu", "wall")]
    if all(len(seconds) for seconds in cost):
        spent, passed = (duration(float(seconds[-1])) for seconds in cost)
        rows.append(["time, with evaluations", f"{spent} of CPU time, {passed} of wall-clock time"])
    return "\n".join(
        [
            table(["", "this run"], rows),
            paragraph("Commands to repeat this run, and to evaluate and continue it:"),
            code(commands(run)),
            paragraph(
                f"The policy is in the run folder, {run.folder.resolve()}. Every logged number is "
                "in its metrics.csv.",
                "note",
            ),
        ]
    )
