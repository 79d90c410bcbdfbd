"""What --preset faithful and its single options name is what the released code does.

Edited actions beyond the bounds are scored, executed and stored as they are; actor and edit policy
have no LayerNorm.
"""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
import toy_reach
from torch import Generator, nn
from training_runs import BRIEF, TINY, state, train

from genpol.agents.config import FAITHFUL, TrainConfig
from genpol.agents.deploy import load_edit, load_trained, save_edit
from genpol.agents.edit import EditPolicy
from genpol.agents.expo import EXPO
from genpol.agents.frozen_base import FrozenBase
from genpol.commands.train.options import Train
from genpol.policies.architecture import Architecture
from genpol.policies.policy import ChunkPolicy
from genpol.steering.select import argmax
from genpol.steering.steered import Steered
from offline.critics.value import ValueFunction
from offline.data.mixture import Mixture, Share
from offline.data.replay import Replay
from offline.learning.actor_policy import ActorPolicy
from offline.learning.loop import Loop
from offline.networks.encoder import ObsEncoder
from offline.networks.heads import TanhGaussian
from offline.spec import ActionSpec
from offline.types import clips, executed
from robots.envs.vector_env import make_vector_env

SPEC = ActionSpec.from_bounds([-1.0, -1.0], [1.0, 1.0])
SHAPES = {"state": (3,)}
SMALL = TrainConfig(
    value_ensemble=3,
    hidden=(16, 16),
    action_chunk=1,
    num_candidates=4,
    batch_size=8,
    update_after=4,
    replay_capacity=100,
    edit_scale=0.5,
    clip_edits=False,
)


def value() -> ValueFunction:
    return ValueFunction(SPEC, SHAPES, hidden=(16, 16), ensemble=3, heads="stacked")


def flow() -> ChunkPolicy:
    sizes = Architecture(features=16, encoder_layers=1, width=16, denoising_steps=2)
    return ChunkPolicy("flow", SPEC, SHAPES, architecture=sizes)


class Corner:
    """A black box that always proposes a little beyond the first dimension's bound."""

    spec = SPEC

    def sample(self, obs, n, generator):
        return torch.tensor([1.2, 0.0]).expand(len(obs["state"]), n, 1, 2)

    def reset(self):
        pass

    def commit(self, act):
        self.told = act

    def keep(self, rows):
        pass


def beyond(agent: EXPO) -> EXPO:
    """Let edits go up in the first dimension, and the value like that without end."""
    assert agent.edit is not None
    with torch.no_grad():
        last = agent.edit.policy.move.net[-1]
        last.weight.zero_()
        last.bias.copy_(torch.tensor([3.0, 0.0, -5.0, -5.0]))  # means, log stds
    for critic in (agent.critic.value, agent.critic.target):
        critic.score = lambda projected, act, which=None: act[..., 0, 0].expand(
            3 if which is None else len(which), -1, -1
        )
    return agent


def make(base=None, **options) -> EXPO:
    torch.manual_seed(0)
    base = FrozenBase(Corner(), Corner(), SPEC) if base is None else base
    return beyond(EXPO(base, value(), dataclasses.replace(SMALL, **options)))


OBS = {"state": torch.zeros(5, 3)}
MOST = 1 + 0.5 * np.tanh(3.0)  # of a proposal at the bound


@pytest.mark.parametrize("clip", [False, True])
def test_edits_are_scored_and_chosen_beyond_the_bounds_unless_they_are_clipped(clip):
    agent = make(clip_edits=clip)
    for policy in (agent.acting(), agent.evaluating(), agent.backup, agent.stateless(2)):
        decision = policy.decide(OBS, Generator().manual_seed(0))
        assert decision.candidates[:, : decision.num_base].max() == 1.0  # the base's are clipped
        most = pytest.approx(1.0 if clip else MOST, abs=0.02)
        assert float(decision.value.max()) == most  # scored
        assert float(decision.action[..., 0].min()) == most  # chosen
        raw = executed(policy, decision.action)
        assert torch.equal(raw, decision.action) and clips(policy) is clip


def test_what_is_scored_is_executed_and_stored_beyond_the_bounds():
    agent = make(flow(), update_after=100)
    replay = Replay(100, 1, SPEC, SHAPES, 0.99)
    envs = make_vector_env(toy_reach.NAME, 1)
    handed: list[np.ndarray] = []
    step = envs.step
    envs.step = lambda raw: (handed.append(raw.copy()), step(raw))[1]  # type: ignore[method-assign]
    Loop(agent, envs, Mixture([Share("online", replay, 1.0)]), replay, agent.config,
         layouts=lambda i: i).run(12)  # fmt: skip
    stored = replay.held["action"][:12]
    assert float(stored[:, 0].max()) > 1.2 and float(stored.max()) < 1.5
    assert np.array_equal(np.concatenate(handed)[: len(stored)].max(), stored.max().numpy())
    envs.close()


