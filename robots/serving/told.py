"""What a robot tells beside its observation, and what is told on to whoever listens.

reset         True begins a new episode; alone, it is only that
executed      (H', A) in the environment's units: what the robot really did of the last answer;
              all of it where this is missing, nothing of it where H' is 0
intervention  True beside "executed": a human did that
reward        of what was executed since the last observation; alone, it ends the episode
success       True ends the episode: the observation beside it is its last one. False beside an
              observation says that there is none yet; alone, it ends the episode
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from offline.errors import InputError, shown
from robots.serving.observations import kind_of, numbers, row_of

FEATURES = ("reset", "executed", "intervention", "reward", "success")
LONGEST = 10_000
"""Actions that a human may have executed between two messages."""


@dataclass(frozen=True)
class Told:
    """What one message says beside its observation."""

    reset: bool = False
    executed: np.ndarray | None = None
    """(H', A) float32, in the environment's units."""
    intervention: bool = False
    reward: float | None = None
    success: bool | None = None
    alone: bool = False
    """Whether the message has no observation."""

    @property
    def anything(self) -> bool:
        """Whether it says anything."""
        verdict = self.success is not None or self.reward is not None
        return self.reset or verdict or self.executed is not None

    @property
    def ends(self) -> bool:
        """Whether the episode that was going on is over."""
        verdict = self.success is not None or self.reward is not None
        return self.reset or self.success is True or (self.alone and verdict)

    def echo(self) -> dict[str, Any]:
        """The answer to a message without an observation: what was understood."""
        said = {"reset": self.reset or None, "reward": self.reward, "success": self.success}
        said["executed"] = None if self.executed is None else len(self.executed)
        return {key: value for key, value in said.items() if value is not None}


@dataclass(frozen=True)
class Decided:
    """One decision, as it is answered to the robot. Actions are in the environment's units."""

    candidates: np.ndarray
    """(K, H, A): what was chosen among."""
    scores: np.ndarray
    """(K,); empty where nothing was scored."""
    chosen: int
    """Into the candidates; -1 where what is answered is none of them."""
    answer: np.ndarray
    """(H', A): what the robot is sent."""
    latency: float
    """Seconds since the message came."""
    version: str = ""
    """Which version of the value or the edit decided, where several are served."""


class Listener(Protocol):
    """Follows one client's conversation. It must not slow it, nor raise."""

    def told(self, told: Told, message: dict[str, Any]) -> None:
        """What a message says of what came before it.

        Args:
            told: that.
            message: the rest of it, an observation; empty where it has none.
        """

    def decided(self, message: dict[str, Any], decided: Decided) -> None:
        """What is about to be answered to an observation; a message's `told` comes first."""

    def close(self) -> None:
        """The client has gone."""


def take_told(request: dict[str, Any], dim: int, chunk: int | None) -> Told:
    """Takes what a message tells out of it.

    Args:
        request: the message; what is left of it is an observation.
        dim: A of the actions.
        chunk: actions that an answer has; None where that is not known.

    Raises:
        InputError: it is of another kind; names the key.
    """
    reset = take_flag(request, "reset") or False
    by_hand = take_flag(request, "intervention") or False
    success, executed = take_flag(request, "success"), request.pop("executed", None)
    reward = _take_number(request, "reward")
    if by_hand and executed is None:
        raise InputError('"intervention" needs "executed", the actions (H, A) that the human did')
    raw: np.ndarray | None = None
    if executed is not None:
        array = numbers(executed)
        rows = len(array) if array is not None and array.ndim else 1
        raw = row_of("executed", executed, (rows, dim))[0].numpy()
        most = LONGEST if by_hand or chunk is None else chunk
        if rows > most:
            raise InputError(f'"executed" has {rows} actions, expected up to {most}')
    told = Told(reset, raw, by_hand, reward, success)
    return replace(told, alone=told.anything and not request)


def take_flag(request: dict[str, Any], name: str) -> bool | None:
    """Takes true or false out of a request; None where it is not there.

    Raises:
        InputError: it is neither.
    """
    if name not in request:
        return None
    value = _item(request.pop(name))
    if not isinstance(value, bool | np.bool_ | int | np.integer) or value not in (0, 1):
        raise InputError(f'"{name}" is {shown(kind_of(value))}, expected true or false')
    return bool(value)


def _take_number(request: dict[str, Any], name: str) -> float | None:
    if name not in request:
        return None
    value = _item(request.pop(name))
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise InputError(f'"{name}" is {shown(kind_of(value))}, expected a number')
    try:
        found = float(value)
    except (OverflowError, TypeError):
        found = float("inf")
    if not np.isfinite(found):
        raise InputError(f'"{name}" is NaN or infinite')
    return found


def _item(value: Any) -> Any:
    return value.item() if isinstance(value, np.ndarray) and value.size == 1 else value
