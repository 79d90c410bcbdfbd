"""Threads wait asleep: said before PyTorch loads, and never over what the user has said."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from diffusion import waiting as of_diffusion
from offline import waiting

SHOW = "import os; print(os.environ.get('OMP_WAIT_POLICY'))"


def after(source: str, **environment: str) -> str:
    """$OMP_WAIT_POLICY in a fresh interpreter once it has run `source`."""
    free = {k: v for k, v in os.environ.items() if k not in waiting.SETTINGS}
    command = [sys.executable, "-c", f"{source}; {SHOW}"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=free | environment
    )
    return done.stdout.strip()


@pytest.mark.parametrize("module", ["genpol", "offline", "robots", "diffusion", "genpol.cli"])
def test_every_way_in_asks_for_it(module):
    assert after(f"import {module}") == "PASSIVE"


def test_the_library_is_not_loaded_for_it():
    source = "import genpol, robots, diffusion, sys; assert 'torch' not in sys.modules"
    assert after(source) == "PASSIVE"


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [("OMP_WAIT_POLICY", "ACTIVE", "ACTIVE"), ("GOMP_SPINCOUNT", "1000", "None")],
)
def test_what_the_user_has_said_stays(name, value, shown):
    assert after("import genpol", **{name: value}) == shown


@pytest.mark.parametrize("name", waiting.SETTINGS)
def test_each_of_the_settings_counts(name, monkeypatch):
    for known in waiting.SETTINGS:
        monkeypatch.delenv(known, raising=False)
    monkeypatch.setenv(name, "0")
    monkeypatch.setattr(waiting.sys, "modules", {})
    before = dict(os.environ)
    waiting.wait_passively()
    assert dict(os.environ) == before


def test_nothing_is_said_once_pytorch_is_loaded(monkeypatch):
    for known in waiting.SETTINGS:
        monkeypatch.delenv(known, raising=False)
    monkeypatch.setattr(waiting.sys, "modules", {"torch": None})
    waiting.wait_passively()
    assert "OMP_WAIT_POLICY" not in os.environ


def test_both_packages_have_the_same_file():
    ours, theirs = (Path(module.__file__).read_text() for module in (waiting, of_diffusion))
    assert ours.replace("`diffusion/waiting.py`", "`offline/waiting.py`") == theirs
