"""Waits for a coroutine, in one event loop that is kept.

A client that a reward keeps between calls belongs to the loop it was made in, so that all calls
share one. It runs in a thread of its own, so that a caller may be in a loop already, as in a
notebook.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import torch

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None


def wait_for(start: Callable[[], Awaitable[Any]]) -> Any:
    """What the awaitable that `start` returns comes to; what it raises is raised here.

    `start` is called inside the loop. An interrupt cancels what is awaited.
    """
    future = asyncio.run_coroutine_threadsafe(_outcome(start), _kept())
    try:
        value, left = future.result()
    except BaseException:
        future.cancel()
        raise
    if left is not None:
        raise left
    return value


async def _outcome(start: Callable[[], Awaitable[Any]]) -> tuple[Any, BaseException | None]:
    try:
        return await start(), None
    except (SystemExit, KeyboardInterrupt) as error:  # these would end the loop itself
        return None, error


def _kept() -> asyncio.AbstractEventLoop:
    global _loop
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threads = torch.get_num_threads()
            arguments = (_loop, threads)
            threading.Thread(
                target=_run, args=arguments, name="rewards' event loop", daemon=True
            ).start()
        return _loop


def _run(loop: asyncio.AbstractEventLoop, threads: int) -> None:
    torch.set_num_threads(threads)  # both are settings of a thread
    torch.set_grad_enabled(False)
    asyncio.set_event_loop(loop)
    loop.run_forever()
