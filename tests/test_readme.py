"""The README's figures are those of the committed tables."""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_results_are_regenerated_not_typed(monkeypatch):
    monkeypatch.chdir(ROOT)
    spec = importlib.util.spec_from_file_location("tiny_results", ROOT / "scripts/tiny_results.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    block = script.block()
    assert block in (ROOT / "README.md").read_text()
    assert "longer, 80 epochs" in block and "| 3.0 |" in block
