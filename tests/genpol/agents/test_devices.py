"""All that learns and decides does so on a device, with the numbers that it has on the CPU.

No card is needed: see `tests/helpers/pretend_card.py`. One process makes all checks.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import genpol

ROOT = Path(genpol.__file__).parents[1]
SCRIPT = ROOT / "tests" / "helpers" / "card_checks.py"


@pytest.mark.parametrize("which", ["quick", pytest.param("", marks=pytest.mark.slow)])
def test_nothing_is_left_on_the_cpu_and_no_update_waits(which, tmp_path):
    """Each check compares numbers with the CPU's, and goes on from a checkpoint elsewhere."""
    file = tmp_path / "found.json"
    ran = subprocess.run(
        [sys.executable, str(SCRIPT), str(file), *which.split()],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert file.exists(), ran.stderr
    found = json.loads(file.read_text())
    assert len(found) >= (5 if which else 19)
    wrong = [f"{name}:\n{trace}" for name, trace in found.items() if trace]
    assert not wrong, "\n".join(wrong)
