"""SIGKILL of any part of `genpol improve`, at random: no finished decision is lost, and the robot
is answered again at once.

The parts are the conductor, the server, what learns, what converts recordings, the other policy's
server, and the robot. The robot remembers every answer that it has acted on; in the end each of
them is in the recording.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from doc_blocks import ROOT
from toy_reach import SPEC, ToyReach

pytest.importorskip("websockets")
pytest.importorskip("openpi_client.websocket_client_policy")

from genpol.improving.kept_server import answers, free_port
from genpol.policies.architecture import Architecture
from genpol.policies.policy import ChunkPolicy
from robots.datasets.recorded import RecordedEpisodes
from scripts.improve_robot import Robot

KILLS = 30
WITHIN = 5.0  # seconds from a restart to the robot's next answer, on a machine of one's own
SMALL = Architecture(features=16, encoder_layers=1, width=16, layers=1, denoising_steps=2)
SPARED = 0.1  # seconds: what was answered just before its server was killed may not be written


class Deployment:
    """The other server, `genpol improve`, and a robot that plays until it is told not to."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.output = folder, folder / "run"
        self.failure: BaseException | None = None
        policy = ChunkPolicy("gaussian", SPEC.with_chunk(3), {"state": (3,)}, architecture=SMALL)
        policy.eval().save(folder / "policy")
        self.port, self.upstream_port = free_port("127.0.0.1"), free_port("127.0.0.1")
        self.stopping = threading.Event()
        self.acted: list[tuple[float, np.ndarray, np.ndarray]] = []  # time, state, answer
        self.robot: Robot | None = None
        self.thread = threading.Thread(target=self.play)
        self.upstream = self.start_upstream()
        self.conductor: subprocess.Popen[bytes] | None = None

    def begin(self) -> None:
        self.until(lambda: answers("127.0.0.1", self.upstream_port))
        self.conductor = self.start_conductor()
        self.thread.start()

    def genpol(self, *words: str, log: str) -> subprocess.Popen[bytes]:
        environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'helpers'}"}
        with open(self.folder / log, "ab") as file:
            return subprocess.Popen(
                [sys.executable, "-m", "genpol", *words], stdout=file, stderr=file, env=environment
            )

    def start_upstream(self) -> subprocess.Popen[bytes]:
        return self.genpol(
            "serve", "--policy", str(self.folder / "policy"), "--port", str(self.upstream_port),
            "--rate-limit", "1e6", "--device", "cpu", log="upstream.log",
        )  # fmt: skip

    def start_conductor(self) -> subprocess.Popen[bytes]:
        return self.genpol(
            "improve", "--upstream", f"ws://127.0.0.1:{self.upstream_port}", "--port",
            str(self.port), "--every", "5", "--steps", "300", "--output", str(self.output),
            "--learn-options=--hidden 16 --batch-size 16 --log-every 100 --checkpoint-every 50",
            "--serve-options=--rate-limit 1e6", "--device", "cpu", "--num-candidates", "4",
            log="improve.log",
        )  # fmt: skip

    def state(self) -> dict:
        try:
            return json.loads((self.output / "state.json").read_text())
        except (OSError, ValueError):
            return {}

    def until(self, true, seconds=600.0):
        end = time.monotonic() + seconds
        while not (found := true()):
            assert self.failure is None, self.failure
            assert time.monotonic() < end, (self.folder / "improve.log").read_text()[-2000:]
            time.sleep(0.02)
        return found

    # -- the robot

    def play(self) -> None:
        try:
            number = 0
            while not self.stopping.is_set():
                self.robot = Remembering(f"ws://127.0.0.1:{self.port}", self.acted)
                env = Limited(number, self.stopping)
                with contextlib.suppress(Killed):
                    while not self.stopping.is_set():
                        self.robot.play(env, number, True)
                        number += 1
                        env.number = number
                number += 1
            self.robot.close()
        except BaseException as error:
            self.failure = error

    def answered_after(self, moment: float) -> float:
        """Seconds from a moment to the next answer to the robot."""
        self.until(lambda: self.acted and self.acted[-1][0] > moment)
        return next(at for at, *_ in self.acted if at > moment) - moment

    # -- accidents

    def pids(self) -> dict[str, int]:
        return self.state().get("pids", {})

    def pid(self, part: str) -> int | None:
        pids = self.pids()
        if part == "converter":
            return child_with("robots.recording.convert", pids.get("server"))
        if part == "upstream":
            return self.upstream.pid
        return self.conductor.pid if part == "conductor" else pids.get(part)

    def kill(self, part: str) -> float | None:
        """Kill a part, restart it where nobody else does, and return the moment of the restart.
        None where there is no such process at present."""
        if part == "robot":
            assert self.robot is not None
            self.robot.killed = True
            return time.monotonic()
        pid = self.pid(part)
        if pid is None:
            return None
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return None
        moment = time.monotonic()
        if part == "upstream":
            self.upstream.wait(10)
            self.upstream = self.start_upstream()
        if part == "conductor":
            self.conductor.wait(10)
            self.conductor = self.start_conductor()
        return moment

    def close(self) -> None:
        self.stopping.set()
        if self.thread.ident is not None:
            self.thread.join(60)
        for process in (self.conductor, self.upstream):
            if process is not None and process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait(90)


