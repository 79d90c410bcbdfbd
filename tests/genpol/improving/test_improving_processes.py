"""Processes that end with the one that started them, and a server that is always there."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from doc_blocks import ROOT

from genpol.improving import processes
from genpol.improving.kept_server import KeptServer, answers, free_port, reachable
from genpol.improving.processes import Child, last_line
from offline.errors import InputError


@pytest.fixture(autouse=True)
def stub(monkeypatch):
    monkeypatch.setattr(processes, "PROGRAM", "stub_command")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (ROOT, ROOT / "tests" / "helpers"))))


def until(true, seconds=20.0):
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, "it did not come to be"
        time.sleep(0.02)
    return found


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


PARENT = """
import sys, time
from pathlib import Path
from genpol.improving import processes
processes.PROGRAM = "stub_command"
words = ["serve", "--port", sys.argv[1]]
print(processes.Child(words, Path(sys.argv[2])).pid, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_child_ends_when_its_parent_is_killed(tmp_path):
    port = free_port("127.0.0.1")
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(port), str(tmp_path / "log")],
        stdout=subprocess.PIPE,
        text=True,
    )
    pid = int(parent.stdout.readline())
    until(lambda: answers("127.0.0.1", port))
    parent.kill()
    parent.wait(10)
    until(lambda: not alive(pid))
    assert not answers("127.0.0.1", port)


def test_a_child_is_asked_to_stop_says_what_it_said_and_stands_back(tmp_path):
    child = Child(["fail"], tmp_path / "log")
    assert until(lambda: child.code) == 2
    assert child.last_line() == "error: no such thing" == last_line(tmp_path / "log")
    assert last_line(tmp_path / "none") == ""
    child.stop()
    words = ["value", "--output", str(tmp_path / "run"), "--wait", "30"]
    patient = Child(words, tmp_path / "log", niceness=7)
    until(lambda: (tmp_path / "run" / "niceness").exists())
    assert patient.stop() == 143
    assert int((tmp_path / "run" / "niceness").read_text()) == min(19, os.nice(0) + 7)


def test_a_child_that_gets_no_words_ends_with_its_pipe(tmp_path):
    waiting = Child(None, tmp_path / "log", modules=("json",))
    assert waiting.code is None
    began = time.monotonic()
    waiting._pipe.close()
    assert until(lambda: waiting.code is not None) and waiting.code == 0
    assert time.monotonic() - began < 10


def kept(tmp_path, words, said):
    port = free_port("127.0.0.1")
    words = [*words, "--port", str(port)]
    return port, KeptServer(
        words, "127.0.0.1", port, tmp_path / "log", modules=("json",), say=said.append
    )


def test_a_server_that_is_killed_is_replaced_by_the_one_that_waits(tmp_path):
    said: list[str] = []
    port, server = kept(tmp_path, ["serve"], said)

    def ready():
        server.tick()
        return server.ready

    try:
        until(ready)
        first = server.pid
        until(lambda: ready() and server._next is not None)
        waiting = server._next.pid
        os.kill(first, signal.SIGKILL)
        until(lambda: not ready())
        until(ready)
        assert server.pid == waiting != first and server.restarts == 1
        assert answers("127.0.0.1", port)
        assert said == ["the server ended (signal 9); it is started again"]
    finally:
        server.stop()
    assert not answers("127.0.0.1", port)


def test_a_server_that_never_answers_is_given_up_with_its_words(tmp_path):
    said: list[str] = []
    _, server = kept(tmp_path, ["fail"], said)
    with pytest.raises(InputError, match=r"ended 3 times .*exit code 2.*error: no such thing"):
        until(server.tick)
    assert len(said) == 1  # the same line is said once
    server.stop()


def test_a_server_waits_for_its_port(tmp_path):
    said: list[str] = []
    port, server = kept(tmp_path, ["serve"], said)
    with socket.create_server(("127.0.0.1", port)):
        server.tick()
        server.tick()
        assert server.pid is None and len(said) == 1 and f":{port}" in said[0]
    time.sleep(0.11)
    server.tick()
    assert server.pid is not None
    server.stop()


def test_where_a_server_is_reached():
    assert reachable("0.0.0.0") == "127.0.0.1" and reachable("::") == "::1"
    assert reachable("10.0.0.3") == "10.0.0.3"
    with pytest.raises(InputError, match="--host"):
        free_port("192.0.2.1")
