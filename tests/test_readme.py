"""The README's figures are those of the committed tables."""

from __future__ import annotations

import csv
import importlib.util
import json
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


def test_the_steering_table_is_that_of_the_committed_rows(monkeypatch):
    monkeypatch.chdir(ROOT)
    spec = importlib.util.spec_from_file_location("steer_table", ROOT / "scripts/steer_table.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    block = script.report(script.Table(script.RESULTS, script.COLUMNS).rows())
    assert block in (ROOT / "README.md").read_text()
    assert "- Cal-QL, T .3: +" in block and "@random" in block


def test_the_cost_of_a_decision_is_that_of_the_committed_measurement():
    with open(ROOT / "docs/results/steering_latency.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["candidates"] == "32"]
    ratios = {kind: [float(r["ratio_p50"]) for r in rows if (r["policy"] == "gaussian") == kind]
              for kind in (False, True)}  # fmt: skip
    more = [float(r["steered_p50_ms"]) - float(r["base_p50_ms"]) for r in rows]
    assert all(1.5 <= ratio <= 1.9 for ratio in ratios[False]) and max(more) < 1
    assert all(2.5 <= ratio <= 3 for ratio in ratios[True])
    readme = (ROOT / "README.md").read_text()
    assert "1.5 to 1.9 times as long" in readme and "2.5 to 3 times" in readme


def test_the_speeds_are_those_of_the_committed_bench():
    bench = json.loads((ROOT / "docs/results/bench_finetune.json").read_text())
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert f"{bench['bench/model_share']:.0%}".replace("%", " %") + " of the time" in readme
    assert f"at {bench['bench/ratio']:.2f} times the images per second" in readme


def test_the_cost_of_training_is_that_of_the_committed_bench():
    readme = (ROOT / "README.md").read_text()
    for preset in ("faithful", "fast"):
        found = json.loads((ROOT / f"docs/results/bench_expo_{preset}.json").read_text())
        update, step = found["bench/critic_update_cpu_s"], found["bench/env_step_cpu_s"]
        assert f"| {update:.2g} | {step:.2f} | {found['bench/first_update_s']:.1f} s |" in readme
        assert found["bench/agreement_bf16"] > 0.997
        assert abs(found["bench/agreement_two_step"] - 0.83) < 0.01


def test_the_learning_table_is_that_of_the_committed_rows():
    from scripts import expo_table

    rows = expo_table.Table(expo_table.RESULTS, expo_table.COLUMNS).rows()
    block = expo_table.report(rows)
    assert block in (ROOT / "README.md").read_text()
    assert "| pick-place-v3 | expo |" in block


def test_the_tables_of_world_models_are_those_of_the_committed_rows():
    from scripts import edge_of_reach, lipschitz_table, vagram_table

    readme, page = ((ROOT / name).read_text() for name in ("README.md", "docs/WORLD_MODELS.md"))
    for script in (vagram_table, edge_of_reach):
        block = script.report(script.Table(script.RESULTS, script.COLUMNS).rows())
        assert block in readme
        assert "| Hopper-v5 | 2x32 | 0 |" in block or "| two heads, LayerNorm |" in block
    for name, what, text in (
        ("lipschitz", "critic and models", readme),
        ("lipschitz_sweep", "setting", page),
    ):
        path = lipschitz_table.FOLDER / f"{name}.csv"
        block = lipschitz_table.report(
            lipschitz_table.Table(path, lipschitz_table.COLUMNS).rows(), what
        )
        assert block in text
        assert "| InvertedPendulum-v5 | single" in block
        if name == "lipschitz":  # which the page quotes
            quoted = {"ensemble of 7": "142", "single": "106"}
            for arm, mean in quoted.items():
                assert f"| InvertedPendulum-v5 | {arm} | {mean} (" in block
            assert "(142 against 106)" in page


def test_the_speed_with_a_world_model_is_that_of_the_committed_bench():
    found = json.loads((ROOT / "docs/results/bench_world_model.json").read_text())
    readme = " ".join((ROOT / "README.md").read_text().split())
    ours, peer = (found[f"bench/{side}env_steps_per_cpu_s"] for side in ("", "peer_"))
    assert f"{ours:.2f} environment steps per CPU-second beside {peer:.2f} of mbrl-lib" in readme
    assert f"{found['bench/ratio_env_step']:.2f} times as many" in readme
    assert found["bench/sac_updates"] == found["bench/peer_sac_updates"]
