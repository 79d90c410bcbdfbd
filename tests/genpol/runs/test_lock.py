"""One process in a folder: who is refused, what it is told, and what ends a lock."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import genpol
from genpol.runs.lock import FolderLock
from genpol.runs.run import Run
from offline.errors import InputError

ROOT = Path(genpol.__file__).parents[1]


def python(source: str, *arguments: object) -> subprocess.Popen:
    """A process that runs `source`, in a session of its own, as a user's would be."""
    return subprocess.Popen(
        [sys.executable, "-c", source, *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


def test_the_second_is_told_who_the_first_is(tmp_path):
    with FolderLock(tmp_path):
        with pytest.raises(InputError) as refused:
            FolderLock(tmp_path)
        said = str(refused.value)
        assert f"in use by process {os.getpid()} on {socket.gethostname()} since 20" in said
        assert "pass another --output" in said and "\n" not in said and len(said) < 600
    with FolderLock(tmp_path) as lock:
        lock.release()
        lock.release()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_nobody_holds_any_more_goes_with_it(tmp_path):
    lock = FolderLock(tmp_path)
    del lock
    FolderLock(tmp_path)


CHILDREN = """
import os, subprocess, sys, time
from pathlib import Path
from genpol.runs.lock import FolderLock
lock = FolderLock(Path(sys.argv[1]))
started = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], close_fds=False)
reader, writer = os.pipe()
forked = os.fork()
if not forked:
    os.write(writer, b"x")
    time.sleep(60)
os.read(reader, 1)  # it has begun to run, and closed what is its parent's
print(os.getpid(), started.pid, forked, flush=True)
time.sleep(60)
"""


def test_sigkill_ends_it_though_children_live_on(tmp_path):
    """One child is another program, as wandb's service is, and one is made by fork alone."""
    owner = python(CHILDREN, tmp_path)
    children: list[int] = []
    try:
        pid, *children = map(int, owner.stdout.readline().split())
        with pytest.raises(InputError, match=f"process {pid} on "):
            FolderLock(tmp_path)
        owner.send_signal(signal.SIGKILL)
        owner.wait(10)
        assert (tmp_path / ".lock").exists()  # what it left locks nothing
        FolderLock(tmp_path).release()
        for child in children:
            os.kill(child, 0)  # still there
    finally:
        owner.kill()
        for child in children:
            os.kill(child, signal.SIGKILL)
        owner.stdout.close()


RACE = """
import sys, time
from pathlib import Path
from genpol.runs.lock import FolderLock
from offline.errors import InputError
folders, won, told = [Path(p) for p in sys.argv[2:]], [], []
while time.time() < float(sys.argv[1]):
    pass
for folder in folders:
    try:
        won.append((folder.name, FolderLock(folder)))
    except InputError as error:
        told.append(str(error))
print(*(name for name, _ in won), flush=True)
print("without a name" if any("by process" not in text for text in told) else "named", flush=True)
time.sleep(60)
"""


def test_of_several_that_start_at_once_exactly_one_has_it(tmp_path):
    folders = [tmp_path / str(i) for i in range(20)]
    for folder in folders:
        folder.mkdir()
    begin = time.time() + 1.0
    racers = [python(RACE, begin, *folders) for _ in range(3)]
    try:
        won = [racer.stdout.readline().split() for racer in racers]
        named = [racer.stdout.readline() for racer in racers]
    finally:
        for racer in racers:
            racer.kill()
            racer.wait(10)
            racer.stdout.close()
    assert sorted(sum(won, []), key=int) == [folder.name for folder in folders]
    assert named == ["named\n"] * len(racers)


def test_what_a_copied_folder_says_locks_nothing(tmp_path):
    (tmp_path / "run").mkdir()
    with FolderLock(tmp_path / "run"):
        shutil.copytree(tmp_path / "run", tmp_path / "copy")
        assert json.loads((tmp_path / "copy" / ".lock").read_text())["pid"] == os.getpid()
        FolderLock(tmp_path / "copy").release()


@pytest.mark.parametrize("text", ["", "[1]", '{"pid": "x"}', '{"pid": 1e999}', "\x00\xff"])
def test_whoever_holds_it_may_have_no_name(text, tmp_path, monkeypatch):
    monkeypatch.setattr("genpol.runs.lock._PATIENCE", 0.02)
    with FolderLock(tmp_path):
        (tmp_path / ".lock").write_text(text)
        with pytest.raises(InputError, match="in use by another process"):
            FolderLock(tmp_path)


def test_the_name_of_a_dead_owner_is_not_told(tmp_path, monkeypatch):
    """Between a new owner's lock and its name, the file has the name of the one before."""
    monkeypatch.setattr("genpol.runs.lock._PATIENCE", 0.02)
    with FolderLock(tmp_path):
        owner = json.loads((tmp_path / ".lock").read_text())
        gone = subprocess.Popen([sys.executable, "-c", ""])
        gone.wait()
        (tmp_path / ".lock").write_text(json.dumps(owner | {"pid": gone.pid}))
        with pytest.raises(InputError, match="in use by another process"):
            FolderLock(tmp_path)


def test_a_file_that_its_owner_removed_meanwhile_is_not_taken(tmp_path, monkeypatch):
    flock, calls = fcntl.flock, []

    def removed_first(descriptor, how):
        if not calls:
            (tmp_path / ".lock").unlink()
        calls.append(descriptor)
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", removed_first)
    with FolderLock(tmp_path):
        assert len(calls) == 2
        with pytest.raises(InputError, match="in use by process"):
            FolderLock(tmp_path)


def test_without_locks_there_is_a_warning(tmp_path, monkeypatch, capsys):
    def refuse(descriptor, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    FolderLock(tmp_path).release()
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith("warning: ") and "without locks" in warning


# A run's folder


def run(folder: Path, resume: bool = False, wandb: str = "disabled") -> Run:
    return Run(folder, {}, command="finetune", wandb=wandb, resume=resume)


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_keeps_others_out_of_its_folder(resume, tmp_path):
    with run(tmp_path) as first:
        first.log(1, {"loss": 1.0})
        before = (tmp_path / "metrics.csv").stat().st_ino
        with pytest.raises(InputError, match=f"in use by process {os.getpid()} "):
            run(tmp_path, resume)
        assert (tmp_path / "metrics.csv").stat().st_ino == before
        first.log(2, {"loss": 1.0})
    with run(tmp_path, resume=True):
        pass


def test_a_run_that_is_refused_leaves_no_lock(tmp_path):
    with run(tmp_path) as first:
        first.log(1, {"loss": 1.0})
    with pytest.raises(InputError, match="already holds"):
        run(tmp_path)
    assert not (tmp_path / ".lock").exists()
    with pytest.raises(InputError, match="not logged in"):
        Run(tmp_path / "x", {}, command="finetune", wandb="online")
    assert list((tmp_path / "x").iterdir()) == []


WITH_WANDB = """
import sys, time
from pathlib import Path
from genpol.runs.run import Run
run = Run(Path(sys.argv[1]), {}, command="finetune", wandb="offline")
run.log(1, {"loss": 1.0})
print("running", flush=True)
time.sleep(60)
"""


@pytest.mark.slow
def test_a_run_goes_on_while_the_wandb_service_of_a_killed_one_lives(tmp_path):
    pytest.importorskip("wandb")
    owner = python(WITH_WANDB, tmp_path)
    try:
        while owner.stdout.readline() != "running\n":
            assert owner.poll() is None
        processes = subprocess.run(
            ["ps", "-e", "-o", "ppid=,pid="], capture_output=True, text=True, check=True
        ).stdout
        pairs = [tuple(map(int, line.split())) for line in processes.splitlines()]
        service = [pid for parent, pid in pairs if parent == owner.pid]
        assert service
        owner.send_signal(signal.SIGSTOP)  # so that its service does not see it end
        for pid in service:
            os.kill(pid, signal.SIGSTOP)
        owner.send_signal(signal.SIGKILL)
        owner.wait(10)
        with run(tmp_path, resume=True) as second:
            second.log(2, {"loss": 1.0})
        for pid in service:
            os.kill(pid, 0)
            os.kill(pid, signal.SIGKILL)
    finally:
        owner.kill()
        owner.stdout.close()
