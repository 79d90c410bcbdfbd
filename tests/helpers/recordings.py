"""Recordings: what robots tell a recorder without a server, and what is left of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from offline.spec import ActionSpec
from robots.datasets.recorded import RecordedEpisodes
from robots.recording.assemble import assemble
from robots.recording.folder import RecordingFolder
from robots.recording.journal import Journal, read_journal
from robots.recording.recorder import Recorder
from robots.serving.told import Decided, Told

SPEC = ActionSpec.from_bounds([-1, -2, 0], [1, 2, 4], chunk=2, names=("x", "y", "grip"))


def picture(value: int, height: int = 16, width: int = 24) -> np.ndarray:
    """One colour, which H.264 keeps nearly as it is."""
    return np.full((height, width, 3), value, np.uint8)


def decided(number: float, candidates: int = 3, chunk: int = 2) -> Decided:
    """Candidate k is number + k / 10 in each dimension; the last one is chosen."""
    each = number + np.arange(candidates)[:, None, None] / 10
    acts = np.broadcast_to(each, (candidates, chunk, 3)).astype(np.float32)
    scores = np.arange(candidates, dtype=np.float32)
    return Decided(acts, scores, candidates - 1, acts[-1], 0.25, "v1")


def play(
    listener, states, *, prompt: str = "push", pictures: bool = False, told: Told | None = None
):
    """An episode of a decision for each state, ended by `told`."""
    for state in states:
        message = {"observation/state": np.array([state, 2 * state]), "prompt": prompt}
        if pictures:
            message["observation"] = {"images": {"top": picture(10 * int(state))}}
        listener.decided(message, decided(state / 10))
    listener.told(told or Told(reset=True), {})


def record(folder: Path, *episodes, **options) -> Recorder:
    """A closed recorder, which was told these episodes: keyword arguments of `play`."""
    recorder = Recorder(folder, SPEC, 10.0, **options)
    listener = recorder.listener()
    for episode in episodes:
        play(listener, **episode)
    recorder.close()
    return recorder


def unconverted(folder: Path, **options) -> Recorder:
    """A recorder that leaves its journals."""
    recorder = Recorder(folder, SPEC, 10.0, **options)
    recorder.finish = lambda journal: None  # type: ignore[method-assign]
    return recorder


def converted(folder: Path, *episodes, **options) -> RecordedEpisodes:
    """The same, converted in this process: what `robots.recording.convert` does in its own."""
    recorder = unconverted(folder, **options)
    listener = recorder.listener()
    for episode in episodes:
        play(listener, **episode)
    recorder.close()
    add_journals(folder)
    return RecordedEpisodes(folder)


def add_journals(folder: Path) -> RecordingFolder:
    """Convert all journals, oldest first."""
    target = RecordingFolder(folder)
    journals = (folder / "genpol" / "open").glob("*.journal")
    for journal in sorted(journals, key=lambda path: path.stat().st_mtime_ns):
        episode = assemble(read_journal(journal), journal.stem)
        if episode is not None:
            target.add(episode, journal)
        journal.unlink()
    return target


def journal_of(path: Path, *records) -> Path:
    """A journal with these records."""
    journal = Journal(path)
    journal.append(*records)
    journal.close()
    return path
