"""Labels by a judge instead of a person: what it says is written at once, or compared."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from offline.data.episodes import Episodes
from robots.datasets.labels import Judge, Label, own_index
from robots.labelling.sheet import Sheet


@dataclass
class Verdicts:
    """What a judge said of some episodes."""

    successes: int = 0
    failures: int = 0
    silent: int = 0
    """It could not say."""

    def add(self, said: bool | None) -> None:
        """Count one more."""
        self.successes += said is True
        self.failures += said is False
        self.silent += said is None


@dataclass
class Agreement:
    """What a judge said of episodes that are labelled already."""

    successes_found: int = 0
    failures_found: int = 0
    successes_missed: int = 0
    """Labelled successes that the judge calls failures."""
    failures_missed: int = 0
    """Labelled failures that the judge calls successes."""
    silent: int = 0

    def add(self, label: bool, said: bool | None) -> None:
        """Count one more."""
        self.silent += said is None
        self.successes_found += label and said is True
        self.failures_found += not label and said is False
        self.successes_missed += label and said is False
        self.failures_missed += not label and said is True


def judge_open(
    episodes: Episodes,
    sheet: Sheet,
    judge: Judge,
    *,
    parallel: int = 1,
    progress: Callable[[list[int]], Iterable[int]] = iter,
) -> Verdicts:
    """Ask the judge about every episode without a label, and write each answer as it comes.

    A label that a person writes meanwhile stays.

    Args:
        parallel: episodes that it is asked about at a time.
        progress: wraps the positions, such as tqdm.

    Raises:
        InputError: the judge fails. What it said before is in the file.
    """
    labels = sheet.read()
    todo = [p for p in range(len(episodes)) if own_index(episodes, p) not in labels]
    verdicts = Verdicts()
    for position, said in _asked(episodes, todo, judge, parallel, progress):
        if said is not None:
            sheet.put_new({own_index(episodes, position): Label(said)})
        verdicts.add(said)
    return verdicts


def all_succeeded(episodes: Episodes, sheet: Sheet) -> Verdicts:
    """Every episode without a label is a success; none is read."""
    indices = (own_index(episodes, position) for position in range(len(episodes)))
    return Verdicts(successes=sheet.put_new({index: Label(True) for index in indices}))


def compare(
    episodes: Episodes,
    sheet: Sheet,
    judge: Judge,
    *,
    parallel: int = 1,
    progress: Callable[[list[int]], Iterable[int]] = iter,
) -> Agreement:
    """Ask the judge about every episode with a label, and change nothing; see `judge_open`."""
    labels = sheet.read()
    known = {p: labels.get(own_index(episodes, p)) for p in range(len(episodes))}
    found = Agreement()
    todo = [p for p, label in known.items() if label is not None and label.success is not None]
    for position, said in _asked(episodes, todo, judge, parallel, progress):
        label = known[position]
        assert label is not None
        found.add(bool(label.success), said)
    return found


def _asked(
    episodes: Episodes,
    positions: list[int],
    judge: Judge,
    parallel: int,
    progress: Callable[[list[int]], Iterable[int]],
) -> Iterator[tuple[int, bool | None]]:
    """Each position and what the judge says, in order; at most `parallel` episodes are in memory.

    Episodes are read here, in one thread.
    """
    pool = ThreadPoolExecutor(parallel, thread_name_prefix="judge")
    waiting: list[tuple[int, Future[bool | None]]] = []
    try:
        for position in progress(positions):
            episode = episodes[position]
            waiting.append((position, pool.submit(judge, episode, own_index(episodes, position))))
            if len(waiting) >= parallel:
                first, future = waiting.pop(0)
                yield first, future.result()
        for first, future in waiting:
            yield first, future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
