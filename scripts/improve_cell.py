"""What the loop's tables are made of: a task's policy, its servers, and the robot's episodes.

Every part is a process of its own, as on a robot: `genpol serve` has the frozen policy, `genpol
improve` stands between it and the robot, and `scripts.improve_robot` is the robot, with openpi's
client alone. Whatever was finished is on the disk, and is not done again.
"""

from __future__ import annotations

import csv
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from genpol.improving.kept_server import answers, free_port
from genpol.improving.processes import last_line

ROOT = Path(__file__).parents[1]
START, STOP = 180.0, 60.0  # seconds for a process to answer, and to leave


@dataclass(frozen=True)
class Settings:
    """Of all runs of the tables; chosen on training seeds from 1000 up."""

    demonstrations: int = 60
    """Episodes that the policy was cloned from, failures among them."""
    clone_steps: int = 3000
    value_steps: int = 5000
    chunk: int = 4
    every: int = 25
    """Labelled episodes after which the next version is learnt."""
    evaluated: int = 50
    """Episodes of each evaluation."""
    candidates: int = 16
    temperature: float = 1.0
    """While it collects. Evaluations take the best."""
    max_steps: int = 200
    image_size: int | None = None
    """Where the robot sees pictures of this size only."""
    operators: dict[str, Any] = field(
        default_factory=lambda: {"operators": "clean-sloppy", "sloppy_fraction": 0.85}
    )
    """Further options of `genpol collect`."""
    value_options: str = "--critic calql --batch-size 128"
    expo_options: str = "--batch-size 128 --n-step 4"

    @property
    def learn_keys(self) -> list[str]:
        """What of the observations is learnt from."""
        return ["--image-keys", "image"] if self.image_size else []


class Cell:
    """One task and training seed.

    Args:
        env: such as "metaworld/push-v3".
        seed: of demonstrations, clone and learning; evaluation layouts are those of the seed.
        folder: of all that is made.
        settings: see `Settings`.
        threads: of PyTorch.
    """

    def __init__(
        self, env: str, seed: int, folder: Path, settings: Settings, threads: int = 1
    ) -> None:
        self.env, self.seed, self.folder, self.settings = env, seed, folder, settings
        self.threads = threads
        folder.mkdir(parents=True, exist_ok=True)

    # -- what is made once

    def once(self, name: str, make: Callable[[Path], None]) -> Path:
        """The artefact `name`, made beside and renamed; its CPU-seconds are kept in a file."""
        path = self.folder / name
        if not path.exists():
            partial = path.with_name(f"partial-{os.getpid()}-{path.name}")
            wall, before = time.monotonic(), cpu_seconds()
            make(partial)
            spent = {"wall": time.monotonic() - wall, "cpu": cpu_seconds() - before}
            path.with_name(path.name + ".seconds").write_text(json.dumps(spent))
            os.replace(partial, path)
        return path

    def spent(self, name: str) -> dict[str, float]:
        """Seconds, of the clock and of the processor, that an artefact took."""
        return json.loads((self.folder / f"{name}.seconds").read_text())

    def demonstrations(self) -> Path:
        """Of operators who err, as the robot sees them."""

        def make(path: Path) -> None:
            more = [w for k, v in self.settings.operators.items() for w in _flag(k, v)]
            size = self.settings.image_size
            pictures = [] if size is None else ["--image-size", str(size)]
            whole = path.with_name(f"whole-{path.name}")
            genpol(
                "collect", "--env", self.env, "--episodes", self.settings.demonstrations, "--seed",
                self.seed, "--max-steps", self.settings.max_steps, "--output", whole, *pictures,
                *more, "--overwrite",
            )  # fmt: skip
            copy_episodes(whole, path, keep=None if size is None else ("image",))
            whole.unlink()

        return self.once("demos.hdf5", make)

    def successes(self) -> Path:
        """Those of the demonstrations that succeeded: what the lab hands out."""
        return self.once(
            "successes.hdf5", lambda path: copy_episodes(self.demonstrations(), path, only=True)
        )

    def policy(self) -> Path:
        """The flow clone that stays frozen."""
        return self._clone("policy", [str(self.demonstrations())], "all")

    def filtered(self, recording: Path, name: str) -> Path:
        """A clone of the demonstrations and of the successes of a recording."""
        return self._clone(name, [str(self.demonstrations()), str(recording)], "success")

    def _clone(self, name: str, data: Sequence[str], kept: str) -> Path:
        def make(path: Path) -> None:
            genpol(
                "clone", "--policy", "flow", "--data", *data, "--filter", kept, "--steps",
                self.settings.clone_steps, "--action-chunk", self.settings.chunk, "--seed",
                self.seed, "--threads", self.threads, "--wandb", "disabled", "--output", path,
                *self.settings.learn_keys,
            )  # fmt: skip

        return self.once(name, make)

    def demos_value(self) -> Path:
        """A value of the demonstrations alone, which are all successes."""

        def make(path: Path) -> None:
            genpol(
                "value", "--data", self.successes(), "--success", "all", "--steps",
                self.settings.value_steps,
                "--action-chunk", self.settings.chunk, "--seed", self.seed, "--threads",
                self.threads, "--wandb", "disabled", "--output", path, *self.settings.learn_keys,
                *self.settings.value_options.split(),
            )  # fmt: skip

        return self.once("demos-value", make)

    # -- processes

    @contextmanager
    def policy_server(self) -> Iterator[str]:
        """The frozen policy behind a server of its own; yields its address."""
        words = ["serve", "--policy", str(self.policy()), "--seed", str(self.seed)]
        with served([*words, "--rate-limit", "1e6"], self.folder / "policy.log") as url:
            yield url

    def robot(
        self, url: str, log: Path, episodes: int, *, first: int = 0, purpose: str = "deploy",
        labelled: float = 1.0, wrong: float = 0.0,
    ) -> None:  # fmt: skip
        """Play episodes; see `scripts.improve_robot`."""
        words = [
            "-m", "scripts.improve_robot", url, "--env", self.env, "--episodes", str(episodes),
            "--first", str(first), "--seed", str(self.seed), "--purpose", purpose, "--log",
            str(log), "--max-steps", str(self.settings.max_steps), "--labelled", str(labelled),
            "--wrong", str(wrong),
        ]  # fmt: skip
        if self.settings.image_size:
            words += ["--image-size", str(self.settings.image_size)]
        subprocess.run([sys.executable, *words], cwd=ROOT, check=True, env=environment())

    def evaluate(self, url: str, name: str) -> list[bool]:
        """Outcomes on the evaluation layouts through a server; a log that is there goes on."""
        log = self.folder / "evaluations" / f"{name}.csv"
        done = len(rows_of(log))
        if done < self.settings.evaluated:
            left = self.settings.evaluated - done
            self.robot(url, log, left, first=done, purpose="evaluate")
        return [row["success"] == "1" for row in rows_of(log)[: self.settings.evaluated]]


