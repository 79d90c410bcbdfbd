"""How commands leave: exit codes of signals, of `sys.exit` in a user's code, and closed pipes."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from genpol import cli
from genpol.commands.table import Command

FAKE = '''
"""A command for the tests."""

from __future__ import annotations

import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from genpol.runs.interrupts import InterruptGuard


@dataclass(frozen=True)
class Work:
    """Work."""

    what: str
    """what to do"""
    output: Path = Path("done")
    """what is written at the end"""


def users_reward(code):
    sys.exit(code)


def run(config: Work) -> None:
    if config.what == "exit-0":
        users_reward(0)
    if config.what == "exit-text":
        users_reward("x" * 1000)
    if config.what in ("term", "replaced"):
        try:
            signal.raise_signal(signal.SIGTERM)
        except BaseException as error:
            if config.what == "replaced":
                raise ImportError("initialization failed") from error
            raise
    if config.what == "polite":
        with InterruptGuard() as guard:
            signal.raise_signal(signal.SIGTERM)
        raise guard.interrupted("stopped after step 3; to continue: --resume")
    if config.what == "talk":
        for _ in range(10_000):
            print("to standard output, until nobody listens")
            print("to standard error", file=sys.stderr)
    config.output.write_text("done")
'''


@pytest.fixture(autouse=True)
def commands(monkeypatch, tmp_path):
    (tmp_path / "fake_work.py").write_text(FAKE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "fake_work", raising=False)
    monkeypatch.setattr(cli, "COMMANDS", {"work": Command("fake_work", "Work", "Work.")})


@pytest.fixture(params=["plain", "hooked"])
def leave(request, monkeypatch, tmp_path):
    """sys.exit as it is, and with wandb's hook in its place."""
    if request.param == "hooked":
        hook = tmp_path / "wandb" / "hook.py"
        hook.parent.mkdir()
        hook.write_text("def exit(code=None, plain=sys.exit):\n    plain(code)\n")
        names = {"sys": sys}
        exec(compile(hook.read_text(), str(hook), "exec"), names)
        monkeypatch.setattr(sys, "exit", names["exit"])


@pytest.mark.parametrize(
    ("what", "said"), [("exit-0", "sys.exit(0)"), ("exit-text", "sys.exit(xxxx")]
)
@pytest.mark.usefixtures("leave")
def test_sys_exit_in_a_users_code_is_an_error_that_says_where(what, said, tmp_path, capsys):
    assert cli.main(["work", "--what", what]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("error: the command was ended by sys.exit(") and said in error
    assert f"in users_reward, {tmp_path / 'fake_work.py'}:" in error and len(error) < 600


@pytest.mark.parametrize("what", ["term", "replaced"])
def test_a_signal_while_loading_has_no_traceback(what, capsys):
    before = signal.getsignal(signal.SIGTERM)
    assert cli.main(["work", "--what", what]) == 143
    assert capsys.readouterr().err == "interrupted\n"
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_run_that_stops_politely_says_how_it_goes_on_and_is_not_0(capsys):
    assert cli.main(["work", "--what", "polite"]) == 143
    assert capsys.readouterr().out == "stopped after step 3; to continue: --resume\n"


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_work_goes_on_when_nobody_reads_what_it_prints(closed, tmp_path):
    source = (
        "import sys; from genpol import cli; from genpol.commands.table import Command; "
        "cli.COMMANDS = {'work': Command('fake_work', 'Work', 'Work.')}; "
        f"sys.path.insert(0, {str(tmp_path)!r}); sys.exit(cli.main(sys.argv[1:]))"
    )
    done = tmp_path / "done"
    command = [sys.executable, "-c", source, "work", "--what", "talk", "--output", str(done)]
    root = str(Path(cli.__file__).parents[1])
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL} | {
        closed: subprocess.PIPE
    }
    with subprocess.Popen(command, cwd=root, **streams) as process:
        pipe = getattr(process, closed)
        assert pipe.read(10)
        pipe.close()
        assert process.wait(60) == 0
    assert done.read_text() == "done"
