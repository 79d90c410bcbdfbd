"""Transitions of recordings: where they start and bootstrap, and what was proposed there."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from recorded_episodes import RecordedList, recorded, recorded_line
from toy_data import ListEpisodes, episode, spec

from offline.data.joined import JoinedEpisodes
from offline.data.mixed_transitions import transitions_of
from offline.data.transitions import Transitions

GAMMA = 0.5


def rows_of(one, made=None, chunk=2, proposals=0, **settings):
    data = RecordedList([one], [made], spec())
    found = Transitions(data, chunk, discount=GAMMA, proposals=proposals, **settings)
    return found._table


def test_asked_every_chunk_it_is_any_other_data_at_those_steps():
    plain = episode(6, success=True)
    seen, _ = recorded(plain, 2)
    ours = rows_of(seen)
    usual = Transitions(ListEpisodes([plain], spec()), 2, discount=GAMMA)._table
    assert ours.start.tolist() == [0, 2, 4]
    for name in ("reward", "discount", "mc_return", "success", "following", "first", "last"):
        np.testing.assert_allclose(getattr(ours, name), getattr(usual, name)[ours.start])


def test_a_target_bootstraps_at_the_next_observation_after_the_chunk():
    # Asked at 0, 3, 6, 9 with a critic of two actions: targets span three steps.
    one, _ = recorded(episode(10, success=False), 3, final=False)
    ours = rows_of(one, reward="dataset")  # rewards 1, 2, 3, ...
    assert ours.start.tolist() == [0, 3, 6] and ours.following.tolist() == [3, 6, 9]
    assert ours.reward.tolist() == [1 + 2 / 2 + 3 / 4, 4 + 5 / 2 + 6 / 4, 7 + 8 / 2 + 9 / 4]
    assert ours.discount.tolist() == [GAMMA**3] * 3
    # The same episode ended in success: the last chunks are terminal, however late they are seen.
    won = dataclasses.replace(one, success=True)
    ours = rows_of(won)
    assert ours.start.tolist() == [0, 3, 6, 9] and ours.following.tolist() == [3, 6, 9, 10]
    assert ours.discount.tolist() == [GAMMA**3] * 3 + [0.0]
    assert ours.reward.tolist() == [-1.75, -1.75, -1.75, 0.0]


def test_a_critic_of_more_actions_than_were_executed():
    one, _ = recorded(episode(8, success=True), 2)
    ours = rows_of(one, chunk=3)  # asked at 0, 2, 4, 6: the first after 0 + 3 is 4
    assert ours.following.tolist() == [4, 6, 8, 8]
    assert ours.discount.tolist() == [GAMMA**4, GAMMA**4, 0.0, 0.0]
    batch = ours.take(torch.tensor([0]))
    raw = torch.from_numpy(one.actions[:3])
    torch.testing.assert_close(batch.act[0], spec().normalize(raw))


def test_what_a_human_did_is_not_the_policys():
    one, _ = recorded(episode(8, success=True), 2)
    by_hand = [False] * 5 + [True] * 3  # within the chunk that began at 4
    one = dataclasses.replace(one, meta={"intervention": by_hand})
    ours = rows_of(one)
    assert ours.start.tolist() == [0, 2, 4, 6]
    assert ours.success.isnan().tolist() == [True, True, True, False]
    assert ours.mc_return.isnan().tolist() == [True, True, True, False]
    # Spans that go on under other hands than they began in are left out.
    one = dataclasses.replace(one, observed=np.array([1, 0, 0, 0, 0, 0, 1, 0, 1], bool))
    assert rows_of(one).start.tolist() == [6]


def test_the_next_states_have_what_the_policy_proposed_there():
    one, made = recorded(episode(6, success=False), 2, candidates=3, final=False)
    ours = rows_of(one, made, proposals=2)
    assert ours.start.tolist() == [0, 2] and ours.proposal.tolist() == [1, 2]
    batch = ours.take(torch.tensor([1, 0]))
    for row, decision in enumerate((2, 1)):
        raw = torch.from_numpy(made.candidates[decision][:2])
        torch.testing.assert_close(batch.proposed[row], spec().normalize(raw))
    # Fewer than are wanted are repeated; actions beyond the bounds are clipped.
    made.candidates[1][0] = 9.0
    batch = rows_of(one, made, proposals=5).take(torch.tensor([0]))
    assert batch.proposed.shape == (1, 5, 2, 1) and batch.proposed.abs().max() <= 1
    torch.testing.assert_close(batch.proposed[:, :2], batch.proposed[:, 3:])


def test_where_nobody_was_asked_the_data_went_on():
    demos = ListEpisodes([episode(5, success=True), episode(5, success=False, seed=1)], spec())
    data = Transitions(demos, 2, discount=GAMMA, proposals=3)
    (batch,) = list(data.batches(99))
    won, lost = demos
    assert len(batch) == 5 + 2  # of the failure, the last chunk that has another behind it is at 1
    own = spec().normalize(torch.from_numpy(np.stack([won.actions[2:4], lost.actions[3:5]])))
    torch.testing.assert_close(batch.proposed[0], own[:1].expand(3, -1, -1))
    torch.testing.assert_close(batch.proposed[6], own[1:].expand(3, -1, -1))


def test_demonstrations_and_a_recording_in_one_batch():
    both = JoinedEpisodes([recorded_line(), ListEpisodes([episode(9, success=True)], spec())])
    for limit in (1 << 30, 2000):
        data = transitions_of(both, 2, proposals=4, memory_limit=limit)
        batch = data.sample(16, torch.Generator().manual_seed(0)).to("cpu")
        assert batch.proposed.shape == (16, 4, 2, 1)
        assert (batch.proposed[8:] == batch.proposed[8:, :1]).all()
        assert (batch.proposed[:8] != batch.proposed[:8, :1]).any()


@pytest.mark.parametrize("proposals", [0, 2])
def test_a_stream_draws_the_transitions_that_memory_would(proposals):
    data = recorded_line(8)
    stored = Transitions(data, 2, proposals=proposals)
    streamed = Transitions(data, 2, proposals=proposals, memory_limit=500)
    assert streamed.streamed and len(streamed) == len(stored)
    (ours,), theirs = list(stored.batches(999)), list(streamed.batches(999))
    torch.testing.assert_close(ours.reward, torch.cat([batch.reward for batch in theirs]))
    if proposals:
        torch.testing.assert_close(ours.proposed, torch.cat([b.proposed for b in theirs]))
