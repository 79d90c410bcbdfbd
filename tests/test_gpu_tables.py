"""scripts/gpu_tables.py on the CPU: a row, what goes on where, and the pages."""

from __future__ import annotations

import sys

import pytest

from genpol.cli import main as genpol
from scripts import gpu_tables
from scripts.gpu_tables import FINETUNE, LIMITED, MISSING, ROBOTS, Failed, Place, main, rows


def arguments(folder, *more):
    return ["--device", "cpu", "--tiny", "--output", str(folder), "--work", str(folder), *more]


@pytest.fixture
def inside(monkeypatch, capsys):
    """Rows in this process, since another one would import everything anew."""
    ran = []

    def here(words, share=1.0):
        ran.append(words)
        capsys.readouterr()
        if genpol(words):
            raise Failed(capsys.readouterr().err.strip())
        return capsys.readouterr().out

    monkeypatch.setattr(gpu_tables, "genpol", here)
    return ran


def test_a_row_is_measured_once_and_goes_onto_the_page(tmp_path, inside, monkeypatch):
    monkeypatch.setattr("genpol.runs.measure.count_flop", lambda function: 1e9)  # of another test
    monkeypatch.setattr(gpu_tables, "compiled", lambda command: [False])  # a compiler takes minutes
    assert main(arguments(tmp_path, "--only", "sd15")) == 0
    place = Place("cpu", "cpu", tmp_path, tmp_path, True)
    (row,) = place.finetune().rows()
    assert row["shape"] == "sd15" and row["device"] == "cpu"
    numbers = FINETUNE[FINETUNE.index("images") :]
    assert all(float(row[name]) > 0 for name in numbers)
    assert all(words[0] in ("bench", "finetune") for words in inside)
    count = len(inside)
    assert main(arguments(tmp_path, "--only", "sd15")) == 0
    assert len(inside) == count and len(place.finetune().rows()) == 1
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- gpu-finetune --><!-- /gpu-finetune -->\n<!-- gpu-robots --><!-- /gpu-robots -->\n"
    )
    gpu_tables.write_pages(place, page)
    assert "| sd15 | off |" in page.read_text() and MISSING in page.read_text()


def test_a_row_that_fails_is_not_written(tmp_path, monkeypatch, capsys):
    def fails(words, share=1.0):
        raise Failed("out of memory")

    monkeypatch.setattr(gpu_tables, "genpol", fails)
    monkeypatch.setattr("scripts.real_shapes.build", lambda name, folder, **more: folder.mkdir())
    assert main(arguments(tmp_path, "--only", "flux")) == 1
    assert "failed: out of memory" in capsys.readouterr().out
    assert not (tmp_path / "gpu_finetune.csv").exists()


def test_nothing_of_the_cpu_comes_into_the_results():
    with pytest.raises(SystemExit):
        main(["--device", "cpu"])
    with pytest.raises(SystemExit):
        main(["--tiny", "--device", "cuda"])


def test_rows_of_every_shape_and_one_in_24_gb(tmp_path):
    place = Place("cuda", "a card", tmp_path, tmp_path, False)
    keys = [(label, key) for label, _, key, _ in rows(place)]
    plain = {label for label, key in keys if key.get("limit_gb") == "" and not key["compile"]}
    assert plain == {"sd15", "sdxl", "sd35-medium", "flux"}
    assert plain <= {label for label, key in keys if key["compile"]}
    assert [label for label, key in keys if key.get("limit_gb") == 24.0] == list(LIMITED)
    assert "expo" in {label for label, _ in keys}


def test_the_last_words_of_a_process_are_its_failure(monkeypatch):
    with pytest.raises(Failed, match="unknown command"):
        gpu_tables.genpol(["nothing"])
    assert sys.executable


def test_robots_stand_beside_the_published_code():
    empty = dict.fromkeys(ROBOTS, "")
    found = [
        empty | {"what": "expo", "compile": "True", "device": "a card", "critic_update_ms": "2.5",
                 "env_step_ms": "55"},
        empty | {"what": "decision, flow", "compile": "False", "device": "a card",
                 "base_p50_ms": "1.25", "steered_p50_ms": "2", "steered_p95_ms": "2.5"},
    ]  # fmt: skip
    page = gpu_tables.robots_page(found)
    assert "| genpol | on | 2.5 | 55 |" in page and "published JAX code" in page
    assert "| flow | off | 1.25 | 2 | 2.5 |" in page and "Measured on a card." in page
