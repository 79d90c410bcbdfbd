"""What is said of a critic, on values that are known."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from test_expo import SMALL, bandit, flow, value
from torch import Generator

from genpol.agents.diagnostics import agreement, candidates, diagnose, misrank, q_bias
from genpol.agents.expo import EXPO
from offline.data.mixture import Mixture, Share


class Known:
    """Heads Q_e = shift_e - |a - best_e|."""

    def __init__(self, best=(0.5, 0.5, 0.5, 0.5), shift=(0.0,) * 4):
        self.best, self.shift, self.heads = best, shift, self

    def encoder(self, obs):
        return obs["state"]

    def project(self, encoded):
        return encoded

    def encode(self, obs):
        return obs["state"]

    def score(self, features, act):
        distance = [(act - best).abs().sum((2, 3)) for best in self.best]
        return torch.stack([s - d for s, d in zip(self.shift, distance, strict=True)])

    def __call__(self, obs, act):
        return self.score(obs["state"], act)


def test_bias_is_value_less_return():
    batch = bandit(500, Generator().manual_seed(0))  # returns are -|a - .5|
    found = q_bias(Known(shift=(1.0, 3.0, 1.0, 3.0)), batch)
    assert found["diagnose/q_bias"] == pytest.approx(2.0, abs=1e-5)
    assert found["diagnose/q_bias_std"] == pytest.approx(0.0, abs=1e-5)


def test_misranks_by_hand():
    agreeing = torch.tensor([[[0.0, 1.0]]] * 4)
    assert misrank(agreeing, 2, Generator()) == 0
    assert misrank(agreeing, 4, Generator()) == 0
    # Each head prefers a candidate of its own, so a single one never chooses what others would.
    own = torch.eye(3)[:, None].expand(3, 5, 3) + torch.tensor([0.0, 1e-3, 2e-3])
    assert misrank(own, 1, Generator()) == 1


def test_edits_win_where_they_are_better():
    obs = {"state": torch.zeros(6, 2)}
    base = torch.tensor([0.1, 0.3]).view(1, 2, 1, 1).expand(6, -1, -1, -1)
    found = candidates(
        Known(), obs, lambda o: base, lambda f, a: a + 0.15, few=2, generator=Generator()
    )
    assert found["diagnose/edit_win_rate"] == 1 and found["diagnose/misrank"] == 0
    assert found["diagnose/edit_gain"] == pytest.approx(0.15, abs=1e-6)
    worse = candidates(
        Known(), obs, lambda o: base, lambda f, a: a - 0.1, few=2, generator=Generator()
    )
    assert worse["diagnose/edit_win_rate"] == 0


def test_agreement_and_what_disagreeing_costs():
    obs = {"state": torch.zeros(2, 2)}
    full = torch.tensor([[0.5, 0.2], [0.5, 0.2]]).view(2, 2, 1, 1)
    cheap = torch.tensor([[0.4, 0.1], [0.1, 0.3]]).view(2, 2, 1, 1)
    found = agreement(Known(), obs, full, cheap)
    assert found["diagnose/agreement"] == 0.5
    assert found["diagnose/regret"] == pytest.approx(0.15, abs=1e-6)  # (0 + .3) / 2


class Bandits:
    def __len__(self):
        return 10

    def sample(self, size, generator):
        return bandit(size, generator)

    def recent(self, count):
        return bandit(count, Generator().manual_seed(0))


@pytest.mark.parametrize("cheaper", ["chain", "two-step", "student"])
def test_a_diagnosis_leaves_training_as_it_was(cheaper):
    agent = EXPO(flow(), value(), dataclasses.replace(SMALL, candidates=cheaper))
    mixture = Mixture([Share("all", Bandits(), 1.0)])
    before, heads = torch.get_rng_state(), agent.state_dict()["heads"]
    found = diagnose(agent, Bandits(), mixture, step=5)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(heads, agent.state_dict()["heads"])
    assert found == diagnose(agent, Bandits(), mixture, step=5)
    assert ("diagnose/agreement" in found) is (cheaper != "chain")
    assert 0 <= found["diagnose/misrank"] <= 1 and "diagnose/q_bias" in found
    assert diagnose(object(), Bandits(), mixture, step=5) == {}
