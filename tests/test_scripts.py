"""Scripts find what they import from the packages, inside functions too, without being run."""

from __future__ import annotations

import ast
import importlib
from importlib.util import find_spec

import pytest
from doc_blocks import ROOT

OURS = ("genpol", "offline", "robots", "diffusion", "scripts")
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_every_name_that_a_script_imports_exists(script):
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in OURS:
            module = importlib.import_module(node.module)
            for alias in node.names:
                known = hasattr(module, alias.name) or find_spec(f"{node.module}.{alias.name}")
                assert known, f"{script.name}:{node.lineno}: no {alias.name} in {node.module}"
