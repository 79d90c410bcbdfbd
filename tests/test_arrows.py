"""The architecture's arrows, read from the imports of every file, under TYPE_CHECKING and inside
functions included.

Between packages, `ALLOWED`. Inside a package, the floors that docs/ARCHITECTURE.md draws: a room
(a folder, or a file that stands loose in the package) imports only rooms on floors below its own.
No file imports another in a loop. Some libraries are imported in one file only.
"""

from __future__ import annotations

import ast
import re
from functools import cache
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
OCTO = ("robots/policies/octo.py", "robots/policies/octo_names.py")
ONLY_IN = {  # library -> the files that may import it
    **dict.fromkeys(("jax", "jaxlib", "flax", "optax", "orbax"), OCTO),
    "wandb": ("genpol/runs/wandb_log.py",),
}
IN_ONE_FILE = ("robomimic",)  # whichever it is


@cache
def nodes(source: str) -> list[ast.AST]:
    """Of a file's text; most files are asked about by several tests."""
    return [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, (ast.Import, ast.ImportFrom, ast.Call))
    ]


def imported(path: Path, module: str) -> set[str]:
    """Dotted names that a file imports anywhere in it, relative ones resolved against `module`.

    `from a import b` counts as both a and a.b, since b may be a module.
    """
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    names: set[str] = set()
    for node in nodes(path.read_text("utf-8")):
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


def modules(root: Path) -> dict[str, Path]:
    """Every module of our packages: dotted name -> file."""
    return {
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path
        for package in ALLOWED
        for path in sorted((root / package).rglob("*.py"))
    }


