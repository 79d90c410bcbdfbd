"""The first signal asks, the second insists, and each leaves with its own exit code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from doc_blocks import ROOT

from genpol.runs.interrupts import InterruptGuard, StopAtOnce, leaving_at_once

SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]


@pytest.fixture(autouse=True)
def in_a_terminal():
    """Not as under nohup, where hangups are ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_the_first_signal_asks_and_the_second_insists(number, code, capfd):
    before = signal.getsignal(number)
    with InterruptGuard() as guard:
        assert not guard.stop
        os.kill(os.getpid(), number)
        assert guard.stop
        with pytest.raises(KeyboardInterrupt) as insisting:
            os.kill(os.getpid(), number)
    assert insisting.value.exit_code == code
    stopped = guard.interrupted("stopped after step 3")
    assert (str(stopped), stopped.exit_code) == ("stopped after step 3", code)
    assert signal.getsignal(number) is before
    assert "once more stops at once" in capfd.readouterr().err


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_without_a_guard_the_first_one_insists(number, code):
    before = signal.getsignal(number)
    with leaving_at_once() as came:
        with pytest.raises(StopAtOnce) as insisting:
            os.kill(os.getpid(), number)
        with InterruptGuard() as guard:
            os.kill(os.getpid(), number)
        assert guard.stop
    assert insisting.value.exit_code == code and came == [number]
    assert signal.getsignal(number) is before


def test_a_hangup_that_is_ignored_stays_ignored():
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with leaving_at_once() as came, InterruptGuard() as guard:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not guard.stop and not came
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_stops_politely_when_its_terminal_has_gone(monkeypatch):
    def gone(descriptor, data):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "write", gone)
    with InterruptGuard() as guard:
        os.kill(os.getpid(), signal.SIGTERM)
        assert guard.stop


LOADING = """
import os, signal, time
try:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(5)
except BaseException:
    os.abort()  # as a library does whose own code may not be left by an exception
"""


def test_a_signal_while_a_library_loads_ends_the_process_without_an_exception(tmp_path):
    (tmp_path / "loading.py").write_text(LOADING)
    command = (
        "from genpol.runs.interrupts import leaving_at_once\n"
        "print('so far')\n"
        "with leaving_at_once():\n"
        "    import loading\n"
    )
    paths = os.pathsep.join([str(ROOT), str(tmp_path)])
    found = subprocess.run(
        [sys.executable, "-c", command],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": paths},
    )
    assert (found.returncode, found.stdout, found.stderr) == (143, "so far\n", "interrupted\n")
