"""Best of K, guidance and win rates: by hand, nested in K, and gone on with after a stop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import small_config

from diffusion.errors import InputError
from diffusion.finetune import Stopped
from genpol.finetuning.beside import Beside, numbers
from genpol.finetuning.control_options import parse_scales
from genpol.finetuning.controls import BestOf, at_guidance, best_of_k, best_of_k_kl, equal_k
from genpol.finetuning.samples import save_evaluation
from genpol.finetuning.win_rate import win_rate
from offline.errors import InputError as UnpairedError


@pytest.fixture
def tuner(models, prompts):
    from genpol.commands.finetune.command import build

    options = {"model": models["sd"], "reward": "tiny_rewards:brightness", "guidance_scale": 1.0}
    made = build(small_config(prompts=prompts, gold_reward="jpeg_compressibility", **options))[0]
    with torch.no_grad():  # as after training: controls must not see it
        for parameter in made.trained.parameters.values():
            parameter.add_(0.1)
    return made


def test_win_rate_by_hand():
    found = win_rate([1, 2, 3, 4], [0, 2, 5, 3])
    assert (found.share, found.ties, found.pairs) == (2.5 / 4, 0.25, 4)
    assert 0 < found.low < 2.5 / 4 < found.high < 1
    sure = win_rate(np.ones(20), np.zeros(20))
    assert sure.share == sure.high == 1 and 0.8 < sure.low < 0.9
    back = win_rate([0, 2, 5, 3], [1, 2, 3, 4])
    assert back.share == pytest.approx(1 - found.share) and back.low == pytest.approx(
        1 - found.high
    )


@pytest.mark.parametrize("other", [[1.0], [], [1.0, float("nan")], [[1.0, 2.0]]])
def test_win_rate_refuses_what_is_not_paired(other):
    with pytest.raises(UnpairedError, match="a win rate needs"):
        win_rate([1.0, 2.0] if other else [], other)


def test_the_best_of_the_first_candidates_by_hand():
    reward = np.array([[1.0, 5.0], [3.0, 5.0], [2.0, 9.0]])
    gold = np.array([[0.1, 0.2], [0.3, np.nan], [np.nan, 0.4]])
    found = BestOf(["a", "b"], {"reward": reward, "gold": gold}, torch.zeros(2, 3, 4, 4))
    assert found.chosen(1)["reward"].tolist() == [1, 5]
    assert found.chosen(2)["gold"].tolist() == [0.3, 0.2]  # of equal ones the first
    assert found.chosen(3)["gold"].tolist() == [0.3, 0.4]
    for k in (0, 4):
        with pytest.raises(InputError, match="best of 1 to 3"):
            found.chosen(k)
    assert (equal_k(640, 64), equal_k(641, 64), equal_k(3, 64)) == (10, 11, 1)
    assert best_of_k_kl(1) == 0 and best_of_k_kl(4) == pytest.approx(np.log(4) - 0.75)


def test_candidates_are_the_untrained_pipelines_and_nested(tuner):
    weights = {n: p.detach().clone() for n, p in tuner.trained.parameters.items()}
    three = best_of_k(tuner, 3, 2)
    assert three.count == 3 and three.scores["reward"].shape == (3, 2)
    best = three.chosen(3)
    assert (best["reward"] >= three.chosen(1)["reward"]).all()
    assert np.isfinite(best["jpeg_compressibility"]).all()
    shown = tuner.reward(three.images, three.prompts)
    assert np.allclose(shown.numpy(), best["reward"], atol=1e-6)
    two = best_of_k(tuner, 3, 2, start=best_of_k(tuner, 2, 2))  # gone on with is the same
    assert np.array_equal(two.scores["reward"], three.scores["reward"])
    assert all(torch.equal(p, weights[n]) for n, p in tuner.trained.parameters.items())
    after = tuner.evaluate(2).rewards["reward"].numpy()
    with torch.no_grad():
        for parameter in tuner.trained.parameters.values():
            parameter.sub_(0.1)
    before = tuner.evaluate(2).rewards["reward"].numpy()
    assert np.allclose(before, three.chosen(1)["reward"], atol=1e-5)
    assert np.abs(after - before).max() > 1e-4


def test_guidance_is_put_back_and_changes_the_images(tuner):
    plain = at_guidance(tuner, 1.0, 2)
    guided = at_guidance(tuner, 5.0, 2)
    assert tuner.policy.guidance_scale == 1.0
    assert float((plain.images - guided.images).abs().max()) > 1e-3


def test_a_stop_keeps_candidates_and_the_rest_is_the_same(tuner, tmp_path):
    whole = Beside(tuner, tmp_path / "whole", 2, 3, "m", (3.0,)).draw(0)
    beside, calls = Beside(tuner, tmp_path / "cut", 2, 3, "m", (3.0,)), iter([False, True])
    with pytest.raises(Stopped):
        beside.draw(0, lambda: next(calls))
    kept = beside.start()
    assert kept is not None and kept.count == 1
    again = beside.draw(0)
    assert list(again) == list(whole) == ["best_of_3", "guidance_3"]
    for name, scores in whole.items():
        for reward, values in scores.items():
            assert np.array_equal(values, again[name][reward])
    drawn, beside.tuner.draw = beside.tuner.draw, None  # nothing is drawn twice
    beside.most = 2
    assert list(beside.draw(0)) == ["best_of_2", "guidance_3"]
    beside.tuner.draw = drawn
    entries = numbers(None, whole["guidance_3"], whole)
    assert entries["eval/best_of_k/k"] == 3 and entries["eval/best_of_k/reward_calls"] == 6
    assert entries["eval/win_rate_guidance_3/reward"] == 0.5


def test_damaged_candidates_are_drawn_again_and_it_is_said(tuner, tmp_path, capsys):
    beside = Beside(tuner, tmp_path, 2, 1, "m", ())
    save_evaluation(tmp_path, "before", tuner.evaluate(2))
    beside._kept.write_bytes(b"no safetensors")
    found = beside.start()
    assert found is not None and found.count == 1  # from the evaluation before
    assert "cannot be read" in capsys.readouterr().out


def test_what_is_drawn_unasked(tuner, tmp_path):
    beside = Beside(tuner, tmp_path, 2, None, "some/model", (1.0, 3.0, 7.5))
    assert beside.scales == (3.0, 7.5)  # 1 is the run's own
    assert [beside.candidates(calls) for calls in (0, 2, 6, 1000)] == [4, 1, 3, 4]
    beside.model = "tiny"
    assert beside.candidates(1000) == 16
    assert "--best-of-k 0" in beside.announcement(6, 0.5)
    nothing = Beside(tuner, Path(tmp_path), 2, 0, "m", ())
    assert nothing.announcement(6, 0.5) == "" and nothing.draw(6) == {}


def test_scales_as_they_are_typed():
    assert parse_scales("1, 3,7.5,3", None) == (1.0, 3.0, 7.5)
    assert parse_scales("None", None) == () and parse_scales(None, "tiny") == (3.0, 5.0)
    for bad in ("", "3;5", "-1", "nan", "inf"):
        with pytest.raises(InputError, match="--guidance-control: expected scales"):
            parse_scales(bad, None)
