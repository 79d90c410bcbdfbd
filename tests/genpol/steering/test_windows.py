"""Long chunks by the sum of their windows, with numbers computed by hand."""

from __future__ import annotations

import pytest
import torch
from fake_steering import SPEC, Quadratic, Uniform, seeded, states

from genpol.steering.compose import Composed
from genpol.steering.select import argmax
from genpol.steering.steered import Steered
from genpol.steering.windows import Windows, windowed
from offline.critics.value import ValueFunction
from offline.errors import SpecError


class Weighted:
    """Heads (first action + 10 second, twice that), of chunks of two; counts what it is asked."""

    def __init__(self, discount=None):
        self.spec = SPEC.with_chunk(2)
        self.asked = []
        if discount is not None:
            self.meta = {"discount": discount}

    def encode(self, obs):
        return obs["state"]

    def score(self, features, act):
        self.asked.append(tuple(act.shape))
        q = act[..., 0, 0] + 10 * act[..., 1, 0]
        return torch.stack([q, 2 * q])

    def __call__(self, obs, act):
        return self.score(self.encode(obs), act)


def test_whole_windows_by_hand():
    act = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 1, 4, 1)
    critic = Weighted()
    whole = Windows(critic, 4)
    assert whole.starts == [0, 2] and whole.weights == [1.0, 1.0]
    q = whole(states(), act)
    # 1 + 20 = 21 and 3 + 40 = 43, summed; the other head says twice as much
    assert q.flatten().tolist() == [64.0, 128.0]
    assert critic.asked == [(1, 2, 2, 1)]  # one call, one encoding, for all windows


def test_the_last_window_counts_for_what_it_adds_and_the_discount_is_the_critics():
    act = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]).view(1, 1, 5, 1)
    whole = Windows(Weighted(discount=0.5), 5)
    # windows 1 2, 3 4 and 4 5, the last of which adds one action of two
    assert whole.starts == [0, 2, 3]
    assert whole.weights == [1.0, 0.5**2, 0.5 * 0.5**3]
    assert whole(states(), act)[0].item() == 21 + 0.25 * 43 + 0.0625 * 54
    assert Windows(Weighted(), 5, discount=0.0).weights == [1.0, 0.0, 0.0]


def test_fifty_actions_by_a_critic_of_eight():
    value = ValueFunction(SPEC.with_chunk(8), {"state": (2,)}, hidden=(8,), ensemble=3).eval()
    whole = Windows(value, 50)
    assert whole.starts == [0, 8, 16, 24, 32, 40, 42]
    assert whole.weights == [1.0] * 6 + [2 / 8]
    assert sum(whole.weights) * 8 == 50
    act = torch.rand(3, 4, 50, 1, generator=seeded()) * 2 - 1
    obs = {"state": torch.rand(3, 2, generator=seeded(1))}
    with torch.no_grad():
        parts = [value(obs, act[:, :, start : start + 8]) for start in whole.starts]
        expected = sum(w * part for w, part in zip(whole.weights, parts, strict=True))
        torch.testing.assert_close(whole(obs, act), expected)
    assert whole.obs_shapes == {"state": (2,)}


def test_all_of_the_chunk_is_executed_and_it_is_the_best_by_the_sum():
    critic = Quadratic(SPEC.with_chunk(2), best=(0.3,))
    base = Uniform(chunk=5)
    steered = Steered(base, windowed(critic, 5), 16, argmax())
    decision = steered.decide(states(3), seeded())
    assert steered.spec.chunk == 5 and decision.action.shape == (3, 5, 1)
    error = (decision.candidates - 0.3).square()[..., 0]
    weight = torch.tensor([1.0, 1.0, 1.0, 1.5, 0.5])
    assert torch.allclose(decision.scores, -(error * weight).sum(-1), atol=1e-5)
    assert torch.equal(decision.chosen, decision.scores.argmax(-1))
    # By the first window alone another one would have been taken in one of these states.
    first = -(error[..., :2]).sum(-1)
    assert not torch.equal(first.argmax(-1), decision.chosen)


def test_a_chunk_of_the_critics_own_length_is_left_to_it():
    critic = Quadratic(SPEC.with_chunk(2))
    assert windowed(critic, 2) is critic
    act = torch.rand(1, 3, 2, 1, generator=seeded())
    assert torch.equal(Windows(critic, 2)(states(), act), critic(states(), act))


def test_composed_values_are_standardised_after_their_windows_are_summed():
    act = torch.rand(2, 6, 4, 1, generator=seeded())
    one, other = Weighted(discount=0.5), Quadratic(SPEC.with_chunk(2), best=(0.1, 0.2, 0.3))
    composed = windowed(Composed([one, other], [1.0, -0.5]), 4)
    assert isinstance(composed, Composed) and composed.spec.chunk == 4
    by_hand = Composed([Windows(one, 4), Windows(other, 4)], [1.0, -0.5])
    torch.testing.assert_close(composed(states(2), act), by_hand(states(2), act))
    pooled = Windows(Composed([one, other], [1.0, -0.5]), 4)
    assert not torch.allclose(composed(states(2), act), pooled(states(2), act))


def test_chunks_that_do_not_fit_are_refused():
    with pytest.raises(SpecError, match=r"chunk of 4 actions .* trained on H=8.*--action-chunk 4"):
        Windows(Quadratic(SPEC.with_chunk(8)), 4)
    with pytest.raises(SpecError, match="chunks of 4 actions are scored by their windows, receive"):
        Windows(Weighted(), 4)(states(), torch.zeros(1, 1, 3, 1))
