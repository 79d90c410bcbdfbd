"""Environments in processes of their own, by gymnasium's `AsyncVectorEnv`.

What this adds to gymnasium is how such processes come to their end:

- A signal to the whole group (Ctrl-C, a scheduler's SIGTERM) is the main process's to answer: it
  saves a checkpoint, and the environments go on until it closes them.
- A worker that dies, such as for want of memory, is one line. An error of a simulator is raised as
  it would be in this process. Nobody waits for the others then: the dead one may have held the
  permit to compute that they wait for.
- No worker outlives the main process, however that ends.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import queue
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import connection
from typing import Any

from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from gymnasium.vector.async_vector_env import AsyncState, _async_worker

from offline.errors import InputError

POLITE = 5.0  # seconds that workers have to close their environments
WATCHED = 1.0  # seconds between a worker's looks at whether the main process is there


class WorkerEnvs(AsyncVectorEnv):
    """An environment in each of several processes, without autoreset.

    Args:
        makers: of each environment.
        context: how processes start: "fork", "spawn", or None for the system's usual way.
        at_work: how many may compute at the same time; default all.

    Raises:
        InputError: a worker ended; also from `reset` and `step`.
        Other exceptions: those of an environment, from `reset` and `step`.
    """

    def __init__(
        self,
        makers: Sequence[Callable[[], Any]],
        *,
        context: str | None = None,
        at_work: int | None = None,
    ) -> None:
        with self._named():
            super().__init__(
                makers,
                autoreset_mode=AutoresetMode.DISABLED,
                context=context,
                worker=_worker,
                max_concurrency=at_work,
            )
        atexit.register(_kill, weakref.ref(self))

    def reset_async(self, seed: Any = None, options: Any = None) -> None:
        with self._named():
            super().reset_async(seed, options)

    def reset_wait(self, timeout: float | None = None) -> Any:
        with self._named():
            return super().reset_wait(timeout)

    def step_async(self, actions: Any) -> None:
        with self._named():
            super().step_async(actions)

    def step_wait(self, timeout: float | None = None) -> Any:
        with self._named():
            return super().step_wait(timeout)

    def close_extras(self, timeout: float | None = None, terminate: bool = False) -> None:
        """Close the environments; a worker that does not within `POLITE` seconds is killed."""
        idle = self._state is AsyncState.DEFAULT
        for pipe in self.parent_pipes:
            with contextlib.suppress(OSError, AttributeError):  # its worker is gone
                if idle and not terminate:
                    pipe.send(("close", None))
        until = time.monotonic() + (POLITE if idle and not terminate else 0.0)
        for process in self.processes:
            process.join(max(0.0, until - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()
        for pipe in self.parent_pipes:
            if pipe is not None:
                pipe.close()

    def _poll_pipe_envs(self, timeout: float | None = None) -> bool:
        """Whether all workers answer in time; raises as soon as one has ended."""
        self._assert_is_running()
        until = None if timeout is None else time.monotonic() + timeout
        ends = {process.sentinel: process for process in self.processes}
        waiting = list(self.parent_pipes)
        while waiting:
            left = None if until is None else max(0.0, until - time.monotonic())
            ready = connection.wait([*waiting, *ends], left)
            if not ready:
                return False
            for sentinel in ready:
                if sentinel in ends:
                    ends[sentinel].join()
                    if ends[sentinel].exitcode == 0:
                        self._raise_if_errors([False])
                    raise EOFError
            waiting = [pipe for pipe in waiting if pipe not in ready]
        return True

    def _raise_if_errors(self, successes: Iterable[bool]) -> None:
        """The first error of a worker, raised here."""
        if not all(successes):
            try:
                _, kind, value, _ = self.error_queue.get(timeout=POLITE)
            except queue.Empty:  # it left Python before it could say why
                raise EOFError from None
            raise value if isinstance(value, kind) else kind(value)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """A worker's end as one line."""
        try:
            yield
        except (EOFError, ConnectionError) as error:
            raise InputError(self._whose_end()) from error

    def _whose_end(self) -> str:
        """Which worker ended, and how."""
        for process in self.processes:
            process.join(0.2)  # its pipe closes a moment before it is gone
        for i, process in enumerate(self.processes):
            code = process.exitcode
            if code is None:
                continue
            how = f"with exit code {code}"
            if code < 0:
                with contextlib.suppress(ValueError):
                    how = f"by the signal {signal.Signals(-code).name}"
            why = "the system may be short of memory" if code == -9 else "its simulator crashed"
            why = "something in it left Python" if code >= 0 else why
            return (
                f"the process of environment {i} ended {how}: {why}. Use fewer --num-envs, or "
                "--env-workers 0 to see it in the main process"
            )
        return "a process of an environment closed its pipe: use --env-workers 0 to see why"


def _kill(ref: weakref.ref[WorkerEnvs]) -> None:
    """Before Python waits for the processes that it started, which would go on."""
    envs = ref()
    for process in envs.processes if envs is not None else ():
        with contextlib.suppress(ValueError):  # closed
            if process.is_alive():
                process.kill()


def _worker(*args: Any) -> None:
    """What runs in a process: gymnasium's own worker, deaf to the group's signals."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    threading.Thread(target=_leave_with, args=(os.getppid(),), daemon=True).start()
    _async_worker(*args)


def _leave_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(WATCHED)
    os._exit(1)