class Killed(Exception):
    """The robot was."""


class Remembering(Robot):
    """Remembers what it was answered; dies in the middle of an episode when it is told to."""

    def __init__(self, url, acted) -> None:
        super().__init__(url)
        self.acted, self.killed = acted, False

    def ask(self, message):
        if self.killed:
            if self._client is not None:
                self._client._ws.socket.close()
            raise Killed
        answer = super().ask(message)
        if "actions" in answer and "success" not in message:
            at = time.monotonic()
            self.acted.append((at, np.array(message["state"]), np.array(answer["actions"])))
        return answer


class Limited:
    """The toy with a limit of steps, whose states tell every decision from all others."""

    def __init__(self, number, stopping) -> None:
        self.env, self.number, self.stopping, self.steps = ToyReach(), number, stopping, 0

    def reset(self, *, seed):
        self.steps = 0
        state, info = self.env.reset(seed=self.number)
        return {"state": state.astype(np.float32)}, info

    def step(self, action):
        self.steps += 1
        time.sleep(0.02)  # a robot takes its time
        state, reward, *_ = self.env.step(action)
        over = self.steps >= 12 or self.stopping.is_set()
        won = over and self.number % 3 == 0  # there has to be something to learn
        return {"state": state.astype(np.float32)}, reward, False, over, {"success": won}


def child_with(word: str, parent: int | None) -> int | None:
    """The process id of a child whose command line has a word."""
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            ppid = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if ppid == parent and word in (path / "cmdline").read_text():
                return int(path.name)
    return None


def slowness() -> float:
    """How much slower than by itself a process is at present: clock over processor."""
    source = (
        "import time; began = time.monotonic(); import torch; "
        "print(time.monotonic() - began, time.process_time())"
    )
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, check=True, timeout=120
    )
    wall, cpu = map(float, done.stdout.split())
    return max(1.0, wall / cpu)


def recorded(folder: Path) -> dict[bytes, np.ndarray]:
    """State of every recorded decision -> what was answered."""
    episodes, found = RecordedEpisodes(folder), {}
    for index in range(len(episodes)):
        states, decisions = episodes[index].obs["state"], episodes.decisions(index)
        for frame, answer in zip(decisions.frames, decisions.answers, strict=True):
            found[states[frame].tobytes()] = answer
    return found


PARTS = ("server", "conductor", "learner", "converter", "upstream", "robot")


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_any_part_is_killed_at_random_and_no_finished_decision_is_lost(tmp_path):
    rng = np.random.default_rng(int(os.environ.get("GENPOL_KILL_SEED", "0")))
    kills = int(os.environ.get("GENPOL_KILLS", KILLS))
    one = Deployment(tmp_path)
    waits: dict[str, list[float]] = {part: [] for part in PARTS}
    moments: list[float] = []
    try:
        one.begin()
        one.until(lambda: len(one.acted) > 3)
        while len(moments) < kills:
            time.sleep(float(rng.uniform(0.2, 4.0)))
            part = PARTS[int(rng.integers(len(PARTS)))]
            if (moment := one.kill(part)) is None:
                continue
            moments.append(moment)
            waits[part].append(one.answered_after(moment))
            print(f"{part}: answered again after {waits[part][-1]:.2f} s", flush=True)
            if part == "conductor":  # its state.json is of the one before until it has looked
                one.until(lambda: one.pids().get("conductor") == one.conductor.pid)
        one.until(lambda: one.state().get("served", 0) >= 1)
    finally:
        one.close()
    assert one.failure is None
    slow = slowness()
    for part, found in waits.items():
        print(f"{part}: {len(found)} kills, longest wait {max(found, default=0):.2f} s")
    print(f"the machine is {slow:.1f} times slower than by itself; {len(one.acted)} decisions")
    there = recorded(one.output / "recording")
    lost = [
        at
        for at, state, answer in one.acted
        if not any(0 <= moment - at < SPARED for moment in moments)
        and not (
            state.tobytes() in there and np.allclose(there[state.tobytes()], answer, atol=1e-6)
        )
    ]
    assert not lost, f"{len(lost)} of {len(one.acted)} decisions are not in the recording"
    assert max(max(found, default=0) for found in waits.values()) < WITHIN * slow
