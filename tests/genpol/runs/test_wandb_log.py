"""wandb beside a run: where it logs, and that nothing that happens to it hurts the run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from PIL import Image

from genpol.runs import wandb_log
from genpol.runs.run import Run
from offline.errors import InputError


def start(folder, *, wandb="offline", resume=False):
    return Run(folder, {"epochs": 10}, command="finetune", wandb=wandb, resume=resume)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_wandb_offline_writes_under_the_folder_and_resumes_the_same_run(tmp_path, capsys):
    wandb = pytest.importorskip("wandb")
    with start(tmp_path, wandb="offline") as run:
        run.log(1, {"reward/mean": 0.25})
        run.log_images(1, "samples", Image.new("RGB", (4, 4)))
        run.summary({"eval/reward_after": 0.75})
    out = capsys.readouterr()
    assert out.out == f"wandb: logging offline; upload with `wandb sync {tmp_path / 'wandb'}`\n"
    assert out.err == ""
    with start(tmp_path, wandb="offline", resume=True) as run:
        run.log(2, {"resumed/mean": 0.5})
    wandb.teardown()  # as at exit: until then its service may not have flushed the files
    # Two files of one run. Their folders carry the second they began in, then perhaps an index.
    identity = (tmp_path / "wandb" / "run_id").read_text()
    files = list((tmp_path / "wandb").glob(f"offline-run-*/run-{identity}.wandb"))
    assert len(files) == 2
    (first,) = [file for file in files if b"reward/mean" in file.read_bytes()]
    (second,) = [file for file in files if b"resumed/mean" in file.read_bytes()]
    assert first != second
    assert b"eval/reward_after" in first.read_bytes()
    assert len(list(first.parent.glob("files/media/images/samples*.png"))) == 1


class FakeWandb:
    """Stands in for the library: remembers how it was started; online fails when `down`."""

    class errors:
        class Error(Exception):
            pass

    def __init__(self, down=False):
        self.down, self.modes, self.logged = down, [], []
        self.url, self.step, self.numbers = "https://example/run", 3, {}

    def Settings(self, **options):
        return options

    def setup(self, settings):
        assert settings["silent"]

    def teardown(self):
        self.modes.append("teardown")

    def init(self, **options):
        self.modes.append(options["mode"])
        self.options = options
        if self.down and options["mode"] == "online":
            raise self.errors.Error("no network")
        return self

    def log(self, metrics, step):
        self.logged.append((step, metrics))

    def finish(self, exit_code):
        self.exit_code = exit_code

    def Image(self, image):
        return "picture"

    def Video(self, path, caption, format):
        return "film"

    @property
    def summary(self):
        return self.numbers


@pytest.fixture
def nobody(monkeypatch, tmp_path_factory):
    """No login of any kind, and no $WANDB_MODE."""
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
    for name in ("WANDB_MODE", "WANDB_API_KEY", "NETRC"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("flag", "environment", "key", "modes"),
    [
        (None, None, False, ["offline"]),
        (None, None, True, ["online"]),
        (None, "offline", True, ["offline"]),
        (None, "disabled", True, []),
        ("offline", None, True, ["offline"]),
        ("online", "disabled", True, ["online"]),
        ("disabled", "online", True, []),
    ],
)
def test_wandb_mode(tmp_path, monkeypatch, nobody, flag, environment, key, modes):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    if environment:
        monkeypatch.setenv("WANDB_MODE", environment)
    if key:
        monkeypatch.setenv("WANDB_API_KEY", "k")
    start(tmp_path, wandb=flag)
    assert fake.modes == modes


def shown_as(folder, monkeypatch, **config):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    Run(folder, config, command="finetune", wandb="offline")
    return {name: fake.options[name] for name in ("project", "name", "tags")}


def test_project_name_and_tags_are_the_runs_options(tmp_path, monkeypatch, nobody):
    given = {"wandb_project": "mine", "wandb_name": "first try", "wandb_tags": ("a", "b", "a")}
    assert shown_as(tmp_path / "x", monkeypatch, **given) == {
        "project": "mine", "name": "first try", "tags": ["a", "b"],
    }  # fmt: skip
    usual = {"project": "genpol", "name": "y", "tags": None}
    assert shown_as(tmp_path / "y", monkeypatch) == usual


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("wandb_project", ""),
        ("wandb_project", "a/b"),
        ("wandb_project", "x" * 129),
        ("wandb_name", " "),
        ("wandb_name", "x" * 500),
        ("wandb_tags", ("good", "x" * 65)),
        ("wandb_tags", ("",)),
    ],
)
def test_a_name_that_wandb_refuses_is_one_line(tmp_path, monkeypatch, nobody, option, value):
    with pytest.raises(InputError) as error:
        shown_as(tmp_path / "run", monkeypatch, **{option: value})
    line = str(error.value)
    assert f"--{option.replace('_', '-')}" in line and len(line) < 250 and "\n" not in line
    assert not (tmp_path / "run" / "config.json").exists()


def test_netrc_counts_as_a_login(tmp_path, monkeypatch, nobody):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    netrc = os.path.expanduser("~/.netrc")
    with open(netrc, "w") as file:
        file.write("machine api.wandb.ai login user password key\n")
    os.chmod(netrc, 0o600)
    start(tmp_path, wandb=None)
    assert fake.modes == ["online"]


def test_online_without_a_login_is_refused_and_the_folder_stays_free(tmp_path, nobody):
    pytest.importorskip("wandb")
    with pytest.raises(InputError, match="not logged in.*wandb login.*--wandb offline"):
        start(tmp_path, wandb="online")
    assert names(tmp_path) == []


def test_no_network_falls_back_to_offline(tmp_path, monkeypatch, nobody, capsys):
    monkeypatch.setenv("WANDB_API_KEY", "k")
    for asked in (None, "online"):
        monkeypatch.setitem(sys.modules, "wandb", fake := FakeWandb(down=True))
        with start(tmp_path / str(asked), wandb=asked) as run:
            run.log(3, {"loss": 1.0})
        assert fake.modes == ["online", "teardown", "offline"]
        assert fake.logged == [(3, {"loss": 1.0})]
        out = capsys.readouterr().out
        assert out.startswith("wandb: logging offline because it cannot go online (Error: no netw")
        assert len(out.splitlines()) == 1


def test_a_refused_key_is_no_login(tmp_path, monkeypatch, nobody):
    class AuthenticationError(FakeWandb.errors.Error):
        pass

    fake = FakeWandb()
    fake.setup = lambda settings: (_ for _ in ()).throw(AuthenticationError("bad key"))
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setenv("WANDB_API_KEY", "k")
    with pytest.raises(InputError, match="not logged in"):
        start(tmp_path / "x", wandb="online")
    assert not (tmp_path / "x" / "config.json").exists()


NO_SERVER = """
import sys
from pathlib import Path
from genpol.runs.run import Run
with Run(Path(sys.argv[1]), {}, command="finetune", wandb=None) as run:
    run.log(1, {"reward/mean": 0.25})
