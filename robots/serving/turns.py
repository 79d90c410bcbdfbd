"""Turns of several clients at what computes: nobody waits for the whole of another's work.

Work is a function, or a generator that yields where it can be interrupted:

    yield None      the end of a slice: others may have a turn before it goes on
    yield future    it goes on when the future is done; until then it holds no turn

Clients take turns on one worker thread. Work that has not been interrupted yet goes first, but
after each such turn one slice of interrupted work is done. So a short request waits for at most the
slice under way, and one more for each short request before it; and long ones always get on. Among
equals the client that has been served the least goes first (start-time fair queueing, Goyal, Vin
and Cheng 1997): its clock shows the seconds that it was served, and whoever comes back from idling
is put forward to the clock of the least served who was there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future
from time import perf_counter
from typing import Any

Steps = Generator["Future[Any] | None", None, Any]
"""Work with interruptions; its value is what it returns."""


class Dropped(Exception):
    """Work that was given up: nobody wants it any more, or the turns have ended."""


class Client:
    """Whose turn it is; make one for each."""

    def __init__(self) -> None:
        self.clock = 0.0


class _Job:
    def __init__(self, client: Client, work: Callable[[], Any], wanted: Callable[[], bool]) -> None:
        self.client, self.work, self.wanted = client, work, wanted
        self.steps: Steps | None = None
        self.outcome: Future[Any] = Future()
        self.outcome.set_running_or_notify_cancel()  # nobody else may end it

    def advance(self) -> Future[Any] | None:
        """One turn. Sets the outcome at the end; else returns what it yields."""
        if self.steps is None:
            result = self.work()
            if not isinstance(result, Generator):
                self.outcome.set_result(result)
                return None
            self.steps = result
        try:
            return next(self.steps)
        except StopIteration as end:
            self.outcome.set_result(end.value)
            return None

    def drop(self) -> None:
        """Give it up."""
        if self.steps is not None:
            self.steps.close()
        if not self.outcome.done():
            self.outcome.set_exception(Dropped())


class Turns:
    """One worker thread, whose time clients share; `begin` is called in it first."""

    def __init__(self, begin: Callable[[], None] = lambda: None) -> None:
        self._begin = begin
        self._changed = threading.Condition()
        self._fresh: list[_Job] = []
        self._interrupted: list[_Job] = []
        self._waiting: set[_Job] = set()  # for a future
        self._owed = False  # whether interrupted work is due
        self._now = 0.0  # the clock of the least served
        self._closed = False
        self._thread: threading.Thread | None = None

    def submit(
        self,
        client: Client,
        work: Callable[[], Any],
        wanted: Callable[[], bool] = lambda: True,
    ) -> Future[Any]:
        """The result of `work`, which has no turn yet.

        Args:
            client: whose turns it takes.
            work: a function; where it returns a generator, that is run in turns.
            wanted: asked before each turn; once it says no, the work is given up (`Dropped`).
        """
        job = _Job(client, work, wanted)
        self._enter(self._fresh, job)
        return job.outcome

    def close(self) -> None:
        """End after the turn under way; what waits is given up."""
        with self._changed:
            self._closed = True
            left = [*self._fresh, *self._interrupted, *self._waiting]
            self._fresh, self._interrupted, self._waiting = [], [], set()
            self._changed.notify()
        for job in left:
            job.drop()
        if self._thread is not None:
            self._thread.join()

    def _enter(self, queue: list[_Job], job: _Job) -> None:
        with self._changed:
            self._waiting.discard(job)
            if not self._closed:
                job.client.clock = max(job.client.clock, self._now)
                queue.append(job)
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="policy", daemon=True)
                    self._thread.start()
                self._changed.notify()
                return
        job.drop()

    def _run(self) -> None:
        self._begin()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._fresh or self._interrupted)
                if self._closed:
                    return
                job = self._next()
            self._turn(job)
            del job  # or the last one's arrays would stay until the next

    def _next(self) -> _Job:
        self._now = min(one.client.clock for one in (*self._fresh, *self._interrupted))
        owed = bool(self._interrupted) and (self._owed or not self._fresh)
        self._owed = not owed
        queue = self._interrupted if owed else self._fresh
        job = min(queue, key=lambda one: one.client.clock)  # the first of equals
        queue.remove(job)
        return job

    def _turn(self, job: _Job) -> None:
        if not job.wanted():
            job.drop()
            return
        started = perf_counter()
        try:
            awaited = job.advance()
        except SystemExit as error:  # of a policy; asyncio would end the whole server with it
            job.outcome.set_exception(RuntimeError(f"sys.exit({error.code!r}) was called"))
            return
        except BaseException as error:
            job.outcome.set_exception(error)
            return
        finally:
            job.client.clock += perf_counter() - started
        if job.outcome.done():
            return
        if awaited is None:
            self._enter(self._interrupted, job)
            return
        with self._changed:
            self._waiting.add(job)
        awaited.add_done_callback(lambda _: self._enter(self._fresh, job))
