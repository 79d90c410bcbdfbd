"""Policies that take no time, and a policy server that behaves like openpi's own."""

from __future__ import annotations

import asyncio
import threading
import time
import traceback

import numpy as np
import torch
from websockets.asyncio.server import serve as listen
from websockets.exceptions import ConnectionClosed

from offline.spec import ActionSpec
from robots.serving.wire import pack, unpack

SPEC = ActionSpec.from_bounds([-1, -2, 0], [1, 2, 4], chunk=2)
SHAPES = {"state": (3,)}


class Counter:
    """Chunk h of proposal k is state / 10 + the number of commits so far, in the spec's units.

    With `noise`, proposals differ by the generator's draws.
    """

    def __init__(self, noise: float = 0.0) -> None:
        self.spec, self.obs_shapes, self.noise = SPEC, SHAPES, noise
        self.committed: list[torch.Tensor] = []
        self.resets = 0

    def reset(self):
        self.committed = []
        self.resets += 1

    def sample(self, obs, n, generator):
        raw = obs["state"] / 10 + len(self.committed) / 100
        raw = raw[:, None, None].expand(-1, n, 2, -1)
        noise = self.noise * torch.randn(raw.shape, generator=generator)
        return self.spec.normalize(raw + noise)

    def commit(self, act):
        self.committed.append(self.spec.unnormalize(act))

    def keep(self, rows):
        pass


class OpenpiServer:
    """Answers as openpi's `WebsocketPolicyServer`: on an error a traceback, then it hangs up.

    Context manager; `url` to reach it. `infer(message)` may be replaced at any time. Instead of an
    answer it may give a frame (bytes or text) or several of them, which are sent as they are, None,
    which is never answered, or ABORT, as when the server's process is killed. With `deaf`, whoever
    connects is greeted, and what he sends is not taken in.
    """

    ABORT = object()

    def __init__(self, infer, metadata=None, port=0):
        self.infer, self.metadata, self.port = infer, metadata or {"robot": "fake"}, port
        self.messages, self.connections, self.most_at_once, self._now = [], 0, 0, 0
        self.deaf = False

    def __enter__(self):
        started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run(started)))
        self._thread.start()
        assert started.wait(10)
        return self

    def __exit__(self, *_):
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    async def _run(self, started):
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        options = {"compression": None, "max_size": None, "close_timeout": 1}
        async with listen(self._handle, "127.0.0.1", self.port, **options) as server:
            self.port = server.sockets[0].getsockname()[1]
            self.url = f"ws://127.0.0.1:{self.port}"
            started.set()
            await self._stop.wait()

    async def _handle(self, client):
        self.connections += 1
        greeting = self.metadata
        await client.send(pack(greeting) if isinstance(greeting, dict) else greeting)
        if self.deaf:
            client.transport.pause_reading()
            await self._stop.wait()
            return
        while True:
            try:
                message = unpack(await client.recv())
                self.messages.append(message)
                self._now += 1
                self.most_at_once = max(self.most_at_once, self._now)
                answer = await asyncio.to_thread(self.infer, message)
                if answer is self.ABORT:
                    client.transport.abort()
                elif isinstance(answer, dict):
                    answer = pack({**answer, "server_timing": {"infer_ms": 1.0}})
                if isinstance(answer, bytes | str | list):
                    for frame in answer if isinstance(answer, list) else [answer]:
                        await client.send(frame)
            except ConnectionClosed:
                return
            except Exception:
                await client.send(traceback.format_exc())
                await client.close(1011, "Internal server error.")
                return
            finally:
                self._now -= 1


def numbered(chunk=4, sleep=0.0):
    """An `infer` whose k-th answer's actions are all k / 10, and which says so."""
    count = iter(range(10**9))
    lock = threading.Lock()

    def infer(message):
        with lock:
            k = next(count)
        time.sleep(sleep)
        return {"actions": np.full((chunk, 3), k / 10, np.float64), "k": k}

    return infer
