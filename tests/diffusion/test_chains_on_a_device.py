"""Chains, scores and the KL on a device that is not the CPU, stored there or in host memory.

No card is needed: see `tests/helpers/pretend_card.py`. One process makes all checks.
"""

from __future__ import annotations

import os
import subprocess
import sys
from ast import literal_eval
from pathlib import Path

import diffusion

ROOT = Path(diffusion.__file__).parents[1]
HELPERS = ROOT / "tests" / "helpers"
TABLES = 10  # tables of both processes; each is copied once


def test_numbers_are_those_of_the_cpu_and_small_copies_do_not_wait():
    ran = subprocess.run(
        [sys.executable, str(HELPERS / "chain_card_checks.py")],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(HELPERS)])},
    )
    assert ran.returncode == 0, ran.stderr
    host, beside = (literal_eval(line.split(" ", 1)[1]) for line in ran.stdout.splitlines())
    assert set(host) == {"copy to card", "copy to cpu", "copy_ from one device to the other"}
    assert set(beside) == {"copy to card", "copy to cpu"}
    # Two networks of two weights, the condition and a seed's place are moved by the check itself.
    assert host["copy to card"] <= TABLES + 6 and beside["copy to card"] <= TABLES + 7
    assert host["copy_ from one device to the other"] == 3 * 5  # three batches of five latents
