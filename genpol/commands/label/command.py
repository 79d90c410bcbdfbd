"""`genpol label`: a page on which a person says which episodes succeeded, or a judge that does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from genpol.commands.label.options import ALL, Label, check

if TYPE_CHECKING:
    from offline.data.episodes import Episodes
    from robots.datasets.labels import Judge
    from robots.datasets.labels import Label as Spoken
    from robots.labelling.sheet import Sheet


def run(config: Label) -> None:
    """Serve the page until it is finished or Ctrl-C; with --success ask the judge and leave."""
    from robots.labelling.sheet import Sheet, sheet_of

    check(config)
    episodes = open_with_pictures(config.data)  # none is read yet
    path = config.labels or sheet_of(episodes, config.data)
    sheet = Sheet(path.expanduser())
    if config.success is not None:
        _judge(config, episodes, sheet)
    else:
        _page(config, sheet)
    print(summary(episodes, sheet))


def open_with_pictures(data: str) -> Episodes:
    """The dataset without its labels, videos decoded."""
    from robots.datasets.open import open_as_stored

    return open_as_stored(data, images=True)


def _page(config: Label, sheet: Sheet) -> None:
    from robots.labelling.server import Labelling, LabelServer

    labelling = Labelling(
        lambda: open_with_pictures(config.data), sheet, fps=config.fps, height=config.height
    )
    server = LabelServer(labelling, port=config.port)
    print(
        f"label on {server.address} (Finish on the page, or Ctrl-C here, ends it; every label is "
        "written at once)",
        flush=True,
    )
    if config.open_browser:
        import webbrowser

        webbrowser.open(server.address)
    try:
        server.run()
    except KeyboardInterrupt:
        print()


def _judge(config: Label, episodes: Episodes, sheet: Sheet) -> None:
    if config.success == ALL:
        from robots.labelling.judged import all_succeeded

        print(f"{all_succeeded(episodes, sheet).successes} episodes are successes now")
        return
    judge, parallel, close = judge_of(str(config.success), config.height)
    try:
        print(_asked(config, episodes, sheet, judge, parallel))
    finally:
        close()


def _asked(config: Label, episodes: Episodes, sheet: Sheet, judge: Judge, parallel: int) -> str:
    """Ask the judge; what it came to in one line."""
    from tqdm import tqdm

    from offline.errors import InputError
    from robots.labelling.judged import compare, judge_open

    def progress(positions: list[int]) -> tqdm:
        return tqdm(positions, unit="episode", leave=False, disable=len(positions) < 5, delay=2)

    if config.compare:
        found = compare(episodes, sheet, judge, parallel=parallel, progress=progress)
        said = found.successes_found + found.failures_found
        missed = found.successes_missed + found.failures_missed
        if not said + missed + found.silent:
            raise InputError(
                f'--compare needs labels to compare with, and "{sheet.path}" has none: label some '
                "episodes on the page first"
            )
        return (
            f"{config.success} agrees with {said} of {said + missed} labels: it calls "
            f"{found.successes_missed} of {found.successes_found + found.successes_missed} "
            f"successes failures, and {found.failures_missed} of "
            f"{found.failures_found + found.failures_missed} failures successes; it could not say "
            f"of {found.silent}"
        )
    done = judge_open(episodes, sheet, judge, parallel=parallel, progress=progress)
    return (
        f"{config.success} called {done.successes} episodes successes and {done.failures} "
        f"failures" + (f", and could not say of {done.silent}" if done.silent else "")
    )


def judge_of(text: str, height: int) -> tuple[Judge, int, Callable[[], None]]:
    """The judge that --success names, how many episodes it is asked about at a time, and what ends
    it."""
    if text.startswith("vlm@"):
        from genpol.commands.label.vlm import load_judge

        judge = load_judge(text.removeprefix("vlm@"), height)
        return judge, judge.concurrency, judge.close
    from robots.datasets.labels import judge_named

    return judge_named(text), 1, lambda: None


def summary(episodes: Episodes, sheet: Sheet) -> str:
    """How far the labels came, what takes them up, and success by version of a recording."""
    from robots.datasets.labels import labels_beside

    found = sheet.read()
    labels = found.values()
    yes = sum(label.success is True for label in labels)
    no = sum(label.success is False for label in labels)
    line = (
        f"{sheet.path}: {len(labels)} of {len(episodes)} episodes labelled, "
        f"{yes} success{'es' * (yes != 1)}, {no} failure{'s' * (no != 1)}, "
        f"{len(labels) - yes - no} skipped"
    )
    beside = labels_beside(episodes)
    if labels and (beside is None or beside.resolve() != sheet.path.resolve()):
        line += f"; pass --success {sheet.path} to the command that learns from them"
    return "\n".join([line, *by_version(episodes, found)])


def by_version(episodes: Episodes, labels: Mapping[int, Spoken]) -> list[str]:
    """Success by the version that an episode ended with, a line each; [] without versions.

    Args:
        episodes: a recording, or any dataset.
        labels: by the dataset's own index. Where there is none, what the robot said counts.
    """
    from genpol.reports.stats import wilson
    from robots.datasets.labels import own_index

    facts_of: Any = getattr(episodes, "facts", None)
    counts: dict[str, list[int]] = {}
    for position in range(len(episodes)) if facts_of is not None else ():
        facts = facts_of(position)
        label = labels.get(own_index(episodes, position))
        success = facts.success if label is None else label.success
        if success is not None:
            count = counts.setdefault(facts.versions[-1] if facts.versions else "", [0, 0])
            count[0] += success
            count[1] += 1
    lines = []
    for version, (won, of) in counts.items() if set(counts) - {""} else ():
        low, high = wilson(won, of)
        name = f"version {version}" if version else "the policy as it is"
        lines.append(f"  {name}: {won} of {of} succeeded ({won / of:.0%}, {low:.0%} to {high:.0%})")
    return lines
