"""Offline tuning: heads that agree ask for a low temperature, heads that err for a high one."""

from __future__ import annotations

import pytest
import torch
from fake_steering import SPEC, Constant, Quadratic, Uniform

from genpol.steering.select import argmax
from genpol.steering.steered import Steered
from genpol.steering.tuning import tune
from offline.errors import InputError, SpecError
from offline.spec import ActionSpec


class Noisy(Quadratic):
    """Heads whose errors are independent, of standard deviation `noise`; worth `signal`."""

    def __init__(self, noise: float, signal: float = 1.0, heads: int = 2) -> None:
        super().__init__(best=(0.0,) * heads)
        self.noise, self.signal = noise, signal
        self.generator = torch.Generator().manual_seed(7)

    def score(self, features, act):
        q = self.signal * super().score(features, act)
        return q + self.noise * torch.randn(q.shape, generator=self.generator)


OBS = {"state": torch.zeros(200, 2)}


def test_heads_that_agree_are_trusted():
    tuning = tune(Uniform(), Noisy(0.0), OBS, num_candidates=16)
    best = min(row.temperature for row in tuning.table)
    assert tuning.temperature <= 0.3 * max(row.temperature for row in tuning.table)
    assert tuning.gate is None  # nothing to be gained from it
    sharp = next(row for row in tuning.table if row.temperature == best and row.gate is None)
    # E[-a²] over [-1, 1] is -1/3; the best of 16 is about 0 away
    assert sharp.advantage == pytest.approx(1 / 3, abs=0.03)
    assert sharp.own_advantage == pytest.approx(sharp.advantage)


def test_a_critic_of_noise_alone_gains_nothing_and_the_note_says_so():
    tuning = tune(Uniform(), Noisy(1.0, signal=0.0), OBS, num_candidates=16)
    sharp = next(row for row in tuning.table if row.temperature == 0 and row.gate is None)
    assert abs(sharp.advantage) < 0.15  # the head left out knows nothing of it
    assert sharp.own_advantage == pytest.approx(1.77, abs=0.15)  # E max of 16 normals
    assert tuning.temperature == max(row.temperature for row in tuning.table)
    assert "not steering" in tuning.note


def test_doubtful_states_are_gated_and_clear_ones_are_not():
    class Partly(Noisy):
        def score(self, features, act):
            clean, noisy = Quadratic.score(self, features, act), super().score(features, act)
            return torch.where(features[None, :, :1] > 0, noisy, clean)

    obs = {"state": (torch.arange(400) % 4 == 0).float()[:, None].expand(-1, 2)}
    tuning = tune(Uniform(), Partly(3.0), obs, num_candidates=16)
    assert tuning.gate is not None
    steered = Steered(Uniform(), Partly(3.0), 16, argmax(), gate=tuning.gate)
    fell = steered.decide(obs, torch.Generator().manual_seed(0)).fell_back
    doubtful = obs["state"][:, 0] > 0
    assert fell[doubtful].float().mean() > 0.5 and fell[~doubtful].float().mean() < 0.1


def test_the_table_holds_every_setting_and_the_choice_is_in_it():
    tuning = tune(Uniform(), Noisy(0.1), OBS, num_candidates=8, temperatures=[0.0, 0.5, 2.0])
    assert {row.temperature for row in tuning.table} == {0.0, 0.5, 2.0}
    assert (tuning.temperature, tuning.gate) in {(r.temperature, r.gate) for r in tuning.table}
    assert min(row.behind for row in tuning.table) == 0.0
    free = [row for row in tuning.table if row.gate is None]
    assert all(row.fell_back == pytest.approx(0, abs=1e-9) for row in free)


def test_values_in_other_units_give_the_temperature_in_those_units():
    one = tune(Uniform(), Noisy(0.05), OBS, num_candidates=8)

    class Scaled(Noisy):
        def score(self, features, act):
            return 100 * super().score(features, act)

    hundred = tune(Uniform(), Scaled(0.05), OBS, num_candidates=8)
    assert hundred.temperature == pytest.approx(100 * one.temperature, rel=0.05)


def test_outliers_are_penalised():
    # the value rises towards the edge, where few proposals lie
    class Bell(Uniform):
        def sample(self, obs, n, generator):
            return 0.2 * torch.randn(len(obs["state"]), n, 1, 1, generator=generator)

    class Rising(Quadratic):
        def score(self, features, act):
            return act.sum((-1, -2)).expand(2, -1, -1)

    free = tune(Bell(), Rising(), OBS, num_candidates=16, distance_weight=0.0)
    bound = tune(Bell(), Rising(), OBS, num_candidates=16, distance_weight=1.0)
    assert bound.temperature > free.temperature == 0.0


def test_the_same_seed_gives_the_same_table():
    first, second = (tune(Uniform(), Noisy(0.2), OBS, num_candidates=8) for _ in range(2))
    assert first == second


def test_one_head_is_reported_and_identical_proposals_survived():
    assert "one head" in tune(Uniform(), Noisy(0.0, heads=1), OBS, num_candidates=4).note
    tune(Constant(), Quadratic(), OBS, num_candidates=4)


def test_what_cannot_be_tuned_is_refused():
    with pytest.raises(InputError, match="no held-out"):
        tune(Uniform(), Quadratic(), {"state": torch.zeros(0, 2)})
    with pytest.raises(InputError, match="at least 2"):
        tune(Uniform(), Quadratic(), OBS, num_candidates=1)
    with pytest.raises(SpecError, match="dimension 0"):
        tune(Uniform(SPEC), Quadratic(ActionSpec.from_bounds([0.0], [9.0])), OBS)
