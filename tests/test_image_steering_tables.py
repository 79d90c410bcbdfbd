"""The tables of steered pictures: rows that are there are skipped, and the report says what they
say and what is missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_values import tiny_value

from scripts import image_steering_report, image_steering_tables
from scripts.image_steering_runs import Arm, Drawn, policy_of
from scripts.image_steering_tables import arms_of, expression, tables


@pytest.fixture
def small(monkeypatch, tmp_path) -> Path:
    """Rows in a folder of the test's own, few arms, values that were never trained."""
    monkeypatch.setattr(image_steering_tables, "RESULTS", tmp_path)
    monkeypatch.setattr(image_steering_tables, "BEST_OF", (1, 2))
    monkeypatch.setattr(image_steering_tables, "GUIDED", {"guidance 3": (Arm(guidance=3.0), 1)})
    two = {"prune 2 at .5": Arm(2, (0.5,)), "prune 8 at .7 .4 .2": Arm(2, (0.9,))}
    monkeypatch.setattr(image_steering_tables, "STEERED", two)
    by_reward = {"prune 2, by the predicted reward": Arm(2, (0.5,))}
    monkeypatch.setattr(image_steering_tables, "PREDICTED", by_reward)
    monkeypatch.setattr(image_steering_tables, "WEIGHTS", (0.0, 1.0))

    def trained(model, reward, seed, work, options):
        value = tiny_value(policy_of(model), seed)
        value.meta["images"] = 1280
        return value

    monkeypatch.setattr(image_steering_tables, "trained_value", trained)
    return tmp_path


@pytest.mark.slow
def test_every_arm_leaves_a_row_and_none_is_drawn_twice(small, monkeypatch):
    image_steering_tables.images("tiny", 1000, small, count=2)
    table, _ = tables(1000)
    rows = {row["arm"]: row for row in table.rows()}
    spent = {name: float(row["evaluations"]) for name, row in rows.items()}
    assert spent == {
        "one sample": 10,
        "best of 2": 20,
        "guidance 3": 20,
        "prune 2 at .5": 15,
        "prune 8 at .7 .4 .2": 11,
        "prune 2, by the predicted reward": 15,
    }
    assert rows["prune 2, by the predicted reward"]["reward_calls"] == "2"
    assert float(rows["one sample"]["gold_gain"]) == 0
    assert float(rows["best of 2"]["reward"]) >= float(rows["one sample"]["reward"])
    assert table.path.name == "image_steering_tuning.csv"
    monkeypatch.setattr(image_steering_tables, "finished", None)  # it would be called
    image_steering_tables.images("tiny", 1000, small, count=2)
    assert len(table.rows()) == 6


def test_composition_steers_and_fine_tunes_by_the_same_weights(small, monkeypatch):
    asked = []

    def fine_tuned(model, reward, seed, epochs, prompts, judges):
        asked.append(reward)
        return Drawn({name: np.zeros(len(prompts)) for name in judges}, 10, 0, 0.1), 1280

    monkeypatch.setattr(image_steering_tables, "fine_tuned", fine_tuned)
    for _ in range(2):
        image_steering_tables.composition(1000, small, count=2)
    rows = tables(1000)[1].rows()
    assert [(row["arm"], row["weight"]) for row in rows] == [
        ("one sample", "0"),
        ("steered", "0"),
        ("fine-tuned", "0"),
        ("steered", "1"),
        ("fine-tuned", "1"),
    ]
    assert asked == ["1*attributes", "1*attributes+1*jpeg_compressibility"]
    assert {row["trained_on"] for row in rows if row["arm"] == "steered"} == {"2560"}
    assert expression([1, 0.3], [0.2, 1.5]) == "5*attributes+0.2*jpeg_compressibility"


def whole(model: str, over: float) -> list[dict[str, str]]:
    base = {"model": model, "reward_calls": "0", "cpu_seconds": "0.1", "reward": "0.8"}
    base |= {"gold": "0.7", "gold_gain": "0.1"}
    cost = {"best of 8": "80", "prune 8 at .7 .5 .2": "40", "prune 8 at .7 .4 .2": "42"}
    cost["prune 8 at .7 .5 .2, by the predicted reward"] = "40"
    return [
        base
        | {"arm": arm, "seed": str(seed), "evaluations": cost.get(arm, "50")}
        | {"over_best_of_8": str(over + 0.01 * seed)}
        for arm in image_steering_report.names_of(model)
        for seed in (0, 1, 2)
    ]


def test_the_report_says_whether_the_target_is_reached():
    text = image_steering_report.model_text("tiny", whole("tiny", 0.0))
    said = "pruned by the value: at half the evaluations of the best of 8 (40) the best arm is "
    assert f"{said}`prune 8 at .7 .5 .2`. It reaches the gold score" in text
    assert "by the predicted reward: at half" in text
    assert "(difference 1.0 ± 2.5 points)" in text
    worse = image_steering_report.model_text("tiny", whole("tiny", -0.03))
    assert "stays 2.0 points below the gold score" in worse
    assert "| prune 8 at .7 .4 .2 | 42 | 0 | 0.1 | 0.800 ± 0.000 | 70.0 ± 0.0 |" in text


def test_the_report_says_what_is_missing():
    rows = whole("tiny", 0.0)
    flow = len(image_steering_report.names_of("tiny-flow")) * 3
    said = image_steering_report.missing_images(rows)
    assert said.startswith(f"Not run yet: {flow} of {flow + len(rows)} rows (tiny-flow, one sample")
    assert image_steering_report.missing_images(rows + whole("tiny-flow", 0.0)) == ""
    assert "Not run yet: 30 of 30 rows" in image_steering_report.missing_composed([])
    assert "one sample by cps" in arms_of("tiny-flow") and "one sample by cps" not in arms_of(
        "tiny"
    )


@pytest.mark.slow
def test_the_page_gets_tables_and_charts(tmp_path, monkeypatch):
    from scripts.results_table import Table

    page = tmp_path / "RESULTS.md"
    places = ("image-steering", "image-composition")
    page.write_text("\n".join(f"<!-- {name} -->\n<!-- /{name} -->" for name in places))
    steered = Table(tmp_path / "a.csv", image_steering_tables.COLUMNS)
    composed = Table(tmp_path / "b.csv", image_steering_tables.COMPOSED)
    usual = dict.fromkeys(image_steering_tables.COLUMNS, "0")
    steered.add(*(usual | row for row in whole("tiny", 0.0)))
    for arm in ("steered", "fine-tuned"):
        for weight in ("0", "0.3"):
            row = {"arm": arm, "weight": weight, "seed": 0, "images": 2, "evaluations": 42}
            row |= {"trained_on": 1280, "attributes": 0.8, "gold": 0.7}
            composed.add(row | {"jpeg_compressibility": -1.5})
    monkeypatch.setattr(image_steering_report, "RESULTS", tmp_path)
    monkeypatch.setattr(image_steering_report, "tables", lambda seed: (steered, composed))
    monkeypatch.setattr(
        image_steering_report,
        "write_block",
        lambda name, text: image_steering_tables_block(name, text, page),
    )
    image_steering_report.write()
    text = page.read_text()
    assert "| 0.3 | 70.0 | 1.500 | 70.0 | 1.500 |" in text and "Not run yet" in text
    assert {"image_steering.png", "image_composition.png"} <= {p.name for p in tmp_path.iterdir()}


def image_steering_tables_block(name: str, text: str, page: Path) -> None:
    from scripts.results_table import write_block

    write_block(name, text, page)