class Loop:
    """`genpol improve` around the policy of a cell, and how far the robot has come in it.

    Args:
        cell: whose policy.
        name: of its folder in the cell's.
        learn: what is learnt.
        labelled, wrong: of the robot's labels, see `scripts.improve_robot`.
    """

    def __init__(
        self, cell: Cell, name: str, learn: str, labelled: float = 1.0, wrong: float = 0.0
    ) -> None:
        self.cell, self.folder, self.learn = cell, cell.folder / name, learn
        self.labelled, self.wrong = labelled, wrong
        self.log = self.folder / "robot.csv"
        self.recording = self.folder / "recording"

    def words(self, upstream: str) -> list[str]:
        """Behind `genpol improve`."""
        settings = self.cell.settings
        options = settings.value_options if self.learn == "value" else settings.expo_options
        words = [
            "--upstream", upstream, "--output", str(self.folder), "--every", str(settings.every),
            "--learn", self.learn, "--steps", str(settings.value_steps), "--action-chunk",
            str(settings.chunk), "--port", "0", "--num-candidates", str(settings.candidates),
            "--temperature", f"{settings.temperature:g}", "--seed", str(self.cell.seed),
            "--threads", str(self.cell.threads), "--env", self.cell.env, "--data",
            str(self.cell.successes()), f"--learn-options={options}", *settings.learn_keys,
            "--serve-options=--rate-limit 1e6",
        ]  # fmt: skip
        return words

    def play(self, upstream: str, episodes: int) -> None:
        """Go on until the robot has played so many episodes, and the loop has learnt from them.

        The robot waits after every batch until what is due has been learnt: a simulator is a
        hundred times faster than a robot.
        """
        settings = self.cell.settings
        wall, before = time.monotonic(), cpu_seconds()
        process = start(["improve", *self.words(upstream)], self.folder / "improve.log")
        try:
            url = self._ready(process)
            while (played := len(rows_of(self.log))) < episodes:
                batch = min(settings.every - played % settings.every, episodes - played)
                self.cell.robot(
                    url, self.log, batch, first=played, labelled=self.labelled, wrong=self.wrong
                )
                self._learnt(process, played + batch)
            self._learnt(process, episodes)
        finally:
            stop(process)
        spent = self.spent()
        spent["wall"] += time.monotonic() - wall
        spent["cpu"] += cpu_seconds() - before
        (self.folder / "spent.json").write_text(json.dumps(spent))

    def spent(self) -> dict[str, float]:
        """Seconds so far: of the clock, and of the processor by the whole loop with its robot."""
        path = self.folder / "spent.json"
        return json.loads(path.read_text()) if path.exists() else {"wall": 0.0, "cpu": 0.0}

    def rows(self) -> list[dict[str, str]]:
        """What truly happened in each episode."""
        return rows_of(self.log)

    def state(self) -> dict[str, Any]:
        """state.json."""
        try:
            return json.loads((self.folder / "state.json").read_text())
        except (OSError, ValueError):
            return {}

    def keep(self, episodes: int) -> tuple[Path, Path]:
        """What was served and recorded after so many episodes, kept for the evaluations."""
        kept = self.folder / f"after-{episodes}"
        if not kept.exists():
            partial = self.folder / f"partial-{os.getpid()}"
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(self.recording, partial / "recording")
            if (self.folder / "current").exists():
                for part in ("value", "edit"):
                    if (self.folder / "current" / part).is_dir():
                        shutil.copytree(self.folder / "current" / part, partial / "run" / part)
            os.replace(partial, kept)
        return kept / "run", kept / "recording"

    def _ready(self, process: subprocess.Popen[bytes]) -> str:
        def ready() -> str | None:
            state = self.state()
            pids = state.get("pids", {})
            if pids.get("conductor") != process.pid or state.get("stopped"):
                return None
            return str(state["address"])

        return str(wait_for(ready, process, self.folder / "improve.log"))

    def _learnt(self, process: subprocess.Popen[bytes], episodes: int) -> None:
        def learnt() -> bool:
            state = self.state()
            return state.get("recorded", 0) >= episodes and not state["due"]

        wait_for(learnt, process, self.folder / "improve.log", patience=24 * 3600)


