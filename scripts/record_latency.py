"""What recording costs a decision, alone and beside training: docs/results/record_latency.csv.

    python -m scripts.record_latency            measures, and writes the table in docs/ROBOTS.md
    python -m scripts.record_latency --report   writes the table from the committed rows

Two servers of the demo's policy and value run all the time, one of which records. A robot with two
cameras asks each in turn for a decision every 50 ms, in blocks, with and without the training of a
value beside, which runs at low priority and is stopped in between. So whatever else the machine
does hits all four. Milliseconds from sending the observation to holding the answer. An episode
ends after 40 decisions, and is converted while the next is served.
"""

from __future__ import annotations

import argparse
import csv
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from websockets.sync.client import ClientConnection, connect

from robots.datasets.open import open_dataset
from robots.serving.wire import pack, unpack
from scripts.results_table import write_block

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results" / "record_latency.csv"
PAGE = ROOT / "docs" / "ROBOTS.md"
ASSETS = ROOT / "genpol" / "assets"
PAUSE = 0.05  # seconds between the robot's requests
EPISODE = 40  # decisions
ARMS = {  # name -> whether it records, whether a value is trained beside
    "served": (False, False),
    "recorded": (True, False),
    "served, training beside": (False, True),
    "recorded, training beside": (True, True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8.0, help="of a block")
    parser.add_argument("--pixels", type=int, default=224, help="of each camera's side")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args()
    if not options.report:
        rows = measure(options.rounds, options.seconds, options.pixels)
        with open(options.output, "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    if options.output == RESULTS:
        write_block("record latency", report(), PAGE)


def report() -> str:
    """Markdown: the committed rows; what is missing is named."""
    rows = {}
    if RESULTS.is_file():
        with open(RESULTS, newline="") as file:
            rows = {row["arm"]: row for row in csv.DictReader(file)}
    lines = ["| | p50 | p95 | p95 against served alone |", "|---|---|---|---|"]
    for arm in ARMS:
        if (row := rows.get(arm)) is None:
            lines.append(f"| {arm} | not measured yet | | |")
        else:
            lines.append(f"| {arm} | {row['p50_ms']} | {row['p95_ms']} | {row['p95_ratio']} |")
    return "\n".join(lines)


def measure(rounds: int, seconds: float, pixels: int) -> list[dict[str, Any]]:
    """A row for each arm."""
    waits: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as opened:
        record = Path(folder) / "recorded"
        servers = [start_server(), start_server("--record", str(record), "--record-fps", "20")]
        trainer = start_training(Path(folder) / "value")
        try:
            sockets = [opened.enter_context(connect_to(server)) for server in servers]
            requests = [observation(socket, pixels) for socket in sockets]
            for socket, request in zip(sockets, requests, strict=True):
                block(socket, request, 1.0)  # what is loaded at the first decisions
            for _ in range(rounds):
                for arm, (records, trains) in ARMS.items():
                    os.killpg(trainer.pid, signal.SIGCONT if trains else signal.SIGSTOP)
                    time.sleep(0.5)
                    waits[arm] += block(sockets[records], requests[records], seconds)
                    print(arm, summary(waits[arm]), flush=True)
                    if records:
                        settle(record)
        finally:
            opened.close()
            os.killpg(trainer.pid, signal.SIGKILL)
            for server in servers:
                server.send_signal(signal.SIGINT)
            said = [server.communicate(timeout=120)[0] for server in servers]
        print(said[1].strip())
        kept = open_dataset(record)
        decisions = sum(len(kept.decisions(i)) for i in range(len(kept)))  # type: ignore[attr-defined]
    alone = np.percentile(waits["served"], 95)
    return [
        {"arm": arm, **summary(waits[arm]),
         "p95_ratio": round(float(np.percentile(waits[arm], 95) / alone), 2),
         "pixels": pixels, "recorded_decisions": decisions}
        for arm in ARMS
    ]  # fmt: skip


def summary(waits: list[float]) -> dict[str, Any]:
    found = {f"p{q}_ms": round(float(np.percentile(waits, q)), 1) for q in (50, 95, 99)}
    return found | {"answers": len(waits)}


def start_server(*more: str) -> subprocess.Popen[str]:
    assets = ASSETS / "steering"
    command = [sys.executable, "-m", "genpol", "serve", "--policy", str(assets / "policy")]
    command += ["--value", str(assets / "value"), "--port", "0", *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def start_training(output: Path) -> subprocess.Popen[bytes]:
    """A value that is trained at low priority, as long as it is let."""
    data = str(ASSETS / "training" / "demos.hdf5")
    command = ["nice", "-n", "19", sys.executable, "-m", "genpol", "value", "--data", data]
    command += ["--steps", "10000000", "--threads", "1", "--output", str(output)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)


def settle(record: Path) -> None:
    """Wait until what has ended is converted, so that it costs the arm that recorded it only."""
    end = time.monotonic() + 30
    while len(list((record / "genpol" / "open").iterdir())) > 1 and time.monotonic() < end:
        time.sleep(0.2)


def connect_to(server: subprocess.Popen[str]) -> ClientConnection:
    assert server.stdout is not None
    return connect(server.stdout.readline().split()[-1], compression=None)


def observation(socket: ClientConnection, pixels: int) -> dict[str, Any]:
    """Zeros of the shapes that the server announces, and two noisy pictures."""
    greeting = socket.recv()
    assert isinstance(greeting, bytes)
    shapes = unpack(greeting)["genpol"]["obs_shapes"]
    random = np.random.default_rng(0)
    cameras = {
        f"observation/images/{name}": random.integers(0, 255, (pixels, pixels, 3), np.uint8)
        for name in ("top", "wrist")
    }
    return {key: np.zeros(shape, np.float32) for key, shape in shapes.items()} | cameras


def block(socket: ClientConnection, request: dict[str, Any], seconds: float) -> list[float]:
    """Milliseconds of each decision of some episodes."""
    waits: list[float] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        frame = pack(request | {"reset": not len(waits) % EPISODE})
        started = time.perf_counter()
        socket.send(frame)
        answer = socket.recv(timeout=60)
        waits.append(1e3 * (time.perf_counter() - started))
        assert isinstance(answer, bytes), answer
        time.sleep(PAUSE)
    return waits


if __name__ == "__main__":
    main()
