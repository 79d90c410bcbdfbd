"""The public surface: every name loads lazily, is documented, typed, and listed on one page."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from scripts.public_surface import PACKAGES, PAGE, ROOT, page, stub, summary, table


@pytest.mark.parametrize("package", PACKAGES)
def test_every_name_is_what_its_module_defines(package):
    module = importlib.import_module(package)
    assert table(package) and sorted(module.__all__) == sorted(table(package))
    for name, where in table(package).items():
        assert getattr(module, name) is getattr(importlib.import_module(where), name)
        assert name in dir(module)
        assert where.split(".")[0] == package


@pytest.mark.parametrize("package", PACKAGES)
def test_every_name_has_a_docstring(package):
    for name in table(package):
        assert 10 < len(summary(package, name)) < 160, f"{package}.{name}"


@pytest.mark.parametrize("package", PACKAGES)
def test_the_stub_agrees_with_the_table(package):
    path = ROOT / package / "__init__.pyi"
    assert path.read_text("utf-8") == stub(package), "run python -m scripts.public_surface"
    assert (path.parent / "py.typed").exists()


def test_the_page_lists_every_name():
    text = PAGE.read_text("utf-8")
    assert page(text) == text, "run python -m scripts.public_surface"
    for package in PACKAGES:
        for name in table(package):
            assert f"| `{name}` |" in text


def test_an_unknown_name_is_an_attribute_error():
    import genpol

    with pytest.raises(AttributeError, match="no attribute 'Steerd'"):
        genpol.Steerd  # noqa: B018
    from genpol import runs  # a room is still found as a module

    assert runs.__name__ == "genpol.runs"


def test_a_star_import_brings_every_name():
    space: dict[str, object] = {}
    exec("from offline import *", space)
    assert set(table("offline")) <= set(space)


@pytest.mark.slow
def test_type_checkers_see_the_types(tmp_path):
    """mypy reads the stubs: a wrong argument is an error, a right one is not."""
    pytest.importorskip("mypy")
    (tmp_path / "user.py").write_text(
        "from genpol import CloneConfig\n"
        "good: CloneConfig = CloneConfig(steps=3)\n"
        'wrong = CloneConfig(steps="three")\n'
        "from offline import NoSuchName\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"),
         "--cache-dir", str(tmp_path / "cache"), "--follow-imports", "silent", "user.py"],
        cwd=tmp_path, capture_output=True, text=True, env={"MYPYPATH": str(ROOT), "PATH": ""},
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert len([line for line in lines if line.startswith("user.py:") and "error" in line]) == 2
    assert any("user.py:3" in line and "arg-type" in line for line in lines), done.stdout
    assert any("user.py:4" in line and "NoSuchName" in line for line in lines), done.stdout
