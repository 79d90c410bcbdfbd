"""The script that measures edits of initial noise: its arms, its bounds and its table."""

from __future__ import annotations

import numpy as np
import torch

from diffusion.recommended import recommended
from scripts import noise_edit_tables as tables
from scripts.results_table import Table


def test_edits_stay_within_beta_and_keep_the_norm():
    torch.manual_seed(0)
    x, text = torch.randn(5, 4, 8, 8), torch.randn(5, 6)
    edit = tables.Mover((4, 8, 8), 6, sees=True)
    moved = tables.edited(edit, x, text, 0.3)
    assert torch.allclose(moved.flatten(1).norm(dim=1), x.flatten(1).norm(dim=1), rtol=1e-5)
    raw = (x + 0.3 * edit(x, text)).detach()
    assert float((raw - x).abs().max()) <= 0.3 and not torch.allclose(moved, x)
    actor = tables.Mover((4, 8, 8), 6, sees=False)
    one, other = (tables.edited(actor, torch.randn_like(x), text, 0) for _ in range(2))
    direction = torch.nn.functional.cosine_similarity(one.flatten(1), other.flatten(1))
    assert torch.allclose(direction, torch.ones(5), atol=1e-5)  # whatever the noise


def test_the_reward_and_the_value_choose_within_groups():
    gold = np.array([[0.1, 0.2, 0.3, 0.4, 0.9], [0.0, 0.0, 0.0, 0.0, 0.0]])
    reward = np.array([[0.5, 0.1, 0.2, 0.8, 1.0], [0.1, 0.2, 0.3, 0.4, 0.5]])
    judged, kept = tables.best_of(gold, reward, 2)  # the fifth image fills no group
    assert judged.tolist() == [[0.1, 0.4], [0, 0]] and kept.tolist() == [[0.5, 0.8], [0.2, 0.4]]
    found = tables.row("one", 10.0, (judged, kept), gold)
    assert found["images"] == 4 and found["evaluations"] == 10
    assert np.isclose(found["gold"], 0.125) and np.isclose(found["reward"], 0.475)
    assert np.isclose(found["over_one"], 0.125 - 0.19)  # 0.19: the mean of all of gold
    assert np.isclose(found["gold_error"], 0.125)  # 0.25 and 0: a deviation of .177 over sqrt 2


def test_a_tiny_study_has_all_arms_and_a_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tables, "BETAS", (0.3,))
    few = recommended("tiny", "prdp") | {"num_inference_steps": 2}
    monkeypatch.setattr(tables, "recommended", lambda *names: few)
    study = tables.Study("tiny", 1000, tables.Sizes(2, 2, 2, 4, 2, 1, 1))
    rows = [{"model": "tiny", "seed": 1000} | row for row in study.rows()]
    spent = {row["arm"]: row["evaluations"] for row in rows}
    assert spent == {
        "one": 2, "noises": 2, "edit 0.3": 2, "actor": 2,
        "best of 2": 4, "noises of 2": 4, "or edit 0.3": 4, "two edit 0.3": 4,
    }  # fmt: skip
    by_arm = {row["arm"]: row for row in rows}
    assert by_arm["best of 2"]["reward"] >= by_arm["one"]["reward"]
    assert -1 <= by_arm["one"]["rank"] <= 1 and by_arm["one"]["chains"] == 4

    page, path = tmp_path / "page.md", tmp_path / "rows.csv"
    page.write_text("<!-- noise-edits -->\n<!-- /noise-edits -->\n")
    monkeypatch.setattr(tables, "RESULTS", path)
    monkeypatch.setattr(
        tables, "write_block", lambda marker, text: page.write_text(f"{marker}\n{text}")
    )
    monkeypatch.setattr("sys.argv", ["noise_edit_tables", "--report"])
    tables.main()
    assert (
        "rows are missing: tiny-flow with seed 1000, tiny with seed 1000" in capsys.readouterr().out
    )
    Table(path, tables.COLUMNS).add(*rows)
    tables.main()
    assert "missing: tiny-flow with seed 1000;" in capsys.readouterr().out
    assert "| the better of a sample and its edit, beta 0.3 | 4 |" in page.read_text()
    gold = 100 * by_arm["one"]["gold"]
    assert f"| one sample | 2 | {gold:.1f} ± " in page.read_text()
