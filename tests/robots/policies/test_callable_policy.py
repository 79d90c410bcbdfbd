"""Any callable as a policy: units, shapes, seeds, state, and one-line errors."""

from __future__ import annotations

import sys
from collections import deque

import numpy as np
import pytest
import torch

from offline.errors import InputError
from offline.spec import ActionSpec
from offline.types import HasMode, Policy
from robots.policies.callable_policy import CallablePolicy

SPEC = ActionSpec.from_bounds([-2.0, 0.0], [2.0, 10.0])
OBS = {"state": torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])}


def wrap(function, chunk=1) -> CallablePolicy:
    return CallablePolicy(function, env_spec=SPEC, action_chunk=chunk, name="mine:f")


def in_env_units(policy, n=1, seed=0, obs=OBS) -> np.ndarray:
    act = policy.sample(obs, n, torch.Generator().manual_seed(seed))
    return policy.spec.unnormalize(act).numpy()


def test_actions_reach_the_environment_in_its_units():
    policy = wrap(lambda obs: np.array([obs["state"][0] / 4, obs["state"][1]]))
    assert isinstance(policy, Policy) and not isinstance(policy, HasMode)
    np.testing.assert_allclose(in_env_units(policy)[:, 0, 0], [[0.25, 2.0], [1.0, 5.0]], atol=1e-6)
    normal = policy.sample(OBS, 1, None)[:, 0, 0]
    np.testing.assert_allclose(normal, [[0.125, -0.6], [0.5, 0.0]], atol=1e-6)


def test_a_function_sees_one_row_without_a_batch_axis():
    seen = []
    wrap(lambda obs: seen.append(obs["state"].shape) or [0, 0]).sample(OBS, 2, None)
    assert seen == [(3,)] * 4


def test_a_longer_chunk_is_cut_and_torch_is_accepted():
    policy = wrap(lambda obs: torch.arange(10.0).reshape(5, 2) / 10, chunk=3)
    raw = in_env_units(policy)
    assert raw.shape == (2, 1, 3, 2)
    np.testing.assert_allclose(raw[1, 0], np.arange(6).reshape(3, 2) / 10, atol=1e-6)


@pytest.mark.parametrize("source", ["numpy", "torch", "generator", "batched"])
def test_proposals_differ_and_depend_on_the_seed_only(source):
    functions = {
        "numpy": lambda obs: np.random.randn(2),
        "torch": lambda obs: torch.randn(2),
        "generator": lambda obs, generator: generator.normal(size=2),
        "batched": lambda obs, n, generator: generator.normal(size=(len(obs["state"]), n, 2)),
    }
    policy = wrap(functions[source])
    before = np.random.get_state()[1].copy()
    first, again, other = (in_env_units(policy, n=4, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
    assert len(np.unique(first[0, :, 0, 0])) == 4
    np.testing.assert_array_equal(np.random.get_state()[1], before)


class Follows:
    """The mean of the last two states seen, plus noise; remembers what it has seen."""

    made = 0

    def __init__(self):
        Follows.made += 1
        self.net = torch.nn.Linear(1, 1)
        self.reset()

    def reset(self):
        self.seen = deque(maxlen=2)

    def __call__(self, obs):
        self.seen.append(obs["state"][0])
        return [np.mean(self.seen) / 4, np.random.rand()]


def test_an_object_keeps_the_state_of_each_row_and_proposing_changes_nothing(monkeypatch):
    monkeypatch.setitem(sys.modules, "follower", sys.modules[__name__])
    policy = CallablePolicy.load("follower:Follows", env_spec=SPEC)
    policy.reset()
    for n in (1, 5, 3):  # proposals before anything is committed
        raw = in_env_units(policy, n=n)
        np.testing.assert_allclose(raw[:, :, 0, 0], [[0.25] * n, [1.0] * n], atol=1e-6)
    policy.commit(policy.sample(OBS, 3, None)[:, 2])
    policy.keep(torch.tensor([1]))
    later = {"state": torch.tensor([[6.0, 0.0, 0.0]])}
    np.testing.assert_allclose(in_env_units(policy, obs=later)[0, 0, 0, 0], 5 / 4, atol=1e-6)
    policy.reset()
    np.testing.assert_allclose(in_env_units(policy, obs=later)[0, 0, 0, 0], 6 / 4, atol=1e-6)
    nets = {id(state.net) for state in policy._states}
    assert len(nets) == 1  # weights are shared, not copied
    policy.keep(torch.tensor([], dtype=torch.long))


def test_commit_goes_on_with_the_copy_that_was_chosen():
    class Commits:
        def reset(self):
            self.direction = None

        def __call__(self, obs):
            if self.direction is None:
                self.direction = np.random.choice([-1.0, 1.0])
            return [self.direction, 5.0]

    policy = wrap(Commits())
    act = policy.sample(OBS, 16, torch.Generator().manual_seed(0))
    raw = policy.spec.unnormalize(act)[:, :, 0, 0]
    left, right = int(raw[0].argmin()), int(raw[1].argmax())
    assert raw[0, left] == -1 and raw[1, right] == 1
    policy.commit(torch.stack([act[0, left], act[1, right]]))
    np.testing.assert_allclose(in_env_units(policy, n=8)[:, :, 0, 0], [[-1] * 8, [1] * 8])


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda obs: [1.0, 2.0, 3.0], r"mine:f returned shape \(1, 3\), expected .*A=2"),
        (lambda obs: [1.0, float("nan")], "mine:f returned NaN"),
        (lambda obs: "left", "mine:f returned a str"),
        (lambda obs: None, "mine:f returned"),
        (lambda obs: obs["image"], "mine:f failed: KeyError: 'image' .*state"),
        (lambda obs, n, generator: np.zeros((2, 2)), r"shape .*expected \(B, n, H, A\)"),
    ],
)
def test_wrong_answers_name_the_function_in_one_line(function, message):
    with pytest.raises(InputError, match=message) as error:
        wrap(function).sample(OBS, 3, None)
    assert "\n" not in str(error.value)


def test_a_chunk_that_is_too_short_names_the_remedy():
    with pytest.raises(InputError, match="returned 1 action.*chunks of 4.*--action-chunk 1"):
        wrap(lambda obs: [0.0, 0.0], chunk=4).sample(OBS, 1, None)
