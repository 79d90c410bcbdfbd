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


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, str]:
    file = tmp_path_factory.mktemp("card") / "found.json"
    ran = subprocess.run(
        [sys.executable, str(SCRIPT), str(file)], capture_output=True, text=True, cwd=ROOT
    )
    assert file.exists(), ran.stderr
    return json.loads(file.read_text())


def test_nothing_is_left_on_the_cpu_and_no_update_waits(found):
    assert len(found) >= 14
    wrong = [f"{name}:\n{trace}" for name, trace in found.items() if trace]
    assert not wrong, "\n".join(wrong)