# -- processes


def genpol(*words: Any) -> None:
    """Run one command of the kit to its end.

    Raises:
        SystemExit: it failed.
    """
    from genpol.cli import main

    if code := main([str(word) for word in words]):
        raise SystemExit(code)


def start(words: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Start one command of the kit; what it prints goes into a log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as file:
        return subprocess.Popen(
            [sys.executable, "-u", "-m", "genpol", *words],
            stdout=file, stderr=subprocess.STDOUT, cwd=ROOT, env=environment(),
        )  # fmt: skip


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ask it to leave, as Ctrl-C does; kill it if it does not."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    try:
        process.wait(STOP)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def served(words: Sequence[str], log: Path) -> Iterator[str]:
    """A `genpol serve` on a free port; yields its address."""
    port = free_port("127.0.0.1")
    process = start([*words, "--port", str(port)], log)
    try:
        wait_for(lambda: answers("127.0.0.1", port), process, log)
        yield f"ws://127.0.0.1:{port}"
    finally:
        stop(process)


def wait_for(
    true: Callable[[], Any], process: subprocess.Popen[bytes], log: Path, patience: float = START
) -> Any:
    """What `true` returns, once it is something.

    Raises:
        SystemExit: the process ended before, or it took too long.
    """
    end = time.monotonic() + patience
    while not (found := true()):
        if process.poll() is not None:
            raise SystemExit(f"it ended: {last_line(log)} [{log}]")
        if time.monotonic() > end:
            raise SystemExit(f"nothing came of it in {patience:.0f} seconds [{log}]")
        time.sleep(0.2)
    return found


def environment() -> dict[str, str]:
    """This process's, with this clone on the path of what it starts."""
    known = os.environ.get("PYTHONPATH", "")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), known]).rstrip(os.pathsep)}


def cpu_seconds() -> float:
    """Of this process and of all that it started and that has ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


# -- files


def rows_of(log: Path) -> list[dict[str, str]]:
    """The finished episodes of a robot's log."""
    if not log.exists():
        return []
    with open(log, newline="") as file:
        return [row for row in csv.DictReader(file) if row["lost"] not in (None, "")]


def copy_episodes(
    source: Path, path: Path, *, keep: Sequence[str] | None = None, only: bool = False
) -> None:
    """Copy demonstrations.

    Args:
        source: HDF5 file.
        path: to write.
        keep: observations that are copied; all when None.
        only: copy successes only.

    Raises:
        SystemExit: no demonstration succeeded.
    """
    from robots.datasets.open import open_dataset
    from robots.datasets.robomimic_hdf5 import write_hdf5

    demos = open_dataset(source)
    episodes = [demos[index] for index in range(len(demos))]
    if only:
        episodes = [episode for episode in episodes if episode.success]
    if not episodes:
        raise SystemExit(f"no demonstration in {source} succeeded: take others")
    if keep is not None:
        episodes = [
            replace(episode, obs={key: episode.obs[key] for key in keep}) for episode in episodes
        ]
    write_hdf5(path, episodes, spec=demos.spec, env=demos.env, env_kwargs={}, seed=0)


def _flag(name: str, value: Any) -> list[str]:
    values = value if isinstance(value, list | tuple) else [value]
    return [f"--{name.replace('_', '-')}", *map(str, values)]