"""


@pytest.mark.slow
def test_the_real_wandb_falls_back_when_its_server_is_down(tmp_path, nobody):
    """After half a minute of trying; wandb's service then still holds the run's id."""
    pytest.importorskip("wandb")
    environment = dict(os.environ, WANDB_API_KEY="a" * 40, WANDB_BASE_URL="http://127.0.0.1:9")
    command = [sys.executable, "-c", NO_SERVER, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("wandb: logging offline") and len(done.stdout.splitlines()) == 1
    (written,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert b"reward/mean" in written.read_bytes()


def test_wandb_not_installed_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with start(tmp_path, wandb="offline") as run:
        run.log(1, {"loss": 1.0})
    out = capsys.readouterr().out
    assert out == 'wandb is not installed, so it gets nothing: pip install "genpol[wandb]"\n'
    assert not (tmp_path / "wandb").exists()


def test_rows_that_the_server_has_are_not_sent_again(tmp_path, monkeypatch, nobody):
    monkeypatch.setitem(sys.modules, "wandb", fake := FakeWandb())  # the server is at step 3
    with start(tmp_path, wandb="offline") as run:
        for step in (2, 3, 4):
            run.log(step, {"loss": float(step)})
    assert fake.logged == [(3, {"loss": 3.0}), (4, {"loss": 4.0})]
    assert fake.exit_code == 0


# What can go wrong with wandb


def everything(run):
    """Each thing that a run tells wandb, once or twice."""
    run.log(3, {"loss": 0.5})
    run.log_images(3, "samples", Image.new("RGB", (4, 4)))
    run.log_video(3, "film", run.folder / "film.mp4")
    run.log(4, {"loss": 0.25})
    run.summary({"loss": 0.25})


def assert_whole(folder):
    assert (folder / "metrics.csv").read_text() == "step,loss\n3,0.5\n4,0.25\n"
    assert json.loads((folder / "summary.json").read_text()) == {"loss": 0.25}
    assert (folder / "samples" / "samples-step-000003.png").exists()
    assert (folder / "config.json").exists()


def failing(error):
    def fail(*arguments, **options):
        raise error

    return fail


ERRORS = (ConnectionResetError("Connection lost"), OSError(28, "No space left"), SystemExit(3))


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("call", ["Settings", "init", "log", "finish", "numbers", "Image", "Video"])
def test_a_failure_is_one_warning_and_the_run_is_whole(
    tmp_path, monkeypatch, nobody, capsys, call, error
):
    fake = FakeWandb()
    monkeypatch.setattr(fake, call, None if call == "numbers" else failing(error))
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with start(tmp_path) as run:
        everything(run)
    assert_whole(tmp_path)
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 1 and warnings[0].startswith("warning: wandb "), warnings
    if call == "Image" and isinstance(error, Exception):  # numbers still go there
        assert [step for step, _ in fake.logged] == [3, 4] and fake.numbers == {"loss": 0.25}


@pytest.mark.parametrize("wrong", ["file", "empty id"])
def test_files_that_are_in_the_way(tmp_path, monkeypatch, nobody, capsys, wrong):
    monkeypatch.setitem(sys.modules, "wandb", fake := FakeWandb())
    if wrong == "file":
        (tmp_path / "wandb").write_text("")
    else:
        (tmp_path / "wandb").mkdir()
        (tmp_path / "wandb" / "run_id").write_text("")
    with start(tmp_path) as run:
        everything(run)
    assert_whole(tmp_path)
    warnings = capsys.readouterr().err.splitlines()
    if wrong == "file":
        assert fake.modes == [] and len(warnings) == 1 and "did not start" in warnings[0]
    else:
        assert warnings == [] and len((tmp_path / "wandb" / "run_id").read_text()) == 8


def test_a_broken_installation_is_one_warning(tmp_path, monkeypatch, nobody, capsys):
    (tmp_path / "wandb.py").write_text("raise RuntimeError('protobuf is too old')")
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with start(tmp_path / "run") as run:
        everything(run)
    assert_whole(tmp_path / "run")
    said = capsys.readouterr().err
    assert "did not start (RuntimeError: protobuf is too old)" in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("call", ["init", "log", "finish"])
def test_a_wandb_that_hangs_is_waited_for_a_bounded_time(
    tmp_path, monkeypatch, nobody, capsys, call
):
    release = threading.Event()
    for name in ("START_SECONDS", "CALL_SECONDS", "FINISH_SECONDS", "CLEANING_SECONDS"):
        monkeypatch.setattr(wandb_log, name, 0)  # no second is waited for one that hangs
    waits = {"init": "START", "log": "CALL", "finish": "FINISH"}
    for name, wait in waits.items():
        if name != call:
            monkeypatch.setattr(wandb_log, f"{wait}_SECONDS", 60)
    fake = FakeWandb()
    monkeypatch.setattr(fake, call, lambda *a, **k: release.wait(60))
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with start(tmp_path) as run:
        everything(run)
    release.set()
    assert_whole(tmp_path)
    said = capsys.readouterr().err
    assert "no answer within 0 seconds" in said and len(said.splitlines()) == 1


RUN = """
import os, signal, sys
from pathlib import Path
from PIL import Image
from genpol.runs import wandb_log
from genpol.runs.run import Run

