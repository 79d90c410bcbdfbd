"""Fine-tuning by episodes: a toy that has to be learnt, the reference's part, each objective."""

from __future__ import annotations

import pytest
import torch
import toy_rounds

from diffusion.chain import sample_chain
from genpol.agents.config import TrainConfig
from genpol.agents.tuning_config import FORWARD
from genpol.rounds.from_episodes import FromEpisodes, refer
from genpol.rounds.loop import Rounds, spread, tied_groups
from genpol.rounds.play import Outcome
from genpol.rounds.table import EpisodeScores
from offline.errors import InputError


def settings(agent: str, **options) -> TrainConfig:
    quiet = {"sampler": "ode"} if agent in FORWARD else {}
    small = {"groups": 2, "group_size": 3, "steps": 100, "num_envs": 3, "reward": "dataset"}
    return TrainConfig(**small | {"agent": agent, "base_lr": 1e-3} | quiet | options)


def rounds(agent: str, kind: str = "flow", **options) -> Rounds:
    config = settings(agent, **options)
    agent_ = FromEpisodes(toy_rounds.policy(kind), config)
    lanes = toy_rounds.envs(config.num_envs)
    return Rounds(agent_, lanes, config, layouts=lambda i: i, limit=toy_rounds.LIMIT)


TAUGHT = {  # (objective, kind of policy): rounds, settings
    ("grpo", "flow"): (25, {"base_lr": 5e-3, "kl_weight": 0.0}),
    ("ddpo", "diffusion"): (120, {"base_lr": 1.5e-3}),
    ("prdp", "diffusion"): (100, {"base_lr": 1.5e-3, "beta": 0.1}),
}


@pytest.mark.parametrize(
    ("agent", "kind"),
    [case if case[0] == "grpo" else pytest.param(*case, marks=pytest.mark.slow) for case in TAUGHT],
)
def test_a_toy_is_learnt(agent, kind):
    """Three in ten episodes succeed at first; of the last rounds seven in ten have to."""
    count, options = TAUGHT[agent, kind]
    many = {"groups": 8, "group_size": 8, "num_envs": 64, "steps": 200, "inner_steps": 4}
    loop = rounds(agent, kind, reward="zero-one", **many, **options)
    share: list[float] = []
    for _ in range(count):
        loop.run(loop.step + 1, log=lambda step, m: share.append(m["train/success"]))
    assert len(share) == loop.rounds == count and loop.updates == 4 * count
    assert sum(share[:2]) / 2 < 0.5 and sum(share[-10:]) / 10 > 0.7, share


def test_the_references_part_is_that_of_the_chains_it_drew_with():
    """Filled in once a round is over, for all decisions together."""
    made, other = toy_rounds.chains("diffusion"), toy_rounds.chains("diffusion")
    with torch.no_grad():
        for weight in other.policy.parameters():
            weight.mul_(1.05)
    found = toy_rounds.played("diffusion")
    refer(found.chain, made, other, found)
    noise = toy_rounds.starts(2, 3)[0].noise  # of the first episode, whose first decision is row 0
    obs = {"state": torch.zeros(1, 2)}
    cond = made.condition(obs)
    cond["encoding"] = found.cond["encoding"][:1]
    alone = sample_chain(
        made.predict, made.process, cond, made.shape, [noise], reference=other.predict
    )
    torch.testing.assert_close(alone.x[:, 0], found.chain.x[:, 0], rtol=0, atol=1e-5)
    torch.testing.assert_close(
        alone.log_prob_ref[0], found.chain.log_prob_ref[0], atol=1e-4, rtol=0
    )
    torch.testing.assert_close(alone.kl[0], found.chain.kl[0], atol=1e-5, rtol=1e-3)
    assert float(found.chain.kl.max()) > 1e-4


@pytest.mark.parametrize("agent", ["prdp", "grpo", "ddpo", "rtb", "prdp-forward", "nft", "awm"])
def test_every_objective_moves_the_policy_and_asks_for_no_decision_past_an_end(agent, monkeypatch):
    loop = rounds(agent, "diffusion", inner_steps=2)
    tuned, asked = loop.agent, []
    before = {k: v.clone() for k, v in tuned.tuning.chains.trainable().items()}
    made = EpisodeScores._of

    def seen(self, rows, columns):
        decisions, steps = made(self, rows, columns)
        asked.append(int(decisions.min()))
        return decisions, steps

    monkeypatch.setattr(EpisodeScores, "_of", seen)
    metrics: dict[str, float] = {}
    loop.run(1, log=lambda step, found: metrics.update(found))
    assert asked and min(asked) >= 0  # -1 is where there is no decision
    assert metrics["policy/gradient_norm"] > 0
    after = tuned.tuning.chains.trainable()
    assert any(not torch.equal(before[name], weight) for name, weight in after.items())
    assert tuned.keeps_paths is (agent not in FORWARD)
    assert ("kl/nats" in metrics) is tuned.keeps_paths


def test_forward_objectives_learn_chunks_as_they_were_executed():
    loop = rounds("prdp-forward", "flow")
    agent = loop.agent
    found = toy_rounds.played("flow", path=False)
    found.chain.x.mul_(4)  # beyond the bounds
    reward = torch.zeros(6, dtype=torch.float64)
    scores, rollouts = agent.scored(found, reward, torch.arange(2).repeat_interleave(3), 0)
    assert float(scores.decisions.sample.abs().max()) == 1
    assert rollouts.step_weight.sum(1).tolist() == [e.length for e in found.episodes]


def test_rewards_of_episodes():
    won = Outcome([0, 1], returned=-0.5, success=True, length=2)
    lost = Outcome([0, 1], returned=-1.5, success=False, length=2)
    for kind, scale, expected in (
        ("zero-one", 1.0, (1.0, 0.0)),
        ("zero-one", 10.0, (10.0, 0.0)),
        ("sparse", 1.0, (-1.0, -2.0)),  # a step is paid -1 until the one that succeeds
        ("dataset", 2.0, (-1.0, -3.0)),
    ):
        loop = rounds("prdp", reward=kind, reward_scale=scale)
        assert (loop._reward(won), loop._reward(lost)) == expected


def test_rounds_that_only_succeed_are_no_cause_for_a_warning():
    said: list[str] = []
    loop = rounds("prdp")
    loop.say = said.append
    for idle in [True] * 4 + [False] + [True] * 10:
        loop._notice(idle)
    assert ["last 5 rounds" in said[0], "last 10 rounds" in said[1]] == [True, True]
    assert len(said) == 2 and loop.tree()["tired"] == 10


def test_ties_and_spread_by_hand():
    reward, group = torch.tensor([1.0, 1.0, 0.0, 1.0]), torch.tensor([0, 0, 1, 1])
    assert tied_groups(reward, group) == 0.5
    assert spread(reward, group) == pytest.approx(0.5**0.5 / 2)


def test_sizes_that_do_not_go_together():
    with pytest.raises(InputError, match="--steps 11 may be fewer .* 2 x 3 .* Pass --steps 12"):
        rounds("prdp", steps=11)
    with pytest.raises(InputError, match="--num-envs 7 is more than the 2 x 3"):
        rounds("prdp", num_envs=7)
    with pytest.raises(InputError, match="--layouts 1 is fewer than the --groups 2"):
        rounds("prdp", layouts=1)


@pytest.mark.parametrize("change", [{"counts": [1, 2, 3]}, {"rounds": -1}, {"more": 1}])
def test_a_state_of_another_loop_is_refused(change):
    loop = rounds("prdp")
    with pytest.raises(ValueError):
        loop.take_on(loop.tree() | change)
