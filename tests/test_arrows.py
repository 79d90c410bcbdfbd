"""The architecture's arrows, read from the imports of every file.

    genpol.cli -> genpol, robots -> diffusion, offline (leaves)

Only the command line (`genpol.cli`, `genpol.__main__`, `genpol.commands`) may import both genpol
and robots, and nothing else imports it. Some libraries are imported in one file only.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ALLOWED = {  # package -> the other packages of ours that it may import
    "diffusion": set(),
    "offline": set(),
    "robots": {"offline"},
    "genpol": {"diffusion", "offline"},
}
COMMAND_LINE = ("genpol.cli", "genpol.__main__", "genpol.commands")
ONLY_IN = {  # library -> the file that may import it
    "jax": "robots/policies/octo.py",
    "jaxlib": "robots/policies/octo.py",
    "flax": "robots/policies/octo.py",
    "optax": "robots/policies/octo.py",
    "orbax": "robots/policies/octo.py",
    "wandb": "genpol/runs/run.py",
}
IN_ONE_FILE = ("robomimic",)  # whichever it is


def imported(path: Path, module: str) -> set[str]:
    """Dotted names that a file imports anywhere in it, relative ones resolved against `module`.

    `from a import b` counts as both a and a.b, since b may be a module.
    """
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join(above + ([node.module] if node.module else []))
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else node.func
            called = called.id if isinstance(called, ast.Name) else called
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                names.add(node.args[0].value)
    return names


def inside(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def violations(root: Path) -> list[str]:
    """Every import under `root` that turns an arrow back, as "file imports name"."""
    wrong, holders = [], {name: set() for name in IN_ONE_FILE}
    for package, others in ALLOWED.items():
        for path in sorted((root / package).rglob("*.py")):
            file = path.relative_to(root)
            module = ".".join(file.with_suffix("").parts).removesuffix(".__init__")
            wires = inside(module, COMMAND_LINE)
            for name in sorted(imported(path, module)):
                top = name.split(".")[0]
                back = top in ALLOWED and top not in {package} | others and not wires
                from_above = inside(name, COMMAND_LINE) and not wires
                astray = ONLY_IN.get(top, file.as_posix()) != file.as_posix()
                if back or from_above or astray:
                    wrong.append(f"{file.as_posix()} imports {name}")
                if top in holders:
                    holders[top].add(file.as_posix())
    for name, files in holders.items():
        if len(files) > 1:
            wrong.append(f"{', '.join(sorted(files))} import {name}")
    return wrong


def test_arrows_never_turn_back():
    assert violations(ROOT) == []


def test_the_real_files_are_read():
    """Guards the test above against reading nothing: these imports are known to be there."""
    assert "diffusion.errors" in imported(ROOT / "genpol" / "run.py", "genpol.runs.run")
    assert "wandb" in imported(ROOT / "genpol" / "run.py", "genpol.runs.run")


@pytest.mark.parametrize(
    ("file", "source", "wrong"),
    [
        ("diffusion/chain.py", "import genpol", "genpol"),
        ("diffusion/chain.py", "from genpol.runs.run import Run", "genpol.runs.run.Run"),
        ("diffusion/chain.py", "def f():\n    import offline.data", "offline.data"),
        ("offline/data.py", "from diffusion import chain", "diffusion.chain"),
        ("offline/data.py", "import robots", "robots"),
        ("robots/envs/make.py", "from diffusion.chain import sample_chain", "diffusion.chain"),
        ("robots/envs/make.py", "import genpol.policies", "genpol.policies"),
        ("genpol/steering/steered.py", "import robots.envs.make", "robots.envs.make"),
        ("genpol/steering/steered.py", "from genpol import cli", "genpol.cli"),
        ("genpol/steering/steered.py", "from . import cli", "genpol.cli"),
        (
            "genpol/steering/steered.py",
            "from .commands.finetune import Finetune",
            "genpol.commands.finetune",
        ),
        ("genpol/deep/x.py", "from ..cli import main", "genpol.cli"),
        (
            "genpol/steering/steered.py",
            "import importlib\nimportlib.import_module('robots')",
            "robots",
        ),
        ("genpol/steering/steered.py", "import wandb", "wandb"),
        ("robots/envs/make.py", "import jax.numpy as jnp", "jax.numpy"),
        ("genpol/cli.py", "import wandb", "wandb"),
    ],
)
def test_an_offending_import_is_found(tmp_path, file, source, wrong):
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(source)
    assert f"{file} imports {wrong}" in violations(tmp_path)


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("genpol/cli.py", "import robots, offline, diffusion\nfrom genpol.commands import demo"),
        ("genpol/commands/collect.py", "from robots import envs\nfrom genpol.runs.run import Run"),
        ("genpol/__main__.py", "from genpol.cli import main"),
        ("genpol/steering/steered.py", "import offline, diffusion.chain\nfrom . import policies"),
        ("genpol/runs/run.py", "import wandb"),
        ("robots/policies/octo.py", "import jax, flax.linen\nfrom offline import data"),
        ("robots/policies.py", "import robomimic.utils"),
    ],
)
def test_a_proper_import_passes(tmp_path, file, source):
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(source)
    assert violations(tmp_path) == []


def test_robomimic_belongs_in_one_file(tmp_path):
    (tmp_path / "robots").mkdir()
    for name in ("a", "b"):
        (tmp_path / "robots" / f"{name}.py").write_text("import robomimic")
    assert violations(tmp_path) == ["robots/a.py, robots/b.py import robomimic"]
