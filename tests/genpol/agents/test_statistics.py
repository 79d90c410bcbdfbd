"""Statistics that follow the replay, in an environment that drifts away from what was seen first.

The state drifts to 20 standard deviations of what random actions show. A critic that clips there
cannot tell these states apart, and VaGraM's weights, which are its gradients, are exactly 0.
"""

from __future__ import annotations

import dataclasses

import gymnasium
import numpy as np
import pytest
import torch
from training_runs import MODELLED, assert_same_run, interrupt_at, resume, state, train

from genpol.agents.config import TrainConfig
from genpol.agents.make import make_agent
from offline.learning import statistics
from offline.learning.agent import Agent, OnEncoding, OwnStatistics
from offline.models.vagram import ValueGradient, vagram_weights
from offline.models.world_model import StateLayout, Steps
from offline.spec import ActionSpec

NAME = "Drifting-v0"


class Drifting(gymnasium.Env):
    """Every step that it ever makes moves what it shows by `SPEED`, beside noise of std 1."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
    SPEED = 0.0
    lived = 0

    def _shown(self):
        return self.np_random.normal(size=2) + np.array([self.SPEED * Drifting.lived, 0.0])

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._shown(), {"success": False}

    def step(self, action):
        Drifting.lived += 1
        return self._shown(), float(action[0]), False, False, {"success": False}


gymnasium.register(NAME, Drifting, max_episode_steps=10)
SPEC = ActionSpec.from_bounds([-1.0], [1.0])
FIRST = {"state": (np.zeros(2), np.ones(2))}  # of what random actions show
LATER = {"state": (np.array([14.0, 0.5]), np.array([6.0, 0.7]))}
SMALL = TrainConfig(
    hidden=(16, 16), value_ensemble=3, features=16, width=8, action_chunk=1, denoising_steps=2
)
DRIFT = {"agent": "sac", "env": NAME, "reward": "dataset", "action_chunk": 2, "start_steps": 4}


def make(name: str, **options) -> Agent:
    agent = make_agent(
        dataclasses.replace(SMALL, agent=name, **options),
        spec=SPEC,
        obs_shapes={"state": (2,)},
        obs_stats=FIRST,
        env=NAME,
    )
    generator = torch.Generator().manual_seed(1)
    for network in agent.networks():  # as if learnt: nothing is as it was initialised
        for param in network.parameters():
            param.data.add_(0.1 * torch.randn(param.shape, generator=generator))
    return agent


def states(*deviations: float) -> torch.Tensor:
    return torch.tensor([[x, 0.0] for x in deviations])


def test_the_critic_tells_far_states_apart_and_vagram_weighs_them():
    agent = make("sac")
    far, act = states(12, 20, -12, -20), torch.zeros(4, 1, 1, 1)
    with torch.no_grad():
        q = agent.critic.value({"state": far}, act)[..., 0]
    assert (q[:, 0] - q[:, 1]).abs().min() > 1e-4 and (q[:, 2] - q[:, 3]).abs().min() > 1e-4
    values = ValueGradient(agent.critic.target, agent.evaluating(), StateLayout({"state": 2}))
    steps = Steps(far, torch.zeros(4, 1), torch.zeros(4), far, torch.zeros(4))
    weights, _ = vagram_weights(values, steps, torch.ones(2), 1.0, None)
    assert (weights[:, 0] > 1e-9).all()


AGENTS = {
    "sac": {},
    "rlpd": {"actor_layer_norm": False},
    "expo": {"policy": "diffusion", "candidates": "student"},
    "bestofn": {"network": "residual"},
    "bc": {},
    "idql": {},
    "fql": {},
    "dsrl": {},
}


@pytest.mark.parametrize("name", AGENTS)
def test_every_network_of_an_agent_stays_the_function_that_it_is(name):
    agent, obs = make(name, **AGENTS[name]), {"state": torch.randn(64, 2)}

    def decided():
        found = []
        for policy in (agent.acting(), agent.evaluating()):
            found.append(policy.sample(obs, 2, torch.Generator().manual_seed(0)))
        if hasattr(agent, "backup"):
            noise = torch.Generator().manual_seed(2)
            found.append(agent.targets.candidates(obs, None, 0, noise))
        if hasattr(agent, "critic"):
            act = torch.zeros(64, 1, 1, 1)
            with torch.no_grad():
                found += [critic(obs, act) for critic in (agent.critic.value, agent.critic.target)]
                features = agent.critic.value.encoder(obs)
                if hasattr(agent, "state_value"):
                    found.append(agent.state_value(features))
                if hasattr(agent, "noise_critic"):
                    found.append(agent.noise_critic.heads.project(features))
                if getattr(agent, "edit", None) is not None:
                    found.append(agent.edit.policy.move(torch.cat([features, act[:, 0, 0]], 1))[0])
        return found

    if name in ("expo", "bestofn", "idql"):  # heads are drawn: all of them, then
        for policy in (agent.acting(), agent.evaluating()):
            policy.score.count = SMALL.value_ensemble
    before = decided()
    agent.restandardise(LATER)
    for one, two in zip(before, decided(), strict=True):
        torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-3)
    for network in agent.networks():
        for part in network.modules():
            if hasattr(part, "normalizer"):
                assert part.normalizer.mean.tolist() == pytest.approx([14.0, 0.5])
    for name, part in agent.parts().items():
        if part is not None and name not in ("heads", "draw", "optimizer"):
            assert isinstance(part, (OwnStatistics, OnEncoding))


@pytest.fixture
def often(monkeypatch):
    """Statistics are due at steps 6, 12 and 24, and the environment drifts by 4 a step."""
    monkeypatch.setattr(statistics, "FIRST", 6)
    monkeypatch.setattr(statistics, "LAST", 24)
    monkeypatch.setattr(Drifting, "SPEED", 4.0)
    monkeypatch.setattr(Drifting, "lived", 0)
    monkeypatch.setattr("genpol.commands.train.inputs.OBSERVED", 20)


@pytest.mark.usefixtures("often", "no_page")
def test_they_follow_the_replay_until_data_is_ample(tmp_path):
    found = {}
    for steps in (4, 13, 27, 36):
        Drifting.lived = 0
        run = tmp_path / str(steps)
        assert train(**DRIFT, steps=steps, eval_episodes=1, eval_every=36, output=run) == 0
        agent = state(run)["loop"]["agent"]
        found[steps] = agent["critic"]["value"]["encoder.normalizer.mean"]
        for other in ("value", "target"):
            assert torch.equal(agent["critic"][other]["encoder.normalizer.mean"], found[steps])
        due = state(run)["loop"]["statistics"]["due"]
        assert due == {4: 6, 13: 24, 27: None, 36: None}[steps]
    assert found[4][0] < found[13][0] < found[27][0]
    assert torch.equal(found[27], found[36])  # frozen


@pytest.mark.usefixtures("often", "no_page")
@pytest.mark.parametrize("given", ["no_follow_statistics", "value", "data"])
def test_they_stay_where_something_else_tells_them_or_one_says_so(given, tmp_path):
    from toy_reach import write_demonstrations

    first = tmp_path / "first"
    options = {"output": tmp_path / "run", "steps": 14, "eval_episodes": 1}
    if given == "data":
        options["data"] = write_demonstrations(tmp_path / "demos.hdf5")
        assert train(**options, agent="rlpd") == 0
    else:
        if given == "value":
            assert train(**DRIFT | options | {"output": first, "steps": 0}) == 0
        options[given] = True if given == "no_follow_statistics" else first
        assert train(**DRIFT | options) == 0
    assert state(tmp_path / "run")["loop"]["statistics"] is None


@pytest.mark.slow
@pytest.mark.usefixtures("often", "no_page")
@pytest.mark.parametrize("at", [6, 18])
def test_a_run_goes_on_bit_for_bit(at, tmp_path, monkeypatch):
    """Before and after statistics were taken on, with a world model that VaGraM weighs."""
    monkeypatch.setattr(Drifting, "SPEED", 0.0)  # else an episode is not played back to its state
    options = DRIFT | MODELLED | {"world_model": "vagram", "imagined_keep": 2, "eval_episodes": 1}
    del options["imagined_capacity"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(**options, output=whole) == 0
    with monkeypatch.context() as patch:
        import signal

        interrupt_at(patch, at, signal.SIGINT)
        train(**options, output=parts)
    assert resume(parts) == 0
    assert_same_run(whole, parts)


def test_of_what_the_replay_holds():
    from counting import loop

    running = loop()
    running.run(23)
    held = running.replay.held
    began = held["obs.state"][held["outcome"] > 0].double()
    assert len(began) == 23
    found = statistics.replay_stats(running.replay)
    np.testing.assert_allclose(found["state"][0], began.mean(0), atol=1e-12)
    np.testing.assert_allclose(found["state"][1], began.std(0, correction=0), atol=1e-12)
