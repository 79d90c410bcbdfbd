"""The run folder: who may write in it, what it records, pictures, wandb, interrupts."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from PIL import Image

from genpol.runs.run import Run, read_config
from offline.errors import InputError

CONFIG = {"reward": "jpeg_compressibility", "epochs": 10, "beta": 3e-5, "seed": None}


def start(folder, *, wandb="disabled", resume=False, config=CONFIG):
    return Run(folder, config, command="finetune", wandb=wandb, resume=resume)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# Claiming a folder


def test_config_records_options_versions_and_commit(tmp_path):
    import torch

    with start(tmp_path / "a" / "x", config=CONFIG | {"output": tmp_path}) as run:
        run.log(1, {"loss": 1.0})
    document = json.loads((tmp_path / "a" / "x" / "config.json").read_text())
    assert CONFIG.items() <= document.items()
    assert document["output"] == str(tmp_path)
    assert document["command"] == "finetune" and document["command_line"]
    assert document["versions"]["torch"] == torch.__version__
    assert set(document["versions"]) == {
        *("python", "genpol", "torch", "diffusers", "transformers", "peft")
    }
    assert document["git"] is None or len(document["git"]) == 40


@pytest.mark.parametrize("finished", [False, True])
def test_a_folder_with_a_run_is_refused(tmp_path, finished):
    with start(tmp_path) as run:
        run.log(1, {"loss": 1.0})
        if finished:
            run.summary({"loss": 1.0})
    before = (tmp_path / "metrics.csv").read_bytes()
    kind = "a finished" if finished else "an unfinished"
    with pytest.raises(InputError, match=f"{kind} run: pass another --output or --resume"):
        start(tmp_path)
    assert (tmp_path / "metrics.csv").read_bytes() == before


def test_a_folder_without_a_run_is_accepted(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with start(tmp_path) as run:
        run.log(1, {"loss": 1.0})
    assert names(tmp_path) == ["config.json", "metrics.csv", "notes.txt"]


def test_output_that_is_a_file_is_one_line(tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(InputError, match="cannot make the output folder.*another --output"):
        start(tmp_path / "x")


def test_a_run_that_failed_at_once_gives_the_folder_back(tmp_path):
    with pytest.raises(ZeroDivisionError), start(tmp_path):
        raise ZeroDivisionError
    assert names(tmp_path) == []
    with pytest.raises(ZeroDivisionError), start(tmp_path) as run:
        run.log(1, {"loss": 1.0})
        raise ZeroDivisionError
    assert names(tmp_path) == ["config.json", "metrics.csv"]


def test_a_resumed_run_that_failed_at_once_keeps_its_folder(tmp_path):
    with start(tmp_path):  # killed before its first row: nothing but config.json and a header
        pass
    with pytest.raises(ZeroDivisionError), start(tmp_path, resume=True):
        raise ZeroDivisionError
    assert names(tmp_path) == ["config.json", "metrics.csv"]


def test_resume_keeps_config_and_drops_rows_after_the_checkpoint(tmp_path):
    with start(tmp_path) as run:
        for step in (1, 2, 3):
            run.log(step, {"loss": step / 10})
    before = (tmp_path / "config.json").read_bytes()
    with start(tmp_path, resume=True, config={"epochs": 99}) as run:
        run.truncate(1)
        run.log(2, {"loss": 0.2})
    assert (tmp_path / "config.json").read_bytes() == before
    assert (tmp_path / "metrics.csv").read_text() == "step,loss\n1,0.1\n2,0.2\n"


def test_resume_of_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="no run to resume"):
        start(tmp_path / "x", resume=True)
    assert not (tmp_path / "x").exists()


def test_read_config_returns_the_options(tmp_path):
    with start(tmp_path) as run:
        run.log(1, {"loss": 1.0})
    assert read_config(tmp_path, "finetune") == CONFIG
    with pytest.raises(InputError, match="a run of `genpol finetune`, not of `genpol train`"):
        read_config(tmp_path, "train")
    with pytest.raises(InputError, match="holds no run"):
        read_config(tmp_path / "x", "finetune")
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(InputError, match="not a run's configuration"):
        read_config(tmp_path, "finetune")


def test_a_run_in_another_format_is_refused_and_one_without_is_the_first(tmp_path):
    with start(tmp_path) as run:
        run.log(1, {"loss": 1.0})
    path = tmp_path / "config.json"
    document = json.loads(path.read_text())
    assert document.pop("format") == "genpol run 1"
    path.write_text(json.dumps(document))
    assert read_config(tmp_path, "finetune") == CONFIG
    document["versions"]["genpol"] = "9.8"
    path.write_text(json.dumps(document | {"format": "genpol run 7"}))
    with pytest.raises(InputError, match='"genpol run 7", written by genpol 9.8; .*"genpol run 1"'):
        read_config(tmp_path, "finetune")
    path.write_text(json.dumps({"command": "finetune", "format": 7}))
    with pytest.raises(InputError, match='"7", written by genpol of another version'):
        read_config(tmp_path, "finetune")


# What it writes


def test_summary_is_flat_numbers(tmp_path):
    with start(tmp_path) as run:
        run.summary({"eval/reward_after": 0.5, "steps": 3, "lost": float("nan")})
    text = (tmp_path / "summary.json").read_text()
    assert json.loads(text) == {"eval/reward_after": 0.5, "steps": 3, "lost": None}


def test_pictures_go_to_samples(tmp_path):
    image = Image.new("RGB", (4, 4), (255, 0, 0))
    with start(tmp_path) as run:
        path = run.log_images(10, "eval/held_out", image)
    assert path == tmp_path / "samples" / "eval_held_out-step-000010.png"
    assert Image.open(path).getpixel((0, 0)) == (255, 0, 0)


FULL_DISK = """
import resource, sys
from pathlib import Path
from genpol.runs.run import Run
from offline.errors import InputError
with Run(Path(sys.argv[1]), {}, command="finetune", wandb="disabled") as run:
    run.log(1, {"loss": 1.0})
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
    try:
        for step in range(2, 100):
            run.log(step, {"loss": 1.0})
    except InputError as error:
        print(error)
"""


def test_a_full_disk_while_logging_is_one_line_and_the_table_still_opens(tmp_path):
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == 1
    assert f"cannot write {tmp_path / 'metrics.csv'}" in done.stdout
    with start(tmp_path, resume=True) as run:
        run.log(50, {"loss": 0.5})
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert lines[0] == "step,loss" and lines[-1] == "50,0.5"
    assert lines[1:-1] == [f"{step},1.0" for step in range(1, len(lines) - 1)]


# wandb


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
        self.url, self.step = "https://example/run", 3

    def Settings(self, **options):
        return options

    def setup(self, settings):
        assert settings["silent"]

    def teardown(self):
        self.modes.append("teardown")

    def init(self, **options):
        self.modes.append(options["mode"])
        if self.down and options["mode"] == "online":
            raise self.errors.Error("no network")
        return self

    def log(self, metrics, step):
        self.logged.append((step, metrics))

    def finish(self, exit_code):
        self.exit_code = exit_code


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


def test_no_network_falls_back_only_if_online_was_not_asked_for(tmp_path, monkeypatch, nobody):
    monkeypatch.setitem(sys.modules, "wandb", fake := FakeWandb(down=True))
    monkeypatch.setenv("WANDB_API_KEY", "k")
    start(tmp_path / "a", wandb=None)
    assert fake.modes == ["online", "teardown", "offline"]
    with pytest.raises(InputError, match="no network.*--wandb offline"):
        start(tmp_path / "b", wandb="online")
    assert not (tmp_path / "b" / "config.json").exists()


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
