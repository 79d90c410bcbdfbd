"""The tables of world models: every planned run is one that train knows, and what rows become."""

from __future__ import annotations

import json

import pytest

from scripts import edge_of_reach, lipschitz_table, vagram_table
from scripts.training_runs import finish


def runs():
    yield from vagram_table.planned()
    yield from lipschitz_table.planned()
    yield from lipschitz_table.sweep()


def test_every_planned_run_is_one_that_train_knows():
    from genpol.commands.train.options import Train, check

    found = list(runs())
    assert len(found) == 3 * 3 * 3 * 3 + 3 * 2 * 5 + 5 * (5 + 5 + 3) + 2 * (2 + 5 + 6)
    for _, options in found:
        check(Train(**options))
    for options in edge_of_reach.ARMS.values():
        check(Train(**edge_of_reach.COMMON | options | {"data": "random.hdf5"}))


def test_a_cell_is_the_second_half_of_its_runs():
    rows = [
        {
            "env": "Hopper-v5",
            "model": "2x32",
            "distractors": "0",
            "loss": loss,
            "seed": str(seed),
            "step": str(step),
            "eval/return": str(value),
            "vagram/dimensions": "4",
            "model/holdout_mse": ".25",
        }
        for loss, best in (("vagram", 300.0), ("mse", 100.0))
        for seed in range(2)
        for step, value in ((0, 1e6), (1000, best), (2000, best + 2 * seed))
    ]
    lines = vagram_table.report(rows).splitlines()
    assert "| Hopper-v5 | 2x32 | 0 | 301 (300 to 302) | 101 (100 to 102) |  | 2 |" in lines
    assert "- Hopper-v5, small models, no distractors: squared error +200 (+200 to +200)." in lines
    assert lines[-1] == "- Hopper-v5, 0 distractors: 4.0 of 11; VaGraM 0.25, squared error 0.25."


def test_a_bound_is_told_beside_what_it_costs():
    rows = [
        {
            "env": "Hopper-v5",
            "arm": arm,
            "seed": "0",
            "step": str(step),
            "eval/return": str(step),
            "time/cpu_seconds": str(1 + cost * step / 1000),
            "model/value_error_relative": ".5",
        }
        | dict(zip(lipschitz_table.SIGMAS, ("1", "4", "2"), strict=True))
        for arm, cost in (("single+spectral", 20), ("ensemble of 7", 50))
        for step in (0, 1000, 2000)
    ]
    found = lipschitz_table.report(rows, "setting").splitlines()
    row = "| Hopper-v5 | single+spectral | 2,000 (2,000 to 2,000) | 20 | 1, 4, 2 | 0.5 | 1 |"
    assert row in found
    assert found[-1].endswith("with the spectral bound: Hopper-v5 2.50.")


@pytest.mark.parametrize("collapse", [1e9, 50.0, -300.0])
def test_the_most_extreme_value_of_a_run_is_told(collapse):
    rows = [
        {"arm": "two heads", "seed": "0", "step": str(step), "critic/q_data": str(value),
         "eval/return": "10"}
        for step, value in ((0, "nan"), (2000, collapse), (4000, 20.0))
    ]  # fmt: skip
    assert f"| two heads | {collapse:,.0f} | 10 | 10 |" in edge_of_reach.report(rows)


def test_a_run_of_other_options_is_not_taken_for_the_planned_one(tmp_path):
    """Neither if it says so, nor if it comes from before the option."""
    stored = {"utd": 1.0, "hidden": [8, 8]}
    (tmp_path / "config.json").write_text(json.dumps(stored))
    (tmp_path / "summary.json").write_text("{}")
    same = {"utd": 1.0, "hidden": (8, 8), "layer_norm": True}
    finish(tmp_path, same)
    for other in ({"utd": 2.0}, {"layer_norm": False}):
        with pytest.raises(SystemExit, match=f"begun with {next(iter(other))}"):
            finish(tmp_path, same | other)