wandb_log.CALL_SECONDS = wandb_log.FINISH_SECONDS = 3
wandb_log.CLEANING_SECONDS = wandb_log.EXIT_SECONDS = 2
folder, number, moment = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
with Run(folder, {}, command="finetune", wandb="offline", resume=folder.exists()) as run:
    run.truncate(-1)
    run.log(1, {"loss": 0.5})
    service = wandb_log._service()
    assert service.poll() is None
    if moment == "before":
        os.kill(service.pid, number)
        number == signal.SIGKILL and service.wait(10)
    run.log(2, {"loss": 0.25})
    print("still here")
    run.log_images(2, "samples", Image.new("RGB", (4, 4)))
    run.log(3, {"loss": 0.125, "text/long": 1.0})
    run.summary({"loss": 0.125})
if moment == "after":
    os.kill(service.pid, number)
assert sys.stdout is sys.__stdout__ or moment == "after"
"""


def run_beside(folder, number, moment):
    command = [sys.executable, "-c", RUN, str(folder), str(int(number)), moment]
    return subprocess.run(command, capture_output=True, text=True, timeout=100)


@pytest.mark.slow
@pytest.mark.parametrize("number", [9, 19], ids=["SIGKILL", "SIGSTOP"])
def test_the_real_wandb_whose_service_dies_or_stops(tmp_path, nobody, number):
    pytest.importorskip("wandb")
    folder = tmp_path / "run"
    done = run_beside(folder, number, "before")
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("warning: wandb "), done.stderr
    assert "its service has ended" in lines[0] or "no answer within 3 seconds" in lines[0]
    assert "still here" in done.stdout
    assert (folder / "metrics.csv").read_text().splitlines()[-1] == "3,0.125,1.0"
    assert json.loads((folder / "summary.json").read_text()) == {"loss": 0.125}
    identity = (folder / "wandb" / "run_id").read_text()

    again = run_beside(folder, 0, "before")  # a resumed run begins with wandb anew
    assert (again.returncode, again.stderr) == (0, "")
    written = list(folder.glob(f"wandb/offline-run-*/run-{identity}.wandb"))
    assert len(written) == 2 and any(b"text/long" in path.read_bytes() for path in written)


@pytest.mark.slow
def test_the_real_wandb_whose_service_stops_after_the_run(tmp_path, nobody):
    """At its exit the process waits a bounded time for it."""
    pytest.importorskip("wandb")
    done = run_beside(tmp_path / "run", 19, "after")
    assert done.returncode == 0


def service_of(pid):
    """The process number of wandb's service, a child of `pid`; 0 where it has none yet."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = path.read_text().rpartition(")")
        except OSError:
            continue  # it ended just now
        if "wandb-core" in name and int(rest.split()[1]) == pid:
            return int(path.parent.name)
    return 0


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_a_training_whose_wandb_is_killed_goes_on_and_takes_it_up_again(
    models, prompts, tmp_path, nobody, monkeypatch
):
    from small_runs import SMALL, words

    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    folder, log = tmp_path / "run", tmp_path / "log"
    options = {"model": models["sd"], "prompts": prompts, "wandb": "offline", "output": folder}
    # PYTHONPATH reaches the child as it is.
    command = [sys.executable, "-m", "genpol.cli", "finetune"]
    with open(log, "w") as file:
        arguments = words(**(SMALL | options | {"epochs": 6}))
        training = subprocess.Popen([*command, *arguments], stdout=file, stderr=file)
    try:
        deadline = time.monotonic() + 200
        while not (folder / "checkpoints" / "step-000001").exists():
            assert training.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        os.kill(service_of(training.pid), signal.SIGKILL)
        assert training.wait(200) == 0, log.read_text()
    finally:
        training.kill()
    said = log.read_text().replace("\r", "\n")
    assert "Traceback" not in said and said.count("warning: wandb") == 1, said
    assert "its service has ended" in said
    steps = [row.split(",")[0] for row in (folder / "metrics.csv").read_text().splitlines()[1:]]
    assert steps == [str(step) for step in range(7)]
    assert (folder / "summary.json").exists()

    again = [*command, "--resume", str(folder), "--epochs", "7"]
    done = subprocess.run(again, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0 and "warning: wandb" not in done.stderr, done.stderr
    identity = (folder / "wandb" / "run_id").read_text()
    assert len(list(folder.glob(f"wandb/offline-run-*/run-{identity}.wandb"))) == 2
