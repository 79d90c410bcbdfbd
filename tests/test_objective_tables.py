"""The tables that compare objectives: what is tuned, what is chosen, what the page says."""

from __future__ import annotations

import math

import pytest

from scripts import objective_report as report
from scripts import objective_tables as tables
from scripts.objective_runs import offset_of, training_captions
from scripts.results_table import Table


def row(**changed):
    values = dict.fromkeys(tables.COLUMNS, 0.0) | {"model": "tiny", "offset": 0, "seed": 0}
    return values | changed


@pytest.fixture
def tuning(tmp_path, monkeypatch):
    table = Table(tmp_path / "tuning.csv", tables.COLUMNS)
    monkeypatch.setattr(tables, "TUNING", table)
    return table


def test_every_arm_has_the_same_number_of_settings():
    assert {len(list(tables.grid(arm))) for arm in tables.ARMS} == {6}


def test_the_chosen_setting_is_the_best_and_needs_all_of_them(tuning):
    settings = list(tables.grid("nft"))
    for i, one in enumerate(settings[:-1]):
        tuning.add(row(arm="nft", setting=tables.named(one), gold=0.5 + 0.01 * i))
    with pytest.raises(SystemExit, match="has not been run"):
        tables.chosen("tiny", "nft")
    tuning.add(row(arm="nft", setting=tables.named(settings[-1]), gold=0.1))
    assert tables.chosen("tiny", "nft") == settings[4]


def test_no_tuning_seed_is_one_of_the_tables():
    assert tables.TUNING_SEED not in tables.SEEDS


def test_training_captions_are_distinct_nested_and_not_held_out():
    from diffusion.world.scenes import is_held_out

    few, many = training_captions(16, seed=0), training_captions(256, seed=0)
    assert len(set(many)) == 256 and many[:16] == few
    assert not any(is_held_out(caption) for caption in many)
    assert training_captions(16, seed=1) != few


def test_offsets_belong_to_prompts_and_have_a_deviation_of_one():
    values = [offset_of(str(i)) for i in range(4_000)]
    mean = sum(values) / len(values)
    spread = (sum((v - mean) ** 2 for v in values) / len(values)) ** 0.5
    assert abs(mean) < 0.06 and abs(spread - 1) < 0.05
    assert offset_of("a") == offset_of("a") != offset_of("b")


def test_a_crossing_is_read_between_the_points_of_a_curve():
    curve = [{"images": "100", "gold": "0.6"}, {"images": "200", "gold": "0.8"}]
    assert report.crossing(curve, 0.7, 0.5, "images") == pytest.approx(150)
    assert report.crossing(curve, 0.55, 0.5, "images") == pytest.approx(50)
    assert report.crossing(curve, 0.9, 0.5, "images") == math.inf


def test_a_cell_says_how_many_seeds_it_is_of():
    assert report.percent([]) == "not run"
    assert report.percent([0.5]) == "50.0, 1 of 3 seeds"
    assert report.percent([0.5, 0.5, 0.5]) == "50.0 (50.0 to 50.0)"


def test_the_page_says_what_the_rows_say():
    page = report.PAGE.read_text()
    for model in ("tiny", "tiny-flow"):
        for arm in tables.ARMS:
            rows = report.of(tables.COMPARED, model=model, arm=arm, offset=0, prompts=16)
            if rows:
                assert report.percent(report.numbers(rows, "gold")) in page, (model, arm)