def test_units_of_policy_and_critic_may_differ():
    """The critic's range is twice the policy's; what it scores is what is executed."""
    wide = ActionSpec.from_bounds([-1.5, -1.5], [1.5, 1.5])

    class Score:
        spec, seen = wide, []

        def encode(self, obs):
            return obs["state"]

        def score(self, features, act):
            self.seen.append(wide.unnormalize(act))
            return act[..., 0, 0][None]

    def edit(features, act, generator):
        from genpol.steering.steered import Edits

        return Edits(act + 0.25, torch.zeros(act.shape[:2]))

    score = Score()
    steered = Steered(Corner(), score, 2, argmax(), edit=edit, clip=False, check=False)
    decision = steered.decide(OBS, None)
    assert decision.candidates[0, :, 0, 0].tolist() == [1.0, 1.0, 1.25, 1.25]
    torch.testing.assert_close(score.seen[0], decision.candidates)
    torch.testing.assert_close(executed(steered, decision.action)[:, 0, 0], torch.full((5,), 1.25))
    again = Steered(steered, score, 1, argmax(), check=False)  # steered once more
    assert not clips(again) and float(again.sample(OBS, 1, None).max()) == 1.25


def test_a_deployed_policy_clips_as_it_was_trained(tmp_path):
    for clip in (True, False):
        torch.manual_seed(0)
        agent = EXPO(flow(), value(), dataclasses.replace(SMALL, clip_edits=clip))
        agent.save(tmp_path)
        assert clips(load_trained(tmp_path)) is clip


# -- LayerNorm


def norms(module: nn.Module) -> int:
    return sum(isinstance(part, nn.LayerNorm) for part in module.modules())


def test_a_network_without_layer_norm_is_linear_layers_and_relu():
    torch.manual_seed(0)
    actor, x = TanhGaussian(3, 2, (8, 8), layer_norm=False), torch.randn(5, 3)
    assert norms(actor) == 0
    expected = x
    for layer in [part for part in actor.net if isinstance(part, nn.Linear)]:
        expected = layer(expected if expected is x else expected.relu())
    mean, log_std = actor(x)
    torch.testing.assert_close(torch.cat([mean, log_std], 1), expected)
    mean.sum().backward()
    assert all(param.grad is not None for param in actor.parameters())


@pytest.mark.parametrize("normed", [True, False])
def test_each_option_is_of_its_own_network(normed, tmp_path, no_page):
    """Whatever --no-layer-norm says, which is of the critic."""
    flag = {"actor_layer_norm": True} if normed else {"no_actor_layer_norm": True}
    assert train(**BRIEF, agent="rlpd", no_layer_norm=True, output=tmp_path, **flag) == 0
    saved = state(tmp_path)["loop"]["agent"]
    assert ("net.1.weight" in saved["actor"]["actor"]) is normed  # else a ReLU
    assert not any("scales" in name for name in saved["critic"]["value"])
    loaded = load_trained(tmp_path)
    assert isinstance(loaded, ActorPolicy) and norms(loaded.actor) == (2 if normed else 0)


@pytest.mark.parametrize("normed", [True, False])
def test_an_edit_policy_is_loaded_as_it_was_made(normed, tmp_path):
    torch.manual_seed(0)
    policy = EditPolicy(3, 2, (8, 8), scale=0.1, clip=True, layer_norm=normed)
    save_edit(policy, tmp_path, candidates=2, edits=1)
    loaded, document = load_edit(tmp_path)
    assert norms(loaded) == norms(policy) == (2 if normed else 0)
    assert document["layer_norm"] is normed
    inputs = torch.zeros(4, 3), torch.zeros(4, 1, 1, 2)
    one, two = (p(*inputs, Generator().manual_seed(0))[0] for p in (policy, loaded))
    assert torch.equal(one, two)


def test_files_of_before_have_layer_norm(tmp_path):
    encoder = ObsEncoder(SHAPES)
    ActorPolicy(SPEC, encoder, TanhGaussian(3, 2, (8,)), (8,)).save(tmp_path)
    path = tmp_path / "policy.json"
    document = json.loads(path.read_text("utf-8"))
    assert document["architecture"].pop("layer_norm") is True
    path.write_text(json.dumps(document), "utf-8")
    assert norms(ActorPolicy.load(tmp_path)) == 1


def test_the_faithful_preset_has_neither_clip_nor_layer_norm():
    config = Train.recommended(**TINY | {"preset": "faithful", "hidden": (8, 8)})
    assert not (config.clip_edits or config.edit_layer_norm or config.actor_layer_norm)
    assert config.layer_norm  # the critic's is published
    usual = Train.recommended(**TINY)
    assert usual.clip_edits and usual.edit_layer_norm and usual.actor_layer_norm
    torch.manual_seed(0)
    released = dataclasses.replace(SMALL, edit_layer_norm=FAITHFUL["edit_layer_norm"])
    agent = EXPO(flow(), value(), released)
    assert agent.edit is not None and norms(agent.edit.policy) == 0
