"""Several processes of a run on this machine, forked so that nothing is imported again."""

from __future__ import annotations

import io
import multiprocessing
import os
import socket
import sys
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed.fsdp  # here, so that the forked need not
import torch.distributed.tensor

from diffusion.processes import joined

FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
}


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def place(index: int, count: int, port: int) -> dict[str, str]:
    """What a launcher tells one of `count` processes on this machine."""
    told = {
        "RANK": index, "LOCAL_RANK": index, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count,
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
    }  # fmt: skip
    return {name: str(value) for name, value in told.items()}


def forked(
    work: Callable[[], object], out: Path, err: Path, environment: Mapping[str, str] | None = None
) -> multiprocessing.Process:
    """A started process that ends with the exit code that `work` returns; what it prints is in two
    files, which may be one."""

    def run() -> None:
        os.setsid()
        os.environ.update(environment or {})
        torch.set_num_threads(1)
        append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        for stream, path in ((1, out), (2, err)):
            os.dup2(os.open(path, append), stream)
        sys.stdout, sys.stderr = (
            open(stream, "w", buffering=1, closefd=False) for stream in (1, 2)
        )
        sys.exit(work())

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    return process


def in_processes(
    count: int,
    work: Callable[..., Any],
    environment: Mapping[str, str] | None = None,
    *,
    joining: bool = True,
    seconds: float = 120,
) -> list[Any]:
    """What `work` returns in each of `count` processes; raises what one of them raises, as text.

    `work` takes the `Ranks`, or nothing if it is to do the joining itself.
    """
    port = free_port()
    context = multiprocessing.get_context("fork")
    pairs = [context.Pipe(duplex=False) for _ in range(count)]
    started = []
    for index, (_, end) in enumerate(pairs):
        whole = {**(environment or {}), **place(index, count, port)}
        started.append(context.Process(target=_child, args=(work, whole, joining, end)))
        started[-1].start()
        end.close()
    try:
        found = []
        for index, (end, _) in enumerate(pairs):
            if not end.poll(seconds):
                raise TimeoutError(f"process {index} has not ended after {seconds} seconds")
            try:
                sent = end.recv_bytes()
            except EOFError:
                raise AssertionError(f"process {index} ended without a result") from None
            value, error = torch.load(io.BytesIO(sent), weights_only=False)
            assert error is None, f"process {index}:\n{error}"
            found.append(value)
        return found
    finally:
        for process in started:
            process.join(5)
            if process.is_alive():
                process.kill()


def _child(
    work: Callable[..., Any], environment: Mapping[str, str], joining: bool, end: Connection
) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    value, error = None, None
    try:
        if joining:
            with joined("cpu") as ranks:
                value = work(ranks)
        else:
            value = work()
    except BaseException:
        error = traceback.format_exc()
    buffer = io.BytesIO()
    torch.save((value, error), buffer)
    end.send_bytes(buffer.getvalue())
    end.close()
    os._exit(0)
