"""Compiled networks give the same numbers but for the last bits; what is saved is the same."""

from __future__ import annotations

import copy

import pytest
import torch
import toy_bandit as toy
from toy_reach import write_demonstrations
from training_runs import resume, rows, train

from genpol.agents import compiled
from genpol.agents.expo import EXPO
from offline.errors import InputError

pytestmark = pytest.mark.slow  # the compiler takes seconds to import, and more to trace


def learner(**options) -> EXPO:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # of the edit policy
        return EXPO(toy.base_policy(), toy.critic(), toy.settings(num_candidates=2, **options))


def test_parts_are_compiled_and_their_copies_are_not():
    agent = learner()
    assert compiled.compile_networks(agent.networks()) == 6  # chains and trunks, critics
    kept = agent.critic.value.heads
    assert kept._compiled_call_impl is not None
    assert copy.deepcopy(kept)._compiled_call_impl is None  # a copy would compute by the original


@pytest.mark.parametrize("options", [{}, {"candidates": "student"}])
def test_an_update_is_the_same(options, monkeypatch):
    """By the compiler's front end alone, which takes the time of no kernels."""
    monkeypatch.setattr(compiled, "BACKEND", "eager")
    plain, other = learner(**options), learner(**options)
    compiled.compile_networks(other.networks())
    found = []
    for agent in (plain, other):
        draw = toy.generator(1)
        batch = toy.transitions(64, draw)
        found.append(agent.update_critic(batch, draw) | agent.update_policy(batch, draw))
    for key, number in found[0].items():
        assert torch.allclose(number, found[1][key], rtol=1e-3, atol=1e-4), key
    for one, two in zip(plain.networks(), other.networks(), strict=True):
        for ours, theirs in zip(one.parameters(), two.parameters(), strict=True):
            assert (ours.grad is None) == (theirs.grad is None)
            if ours.grad is not None:
                assert torch.allclose(ours.grad, theirs.grad, rtol=1e-3, atol=1e-4)


def test_kernels_of_a_chain_and_of_heads():
    policy, critic, obs = toy.base_policy(), toy.critic(), toy.states(4, toy.generator(2))
    act = policy.sample(obs, 3, toy.generator(3))
    q = critic(obs, act)
    assert compiled.compile_networks([policy, critic]) == 3
    assert torch.allclose(policy.sample(obs, 3, toy.generator(3)), act, atol=1e-5)
    assert torch.allclose(critic(obs, act), q, atol=1e-5)


def test_a_run_is_the_same_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(compiled, "BACKEND", "eager")
    data = write_demonstrations(tmp_path / "demos.hdf5")
    common = {"data": data, "steps": 14, "eval_every": 14, "eval_episodes": 1, "log_every": 7}
    common |= {"checkpoint_every": 7, "policy": "flow"}
    assert train(**common, output=tmp_path / "plain") == 0
    begun = common | {"steps": 7, "output": tmp_path / "begun", "compile": True}
    assert train(**begun) == 0 and resume(tmp_path / "begun", steps=14) == 0
    expected, found = rows(tmp_path / "plain")[-1], rows(tmp_path / "begun")[-1]
    for key in ("critic/td_loss", "base/loss", "edit/loss"):
        assert float(found[key]) == pytest.approx(float(expected[key]), rel=1e-2), key


def test_no_compiler_is_one_line(monkeypatch):
    from torch._inductor import cpp_builder

    def none():
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    with pytest.raises(InputError, match="needs a C\\+\\+ compiler .*: install g\\+\\+, or leave"):
        compiled.compile_networks([])
    with pytest.raises(InputError, match="on cuda:0 needs Triton"):
        compiled.compile_networks([], "cuda:0")
