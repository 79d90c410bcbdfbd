"""The learning table: when a level counts as reached, and what a row becomes in the report."""

from __future__ import annotations

import math

from scripts import expo_table as script


def test_a_level_has_to_be_held_at_the_next_evaluation():
    def curve(*successes):
        return [(1000 * i, success) for i, success in enumerate(successes)]

    assert script.steps_to_level(curve(0.2, 0.85, 0.6, 0.8, 0.9), 0.8) == 3000
    assert script.steps_to_level(curve(0.9, 0.9), 0.8) == 0
    assert math.isinf(script.steps_to_level(curve(0.2, 0.7, 0.9), 0.8))  # once is not enough


def test_rows_become_medians_of_the_middle_and_censored_runs_are_told():
    rows = [
        {
            "task": "push-v3",
            "arm": arm,
            "seed": str(seed),
            "step": str(step),
            "success": str(success),
            "cpu_seconds": str(60 * step / 1000),
        }
        for arm, seeds in {
            "expo": [(0.2, 0.9, 0.9, 0.9), (0.2, 0.3, 0.9, 0.9)],
            "bestofn": [(0.2, 0.3, 0.5, 0.5), (0.2, 0.3, 0.9, 0.9)],
        }.items()
        for seed, curve in enumerate(seeds)
        for step, success in zip((0, 1000, 2000, 3000), curve, strict=True)
    ]
    report = script.report(rows)
    lines = {line.split(" | ")[1]: line for line in report.splitlines() if " | " in line}
    # 2,500 against 1,500
    assert "- push-v3: bestofn at least 1.7 to 60%, bestofn at least 1.7 to 80%." in report
    assert "| 2 | 20 | 1,500 (" in lines["expo"] and "2/2 |" in lines["expo"]
    assert "| 2 | 20 | 2,500 (" in lines["bestofn"] and "1/2 |" in lines["bestofn"]
    assert lines["expo"].endswith("| 3 |")
    # means over all four evaluations: .725 and .575, .375 and .575
    assert report.endswith("- push-v3: bestofn -18 (-35 to +0).")


def test_every_arm_is_one_that_train_knows():
    from dataclasses import fields

    from genpol.commands.clone import Clone
    from genpol.commands.collect.options import Collect
    from genpol.commands.train.options import Train

    known = {f.name for f in fields(Train)}
    for arm, options in script.ARMS.items():
        given = script.COMMON | options | script.TUNED.get(arm, {})
        assert set(given) - {"base"} <= known
        Train(**{k: v for k, v in given.items() if k != "base"}).check()
    assert set(script.CLONE) <= {f.name for f in fields(Clone)}
    assert set(script.COLLECT) <= {f.name for f in fields(Collect)}
    plan = list(script.planned(None))
    assert len(plan) == len(set(plan)) == 5 * 3 * 3 + 3 * (len(script.ARMS) - 3) + 2
