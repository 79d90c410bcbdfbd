"""The last observations of episodes that run side by side, for policies that look back."""

from __future__ import annotations

from torch import Tensor

from offline.types import Obs


class History:
    """Up to `window` observations, one environment step apart.

    A policy is shown observations only when it decides. So the observation of the last decision
    is one step old only if that decision executed one action; after a longer chunk the frames in
    between were never seen, and the history starts anew as at the beginning of an episode (frames
    further apart than in training would read as a speed several times too high).
    """

    def __init__(self, window: int) -> None:
        self.window = window
        self._past: list[Obs] = []
        self._present: Obs | None = None

    def reset(self) -> None:
        self._past, self._present = [], None

    def frames(self, obs: Obs) -> tuple[list[Obs], list[bool]]:
        """(window frames, oldest first; which are real), the rest repeats the oldest real one."""
        self._present = obs
        real = [*self._past, obs]
        padding = self.window - len(real)
        return [real[0]] * padding + real, [False] * padding + [True] * len(real)

    def commit(self, steps: int) -> None:
        """The present decision executes `steps` actions."""
        if steps == 1 and self._present is not None and self.window > 1:
            self._past = [*self._past, self._present][1 - self.window :]
        else:
            self._past = []
        self._present = None

    def keep(self, rows: Tensor) -> None:
        """Only these rows go on: (R,) indices."""
        self._past = [{key: value[rows] for key, value in frame.items()} for frame in self._past]
        if self._present is not None:
            self._present = {key: value[rows] for key, value in self._present.items()}
