"""A robot's side of `genpol serve --lookahead`: the next answer is asked for while one runs.

    answer   0 1 2 3 4 5 6 7       the next one is asked for before 6, two actions early
    next                 0 1 2 ..  its 0 and 1 are the last one's 6 and 7, which run meanwhile

It needs NumPy alone, so that it may be copied to where nothing of genpol is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from time import perf_counter
from typing import Any

import numpy as np


class ChunkRunner:
    """Hands out a server's answers action by action, and asks in time for the next one.

    Args:
        infer: a message -> the answer, such as `infer` of openpi's `WebsocketClientPolicy`. It is
            called in a thread of its own, never twice at once.
        lookahead: actions that are left when the next answer is asked for: the --lookahead of the
            server, in its metadata as {"genpol": {"lookahead": ...}}. 0 waits for every answer.

    Attributes:
        answer: the latest answer, with all that the server says of it.
        waits: how often an answer was not there when it was needed.
        waited: seconds that `act` waited for answers.
    """

    def __init__(self, infer: Callable[[dict[str, Any]], Any], lookahead: int) -> None:
        if lookahead < 0:
            raise ValueError(f"expected a lookahead of at least 0, received {lookahead}")
        self._infer, self.lookahead = infer, lookahead
        self.answer: Mapping[str, Any] = {}
        self.waits, self.waited = 0, 0.0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="chunk-runner")
        self._asked: Future[Any] | None = None
        self._plan: np.ndarray | None = None  # (H, A) of the latest answer
        self._next = 0  # the next action of the plan
        self._done: list[np.ndarray] = []  # since the last message
        self._said: dict[str, Any] = {"reset": True}  # with the next message
        self._untold: dict[str, Any] = {}  # what failed messages said; of the thread

    def act(self, obs: Mapping[str, Any]) -> np.ndarray:
        """What to execute now: (A,), in the environment's units.

        Args:
            obs: what is observed before it. It is sent when an answer is due.

        Raises:
            Exception: what `infer` raised, once the robot has nothing more to do; or a ValueError
                for an answer that ends before it begins. The next call asks again.
        """
        if self._plan is None:
            self._ask(obs)
        elif self._asked is None and self._next >= len(self._plan) - self.lookahead:
            self._said["executed"] = np.stack(self._done)
            self._ask(obs)
        if self._plan is None or self._next >= len(self._plan):
            self._plan = self._take()
            self._next = len(self._done)  # what ran meanwhile
        self._done.append(self._plan[self._next])
        self._next += 1
        return self._done[-1]

    def did(self, action: np.ndarray) -> None:
        """The robot has executed this (A,) instead of what `act` has handed out last."""
        self._done[-1] = np.asarray(action, np.float32)

    def stop(self) -> None:
        """The robot has stopped: the rest of its answer is not executed, nor one under way."""
        if self._plan is not None:
            self._said = {"executed": self._executed(), "running": 0}
        self._forget()

    def reset(self, success: bool | None = None) -> None:
        """The episode has ended. Whether it was a success is told at once, if it is known."""
        if self._plan is not None:
            end = {"reset": True} if success is None else {"success": success}
            self._thread.submit(self._tell, {}, {"executed": self._executed(), **end})
        self._forget()
        self._said = {"reset": True}

    def close(self) -> None:
        """End the thread, without waiting for an answer."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _ask(self, obs: Mapping[str, Any]) -> None:
        said, self._said, self._done = self._said, {}, []
        self._asked = self._thread.submit(self._tell, obs, said)

    def _tell(self, obs: Mapping[str, Any], said: dict[str, Any]) -> Any:
        """In the thread: the answer to a message. What a failed one said is said again."""
        told = {**self._untold, **said}
        if "executed" in self._untold and "executed" in said:
            told["executed"] = np.concatenate([self._untold["executed"], said["executed"]])
        self._untold = {key: told[key] for key in ("reset", "executed", "running") if key in told}
        answer = self._infer({**obs, **told})
        self._untold = {}
        return answer

    def _take(self) -> np.ndarray:
        """The actions that were asked for: (H, A)."""
        asked, self._asked = self._asked, None
        assert asked is not None
        self.waits += not asked.done()
        began, begins = perf_counter(), len(self._done)
        try:
            self.answer = asked.result()
            plan = np.atleast_2d(np.asarray(self.answer["actions"], np.float32))
            if len(plan) <= begins:
                raise ValueError(
                    f"{begins} actions ran while the answer was computed, and it has {len(plan)}: "
                    "is this lookahead the server's --lookahead?"
                )
        except BaseException:
            self.stop()  # there is nothing more to do
            self._asked = None
            raise
        self.waited += perf_counter() - began
        return plan

    def _executed(self) -> np.ndarray:
        """(H', A) since the last message."""
        assert self._plan is not None
        return np.stack(self._done) if self._done else self._plan[:0]

    def _forget(self) -> None:
        """Nothing is executed any more; what was asked for is not waited for."""
        self._plan, self._asked, self._next, self._done = None, None, 0, []
