"""`genpol --help` answers at once: nothing heavy is imported before a command does its work."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from genpol.cli import COMMANDS

HEAVY = ("torch", "diffusers", "transformers", "peft", "wandb", "numpy", "scipy", "matplotlib")


def heavy_after(source: str) -> str:
    """The heavy libraries loaded by a fresh interpreter once it has run `source`."""
    report = f"import sys; print('heavy:', *sorted(set({HEAVY}) & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", f"{source}\n{report}"], capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()[-1]


def test_help_takes_under_a_second():
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        command = [sys.executable, "-m", "genpol.cli", "--help"]
        done = subprocess.run(command, capture_output=True, text=True)
        seconds.append(time.perf_counter() - start)
        assert done.returncode == 0, done.stderr
        assert all(name in done.stdout for name in COMMANDS)
    assert min(seconds) < 1.0


@pytest.mark.parametrize("words", [[], *(name.split() for name in COMMANDS)], ids=" ".join)
def test_help_imports_nothing_heavy(words):
    source = f"from genpol.cli import main; assert main({[*words, '--help']}) == 0"
    assert heavy_after(source) == "heavy:"


PACKAGES = ("genpol", "offline", "robots", "diffusion")


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_a_package_imports_nothing_heavy(package):
    assert heavy_after(f"import {package}; dir({package})") == "heavy:"


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_a_package_takes_under_a_fifth_of_a_second(package):
    """In seconds of the CPU, which do not depend on what else the machine does."""
    source = f"import time; t = time.process_time(); import {package}; "
    seconds = []
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", source + "print(time.process_time() - t)"],
            capture_output=True,
            text=True,
            check=True,
        )
        seconds.append(float(done.stdout))
    assert min(seconds) < 0.2


@pytest.mark.parametrize("words", [["completion", "bash"], ["train", "--agent", "sac", "--help"]])
def test_what_reads_the_options_imports_nothing_heavy(words):
    assert heavy_after(f"from genpol.cli import main; assert main({words}) == 0") == "heavy:"


def test_the_list_of_commands_imports_none_of_them():
    source = "from genpol.cli import main; assert main(['--help']) == 0"
    heavier = ("tyro", "genpol.commands.serve.command")
    report = f"import sys; print(*(m for m in sys.modules if m in {heavier}))"
    command = [sys.executable, "-c", f"{source}\n{report}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ""


def test_heavy_imports_are_noticed():
    assert heavy_after("import numpy") == "heavy: numpy"
