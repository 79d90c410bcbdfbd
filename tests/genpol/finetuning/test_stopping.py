"""When a watched reward counts as fallen."""

from __future__ import annotations

import pytest
import torch

from diffusion.errors import InputError
from genpol.finetuning.stopping import Watch, watched

NAMES = ["reward", "gold", "gold_wholly"]


def rewards(*values: float) -> dict[str, torch.Tensor]:
    return {"gold": torch.tensor(values)}


def at(epoch: int) -> dict[str, torch.Tensor]:
    return {"w": torch.tensor([float(epoch)])}


def test_only_a_fall_of_more_than_its_standard_error_counts_and_only_in_a_row():
    watch = Watch("gold", patience=2)
    watch.see(0, rewards(1.0, 0.0, 1.0, 0.0), at(0))
    found = watch.see(1, rewards(0.9, 0.0, 0.9, -0.1), at(1))
    # Falls of .1, 0, .1, .1: mean .075, standard error .025.
    assert found["stop/fall"] == pytest.approx(0.075, abs=1e-6)
    assert found["stop/fall_error"] == pytest.approx(0.025, abs=1e-6)
    assert found["stop/falls"] == 1 and not watch.stopped
    found = watch.see(2, rewards(0.0, 1.0, 0.9, 0.0), at(2))  # falls 1, -1, .1, 0: not sure
    assert found["stop/falls"] == 0
    watch.see(3, rewards(0.9, -0.1, 0.9, -0.1), at(3))
    watch.see(4, rewards(0.9, -0.1, 0.9, -0.2), at(4))
    assert watch.stopped and watch.epoch == 0 and watch.weights["w"] == 0
    assert "below its best, 0.5000 at epoch 0" in watch.reason()


def test_a_new_best_takes_its_weights_and_evaluations_of_more_prompts_compare_by_the_common_ones():
    watch = Watch("gold", patience=1)
    watch.see(0, rewards(0.5, 0.5, 0.0, 0.0), at(0))
    weights = at(5)
    found = watch.see(5, rewards(0.6, 0.6), weights)
    assert found["stop/best"] == pytest.approx(0.6) and watch.epoch == 5
    weights["w"].zero_()
    assert watch.weights["w"] == 5  # a copy
    found = watch.see(9, rewards(0.5, 0.6, 9.0, 9.0), at(9))
    assert found["stop/fall"] == pytest.approx(0.05, abs=1e-6)


def test_its_state_comes_back():
    import json

    one, two = Watch("gold", 2), Watch("gold", 2)
    one.see(0, rewards(0.3, 0.1), at(0))
    one.see(1, rewards(0.2, 0.1), at(1))
    tensors, values = one.state()
    two.load_state(tensors | {"weights.w": at(7)["w"]}, json.loads(json.dumps(values)))
    assert two.state()[1] == values and torch.equal(two.weights["w"], one.weights["w"])
    later = [w.see(2, rewards(0.1, 0.1), at(2)) for w in (one, two)]
    assert later[0] == later[1]
    with pytest.raises(ValueError):
        two.load_state(tensors, None)


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ("gold", 'expected a reward\'s name and "falls"'),
        ("gold rises", "expected"),
        ("glod falls", 'Did you mean "gold"|"glod" is not evaluated'),
        ("x" * 500 + " falls", "is not evaluated"),
    ],
)
def test_other_sentences_are_refused(condition, said):
    with pytest.raises(InputError, match=said) as error:
        watched(condition, NAMES)
    assert len(str(error.value)) < 300


def test_the_training_reward_has_two_names():
    assert watched("heldout falls", NAMES) == watched(" reward  falls ", NAMES) == "reward"


def test_nothing_that_is_evaluated_is_one_line():
    with pytest.raises(InputError, match="none is evaluated: pass --reward or --gold-reward"):
        watched("heldout falls", [])
