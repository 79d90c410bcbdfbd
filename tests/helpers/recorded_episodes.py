"""Recordings in memory: a policy's proposals at every decision of toy episodes."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
from toy_data import ListEpisodes, line_episode, spec


class RecordedList(ListEpisodes):
    """Episodes with `decisions(i)`, as `robots.datasets.recorded.RecordedEpisodes` has."""

    def __init__(self, episodes, made, action_spec, **rest):
        super().__init__(episodes, action_spec, **rest)
        self.made = made

    def decisions(self, index):
        return self.made[index]


def recorded(episode, every, candidates=3, chunk=None, seed=0, final=True):
    """The episode as a server saw it that was asked every so many steps, and its decisions.

    Proposals are random, but for the first, which was executed."""
    rng = np.random.default_rng(seed)
    total, chunk = len(episode), chunk or every
    frames = np.arange(0, total, every)
    observed = np.zeros(total + 1, bool)
    observed[frames], observed[-1] = True, final
    proposals = []
    for frame in frames:
        size = (candidates, chunk, episode.actions.shape[1])
        drawn = rng.uniform(-2, 2, size).astype(np.float32)
        done = episode.actions[frame : frame + chunk]
        drawn[0, : len(done)] = done
        proposals.append(drawn)
    made = SimpleNamespace(frames=frames, candidates=proposals)
    return dataclasses.replace(episode, observed=observed), made


def recorded_line(episodes=12, every=2, *, seed=0, candidates=3):
    """A recording of the line task; a third of its episodes are skilled."""
    rng = np.random.default_rng(seed)
    pairs = [
        recorded(line_episode(rng, i % 3 == 0), every, candidates, seed=i) for i in range(episodes)
    ]
    return RecordedList([e for e, _ in pairs], [m for _, m in pairs], spec())


def line_recording(path):
    """A reader for `--data recorded_episodes:line_recording@SEED`."""
    return recorded_line(seed=int(path))
