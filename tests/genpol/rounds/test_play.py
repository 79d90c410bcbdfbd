"""Rounds of episodes: which are played, what is kept of them, and that neighbours do not matter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from toy_rounds import SPEC, ToyAim, chains, envs, played, starts

from diffusion.chain import score_chain
from genpol.rounds.play import play
from offline.errors import Diverged

KINDS = ("flow", "diffusion")


@pytest.mark.parametrize("kind", KINDS)
def test_every_episode_is_played_once_and_its_decisions_are_its_own(kind):
    found = played(kind, groups=3, size=4, lanes=5)
    place = found.place
    lengths = [episode.length for episode in found.episodes]
    assert len(lengths) == 12 and set(lengths) == {1, 2}
    assert [int((row >= 0).sum()) for row in place] == lengths
    assert sorted(place[place >= 0].tolist()) == list(range(found.steps))
    assert found.chain.x.shape == (4, found.steps, 1)
    # What was observed, decided and paid, episode by episode, as the environment has it.
    alone = ToyAim()
    for m, episode in enumerate(found.episodes):
        alone.reset(seed=m // 4)
        returned, success = 0.0, False
        for row in episode.decisions:
            act = found.chain.sample[row].clamp(-1, 1).numpy()
            _, reward, _, _, info = alone.step(SPEC.unnormalize(torch.from_numpy(act)).numpy())
            returned, success = returned + reward, info["success"]
        assert returned == pytest.approx(episode.returned, abs=1e-5)
        assert success is episode.success and (success or len(episode.decisions) == 2)


@pytest.mark.parametrize("kind", KINDS)
def test_an_episode_depends_on_no_other(kind):
    """The same episodes in one lane, in five, and in fewer episodes of a round."""
    one, five = (played(kind, 2, 4, lanes=lanes) for lanes in (1, 5))
    for a, b in zip(one.episodes, five.episodes, strict=True):
        assert a.returned == pytest.approx(b.returned, abs=1e-5)
        for x, y in zip(a.decisions, b.decisions, strict=True):
            torch.testing.assert_close(one.chain.x[:, x], five.chain.x[:, y], rtol=0, atol=1e-5)
    few = played(kind, 1, 4, lanes=2)
    assert [e.length for e in few.episodes] == [e.length for e in one.episodes[:4]]


def test_chains_score_as_they_were_drawn():
    made, lanes = chains("diffusion"), envs(2)
    found = play(lanes, made, starts(2, 3))
    again = score_chain(made.predict, made.process, found.chain, found.cond)
    torch.testing.assert_close(again, found.chain.log_prob, rtol=0, atol=1e-5)
    assert float(found.chain.log_prob.abs().max()) > 0.1


def test_finished_chunks_alone_and_chains_in_half_the_bits():
    whole, bare = played("diffusion"), played("diffusion", path=False)
    assert bare.chain.x.shape == (1, whole.steps, 1)
    assert torch.equal(bare.chain.sample, whole.chain.sample)
    half = played("diffusion", dtype=torch.bfloat16)
    assert half.chain.x.dtype == torch.bfloat16
    again = [e.returned for e in half.episodes]
    assert again != [e.returned for e in whole.episodes]  # what is rounded is executed
    assert again == pytest.approx([e.returned for e in whole.episodes], abs=0.1)


def test_only_steps_of_episodes_count_and_lanes_that_idle_make_others():
    before = ToyAim.steps_made
    found = played("flow", 1, 3, lanes=2)
    assert found.steps == sum(e.length for e in found.episodes)
    assert ToyAim.steps_made - before >= found.steps
    assert (ToyAim.steps_made - before) % 2 == 0


def test_a_round_that_is_stopped_leaves_nothing():
    asked = iter([False, False, True])
    assert play(envs(2), chains(), starts(2, 3), stop=lambda: next(asked)) is None


def test_actions_that_are_not_finite_are_divergence():
    made = chains()
    with torch.no_grad():
        made.policy.head.trunk.out.weight.fill_(float("nan"))
    with pytest.raises(Diverged, match="NaN or infinite actions.*Lower"):
        play(envs(2), made, starts(1, 2))


def test_chunks_are_executed_whole_and_what_is_left_of_them_is_dropped():
    """With chunks of two actions an episode is one decision, whether or not its first succeeds."""
    import toy_rounds

    from genpol.policies.chains import PolicyChains
    from genpol.policies.policy import ChunkPolicy
    from offline.spec import ActionSpec

    spec = ActionSpec.from_bounds([-1.0], [1.0], chunk=2)
    torch.manual_seed(0)
    made = ChunkPolicy("flow", spec, toy_rounds.SHAPES)
    found = play(envs(3), PolicyChains(made), starts(2, 5))
    assert all(len(e.decisions) == 1 for e in found.episodes)
    assert {e.length for e in found.episodes} == {1, 2}
    assert found.chain.dimensions == 2 and np.isfinite([e.returned for e in found.episodes]).all()
