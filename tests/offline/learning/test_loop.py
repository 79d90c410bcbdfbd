"""The loop on an environment of counting: what is stored, how often it learns, how it resumes."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from counting import CONFIG, SPEC, Learner, loop

from offline.errors import InputError
from offline.learning.snapshot import LoopSnapshot


def test_each_episode_has_its_own_layout_and_starts_when_the_last_one_ended():
    running = loop()
    running.run(12)
    assert running.envs.envs[0].seeds == [100, 101, 102]
    assert running.episodes == 2 and running.successes == 2 and running.step == 12


def test_what_is_stored_is_what_was_done():
    """Length 5, chunks of 2 that start anywhere: the last start is padded at a true end only."""
    for ending, starts, zero in (("success", 5, 2), ("terminated", 5, 2), ("truncated", 4, 0)):
        running = loop(ending=ending)
        running.run(5)
        batch = running.replay.sample(2000, torch.Generator().manual_seed(0))
        steps = batch.obs["state"][:, 1]
        assert sorted(steps.unique().tolist()) == list(range(starts))
        assert sorted(steps[batch.discount == 0].unique().tolist()) == list(range(5 - zero, 5))
        moved = batch.next_obs["state"][:, 2] - batch.obs["state"][:, 2]
        length = batch.next_obs["state"][:, 1] - steps
        acts = SPEC.unnormalize(batch.act)[..., 0]
        torch.testing.assert_close(moved, torch.where(length == 2, acts.sum(1), acts[:, 0]))
        # -1 a step and 0 at the one that succeeds
        wanted = torch.full_like(steps, -1.9)
        if ending == "success":
            wanted[steps == 3], wanted[steps == 4] = -1.0, 0.0
        elif ending == "terminated":
            wanted[steps == 3] = -1.0 - 0.9 * 10  # failing for good costs what failing on would
            wanted[steps == 4] = -10.0
        torch.testing.assert_close(batch.reward, wanted)


def test_updates_to_data_ratio():
    for utd, critic, policy in ((1, 20, 20), (3, 60, 20), (0.5, 10, 10), (1.5, 30, 20)):
        agent = Learner()
        running = loop(config=dataclasses.replace(CONFIG, utd=utd), agent=agent)
        running.run(24)
        assert agent.calls.count("critic") == critic == running.updates
        assert abs(agent.calls.count("policy") - policy) <= 1
        assert agent.calls[0] == "critic"


def test_environments_side_by_side_count_each_step():
    running = loop(count=3)
    running.run(30)
    assert running.step == 30 and running.episodes == 6
    seeds = [seed for env in running.envs.envs for seed in env.seeds]
    assert sorted(seeds) == list(range(100, 109))


def test_random_actions_come_first_and_nothing_is_learnt_from_them_yet():
    agent = Learner()
    agent.sample = None  # not asked
    running = loop(config=dataclasses.replace(CONFIG, start_steps=10), agent=agent)
    running.run(10)
    assert not agent.calls and len(running.replay) > 5


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("at", [7, 10, 21])
def test_it_goes_on_where_it_stopped(count, at):
    """In the middle of an episode and of a chunk: environments are played back to their state."""
    whole, rows = loop(count), []
    whole.run(60, log=lambda step, metrics: rows.append((step, metrics)))
    first, second = loop(count), []
    first.run(at, log=lambda step, metrics: second.append((step, metrics)))
    resumed = loop(count, agent=Learner())
    assert resumed.restore(LoopSnapshot.of(first.snapshot().tree())) == []
    resumed.run(60, log=lambda step, metrics: second.append((step, metrics)))
    assert rows == second
    assert torch.equal(resumed.agent.weight, whole.agent.weight)
    one, two = resumed.replay.snapshot().arrays, whole.replay.snapshot().arrays
    assert all(torch.equal(one[k], two[k]) for k in one if "obs" in k)


def test_an_environment_that_its_seed_does_not_fix_begins_a_new_episode():
    first = loop(random=True)
    first.run(8)
    resumed = loop(random=True)
    assert resumed.restore(LoopSnapshot.of(first.snapshot().tree())) == [0]
    resumed.run(20)
    assert resumed.step == 20


def test_divergence_is_one_line():
    agent = Learner()
    agent.bad = True
    with pytest.raises(InputError, match="diverged.*critic/td_loss.*--lr"):
        loop(agent=agent).run(30, log=lambda step, metrics: None)


@pytest.mark.parametrize("at", [0, 7])
def test_a_snapshot_is_the_same_after_its_form_in_a_checkpoint(at):
    running = loop(2)
    running.run(at)
    saved = running.snapshot()
    read = LoopSnapshot.of(saved.tree())
    assert set(saved.tree()) == {
        "agent", "replay", "imagination", "counts", "learnt", "started", "due", "generators",
        "sums", "imagined", "ended", "obs", "running", "statistics",
    }  # fmt: skip
    assert (read.counts, read.started, read.due) == (saved.counts, saved.started, saved.due)
    assert [len(r.actions) + len(r.queue) for r in read.running] == [
        len(r.actions) + len(r.queue) for r in saved.running
    ]
    assert all((read.obs[key] == saved.obs[key]).all() for key in saved.obs)


def test_a_snapshot_does_not_follow_the_loop():
    running = loop()
    running.run(5)
    saved = running.snapshot()
    actions, counts = [list(r.actions) for r in saved.running], list(saved.counts)
    running.run(6)
    assert [len(r.actions) for r in saved.running] == [len(a) for a in actions]
    assert saved.counts == counts
