"""How long a robot waits for its answer beside greedy clients: docs/results/serve_turns.csv.

    python -m scripts.serve_turns

A server with the demo's policy, steered and not, in a process of its own. One robot asks for a
decision every 50 ms, or for one sample; first alone, then beside clients that ask for many samples
each, without a pause. Milliseconds from sending the request to holding the answer.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from websockets.sync.client import ClientConnection, connect

from robots.serving.wire import pack, unpack
from scripts.results_table import write_block

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results" / "serve_turns.csv"
PAGE = ROOT / "docs" / "ROBOTS.md"
ASSETS = ROOT / "genpol" / "assets" / "steering"
PAUSE = 0.05  # seconds between the robot's requests


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--greedy", type=int, default=8)
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--ask", nargs=2, help=argparse.SUPPRESS)  # one greedy client: URL SAMPLES
    options = parser.parse_args()
    if options.ask:
        ask_for_ever(options.ask[0], int(options.ask[1]))
        return
    rows = []
    for name, more in (
        ("one sample", []),
        ("steered", ["--value", str(ASSETS / "value")]),
        ("steered, 25 ms", ["--value", str(ASSETS / "value"), "--deadline-ms", "25"]),
    ):
        for greedy in (0, options.greedy):
            rows.append({"policy": name, "greedy": greedy, "samples": options.samples})
            rows[-1] |= cell(more, greedy, options.samples, options.seconds)
            print(rows[-1], flush=True)
    with open(options.output, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    if options.output == RESULTS:
        write_block("turns", report(), PAGE)


def report() -> str:
    """Markdown: the committed rows, alone and beside the greedy clients."""
    with open(RESULTS, newline="") as file:
        rows = list(csv.DictReader(file))
    titles = {
        "one sample": "one sample",
        "steered": "steered, K = 32",
        "steered, 25 ms": "steered, K up to 32, `--deadline-ms 25`",
    }
    lines = ["| policy | alone, p50 / p95 | beside eight, p50 / p95 |", "|---|---|---|"]
    for name, title in titles.items():
        alone, beside = (
            next(r for r in rows if r["policy"] == name and (r["greedy"] != "0") == greedy)
            for greedy in (False, True)
        )
        cells = (f"{float(r['p50_ms']):.0f} / {float(r['p95_ms']):.0f}" for r in (alone, beside))
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(more: list[str], greedy: int, samples: int, seconds: float) -> dict[str, Any]:
    """One server, one robot, and so many greedy clients."""
    policy = ["--policy", str(ASSETS / "policy"), "--port", "0", "--rate-limit", "1e9"]
    server = subprocess.Popen(
        [sys.executable, "-m", "genpol", "serve", *policy, *more], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    others: list[subprocess.Popen[bytes]] = []
    try:
        url = server.stdout.readline().split()[-1]
        for _ in range(greedy):
            command = [sys.executable, "-m", "scripts.serve_turns", "--ask", url, str(samples)]
            others.append(subprocess.Popen(command, cwd=ROOT))
        time.sleep(6 if greedy else 1)  # until all are at it
        return robot(url, seconds)
    finally:
        for process in (*others, server):
            process.terminate()
        for process in (*others, server):
            process.wait()


def robot(url: str, seconds: float) -> dict[str, Any]:
    """The robot's latencies, and how many candidates its decisions had."""
    waits, candidates = [], []
    with connect(url, compression=None) as socket:
        request = observation(socket)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            started = time.perf_counter()
            socket.send(request)
            answer = socket.recv(timeout=120)
            waits.append(1e3 * (time.perf_counter() - started))
            assert isinstance(answer, bytes), answer
            candidates.append(unpack(answer).get("steer", {}).get("num_candidates", 1))
            time.sleep(PAUSE)
    waits = waits[5:] if len(waits) > 10 else waits  # the first ones load what is needed later
    found = {f"p{q}_ms": round(float(np.percentile(waits, q)), 1) for q in (50, 95, 100)}
    return found | {"answers": len(waits), "candidates": round(float(np.mean(candidates)), 1)}


def ask_for_ever(url: str, samples: int) -> None:
    """Ask for samples, again and again, until ended."""
    with connect(url, compression=None) as socket:
        request = observation(socket, num_samples=samples)
        while True:
            socket.send(request)
            answer = socket.recv()
            assert isinstance(answer, bytes), answer


def observation(socket: ClientConnection, **more: Any) -> bytes:
    """A request with zeros of the shapes that the server announces."""
    greeting = socket.recv()
    assert isinstance(greeting, bytes)
    shapes = unpack(greeting)["genpol"]["obs_shapes"]
    zeros = {key: np.zeros(shape, np.float32) for key, shape in shapes.items()}
    return pack({**zeros, **more})


if __name__ == "__main__":
    main()