def inside(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def violations(root: Path) -> list[str]:
    """Every import that turns back an arrow between packages, as "file imports name"."""
    wrong, holders = [], {name: set() for name in IN_ONE_FILE}
    for module, path in modules(root).items():
        package, file = module.split(".")[0], path.relative_to(root).as_posix()
        others, wires = ALLOWED[package], inside(module, COMMAND_LINE)
        for name in sorted(imported(path, module)):
            top = name.split(".")[0]
            back = top in ALLOWED and top not in {package} | others and not wires
            from_above = inside(name, COMMAND_LINE) and not wires
            if back or from_above or file not in ONLY_IN.get(top, (file,)):
                wrong.append(f"{file} imports {name}")
            if top in holders:
                holders[top].add(file)
    for name, files in holders.items():
        if len(files) > 1:
            wrong.append(f"{', '.join(sorted(files))} import {name}")
    return wrong


def graph(root: Path) -> dict[str, set[str]]:
    """Module -> the modules of ours that it imports; a package stands for its __init__.py.

    A name taken from a package that is one of its modules is that module's, not the package's.
    """
    files = modules(root)
    edges = {}
    for module, path in files.items():
        names = {name for name in imported(path, module) if name in files}
        taken = {name.rpartition(".")[0] for name in names}
        plain = {name.rpartition(".")[0] for name in imported(path, module) if name not in files}
        edges[module] = {n for n in names if n not in taken or n in plain} - {module}
    return edges


def circles(root: Path) -> list[str]:
    """Every loop of imports, as "a -> b -> a"; one for each pair of files that close it."""
    edges, found, done = graph(root), [], set()

    def walk(module: str, path: list[str]) -> None:
        if module in path:
            found.append(" -> ".join([*path[path.index(module) :], module]))
        elif module not in done:
            for name in sorted(edges[module]):
                walk(name, [*path, module])
            done.add(module)

    for module in sorted(edges):
        walk(module, [])
    return found


def floors(page: str) -> dict[str, dict[str, int]]:
    """Package -> room -> its floor from the top, as drawn between the page's marks."""
    drawn = re.search(r"<!-- floors -->\s*```\n(.*?)```\s*<!-- /floors -->", page, re.DOTALL)
    assert drawn, "docs/ARCHITECTURE.md has lost its floors"
    found: dict[str, dict[str, int]] = {}
    package = ""
    for number, line in enumerate(drawn.group(1).splitlines()):
        words = line.split()
        if words and words[0].endswith("/"):
            package = words.pop(0).removesuffix("/")
        found.setdefault(package, {}).update(dict.fromkeys(words, number))
    return found


def climbing(root: Path, plan: dict[str, dict[str, int]]) -> list[str]:
    """Every import from a room to one that is not below it, and every room not in the plan."""
    wrong, files = [], modules(root)
    edges = graph(root)
    for module, path in files.items():
        package, *rest = module.split(".")
        if not rest:
            continue
        here, rooms = rest[0], plan.get(package, {})
        file = path.relative_to(root).as_posix()
        if here not in rooms:
            wrong.append(f"{file}: {package}/{here} is on no floor of docs/ARCHITECTURE.md")
            continue
        for name in sorted(edges[module]):
            top, _, there = name.partition(".")
            there = there.split(".")[0]
            if top == package and there not in ("", here) and rooms.get(there, -1) <= rooms[here]:
                wrong.append(f"{file} imports {name}, which is not below {package}/{here}")
    return wrong


def test_arrows_never_turn_back():
    assert violations(ROOT) == []


def test_no_file_imports_another_in_a_loop():
    assert circles(ROOT) == []


def test_rooms_import_only_rooms_below_them():
    plan = floors((ROOT / "docs/ARCHITECTURE.md").read_text("utf-8"))
    assert climbing(ROOT, plan) == []
    drawn = {f"{package}/{room}" for package, rooms in plan.items() for room in rooms}
    built = {"/".join(module.split(".")[:2]) for module in modules(ROOT) if "." in module}
    assert drawn == built


# ------------------------------------------------------------------------------ tests of the tests


def write(root: Path, **files: str) -> Path:
    """`genpol__agents__expo="import torch"` as genpol/agents/expo.py."""
    for name, source in files.items():
        path = root / (name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return root


def test_the_real_files_are_read():
    """Guards the tests above against reading nothing: these imports are known to be there."""
    names = imported(ROOT / "genpol/runs/run.py", "genpol.runs.run")
    assert {"offline.errors", "genpol.runs.wandb_log"} <= names
    edges = graph(ROOT)
    assert "offline.critics.td" in edges["genpol.agents.expo"]  # at the top
    assert "genpol.training.session" in edges["genpol.commands.train.wiring"]  # TYPE_CHECKING
    assert "robots.policies.load" in edges["genpol.commands.steer.inputs"]  # in a function


@pytest.mark.parametrize(
    ("file", "source", "wrong"),
    [
        ("diffusion/chain.py", "import genpol", "genpol"),
        ("diffusion/chain.py", "from genpol.runs.run import Run", "genpol.runs.run.Run"),
        ("diffusion/chain.py", "def f():\n    import offline.data", "offline.data"),
        ("offline/data.py", "from diffusion import chain", "diffusion.chain"),
        ("offline/data.py", "import robots", "robots"),
        ("robots/envs.py", "from diffusion.chain import sample_chain", "diffusion.chain"),
        ("robots/envs.py", "import genpol.policies", "genpol.policies"),
        ("genpol/steer.py", "import robots.envs", "robots.envs"),
        ("genpol/steer.py", "from genpol import cli", "genpol.cli"),
        ("genpol/steer.py", "from . import cli", "genpol.cli"),
        ("genpol/steer.py", "from .commands.finetune import Finetune", "genpol.commands.finetune"),
        ("genpol/deep/x.py", "from ..cli import main", "genpol.cli"),
        ("genpol/steer.py", "import importlib\nimportlib.import_module('robots')", "robots"),
        ("genpol/steer.py", "import wandb", "wandb"),
        ("robots/envs.py", "import jax.numpy as jnp", "jax.numpy"),
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
        ("genpol/commands/x.py", "from robots import envs\nfrom genpol.runs.run import Run"),
        ("genpol/__main__.py", "from genpol.cli import main"),
        ("genpol/steer.py", "import offline, diffusion.chain\nfrom . import policies"),
        ("genpol/runs/wandb_log.py", "import wandb"),
        ("robots/policies/octo.py", "import jax, flax.linen\nfrom offline import data"),
        ("robots/policies.py", "import robomimic.utils"),
    ],
)
def test_a_proper_import_passes(tmp_path, file, source):
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(source)
    assert violations(tmp_path) == []


def test_robomimic_belongs_in_one_file(tmp_path):
    write(tmp_path, robots__a="import robomimic", robots__b="import robomimic")
    assert violations(tmp_path) == ["robots/a.py, robots/b.py import robomimic"]


def test_a_circle_is_found(tmp_path):
    typing = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    "
    write(
        tmp_path,
        offline__a="from offline.b import x",
        offline__b="def f():\n    import offline.c",
        offline__c=typing + "from offline import a",
        offline__d="from offline.a import x",
        offline__alone="from offline import d",
    )
    assert circles(tmp_path) == ["offline.a -> offline.b -> offline.c -> offline.a"]
    (tmp_path / "offline/c.py").write_text("import torch")
    assert circles(tmp_path) == []


def test_a_circle_through_a_package_is_found(tmp_path):
    write(
        tmp_path,
        genpol____init__="",
        genpol__policies____init__="from genpol.policies.flow import Flow",
        genpol__policies__flow="from genpol.policies import load_policy",
    )
    (tmp_path / "genpol/__init__.py").write_text("")
    (tmp_path / "genpol/policies/__init__.py").write_text("from genpol.policies.flow import Flow")
    assert len(circles(tmp_path)) == 1
    (tmp_path / "genpol/policies/flow.py").write_text("from genpol.policies import policy")
    (tmp_path / "genpol/policies/policy.py").write_text("")
    assert circles(tmp_path) == []


PLAN = """<!-- floors -->
```
genpol/     agents
            steering  policies
offline/    critics
            types
```
<!-- /floors -->"""


@pytest.mark.parametrize(
    ("room", "source", "wrong"),
    [
        ("agents", "from genpol.steering.x import f", []),
        ("agents", "from offline.critics.x import f", []),  # another package's floors
        ("policies", "from genpol.policies.y import f", []),
        ("policies", "from genpol.agents.x import f", ["agents.x"]),
        ("policies", "def f():\n    from genpol.steering import x", ["steering.x"]),
    ],
)
def test_an_import_that_climbs_is_found(tmp_path, room, source, wrong):
    names = {f"genpol__{name}__{file}": "" for name in ("agents", "steering", "policies")
             for file in "xy"}  # fmt: skip
    write(tmp_path, offline__critics__x="from offline.types import Obs", offline__types="", **names)
    (tmp_path / f"genpol/{room}/x.py").write_text(source)
    expected = [
        f"genpol/{room}/x.py imports genpol.{name}, which is not below genpol/{room}"
        for name in wrong
    ]
    assert climbing(tmp_path, floors(PLAN)) == expected


def test_a_room_outside_the_plan_is_found(tmp_path):
    write(tmp_path, offline__types="from offline.critics.x import f", offline__critics__x="",
          offline__tools="")  # fmt: skip
    assert climbing(tmp_path, floors(PLAN)) == [
        "offline/tools.py: offline/tools is on no floor of docs/ARCHITECTURE.md",
        "offline/types.py imports offline.critics.x, which is not below offline/types",
    ]


def square(page: str) -> dict[str, tuple[list[str], ...]]:
    """Operator -> the files of images, of robots and of both, as the page's table has them."""
    rows = page.split("<!-- square -->")[1].split("<!-- /square -->")[0].strip().splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]
    return {name: tuple(re.findall(r"`([^`]+)`", cell) for cell in rest) for name, *rest in cells}


def reached(files: list[str], edges: dict[str, set[str]]) -> set[str]:
    """All files that these import, and those that they import."""
    todo = [file.removesuffix(".py").replace("/", ".") for file in files]
    found: set[str] = set()
    while todo:
        module = todo.pop()
        if module not in found:
            found.add(module)
            todo += edges.get(module, ())
    return {module.replace(".", "/") + ".py" for module in found}


def test_the_square_names_files_that_exist_and_what_both_worlds_import():
    table, edges = square((ROOT / "docs/ARCHITECTURE.md").read_text("utf-8")), graph(ROOT)
    assert len(table) == 3
    for name, (images, robots, shared) in table.items():
        assert images and robots, name
        for file in (*images, *robots, *shared):
            assert (ROOT / file).is_file(), f"{name}: {file}"
        for world in (images, robots):
            assert set(shared) <= reached(world, edges), f"{name}: {world}"
