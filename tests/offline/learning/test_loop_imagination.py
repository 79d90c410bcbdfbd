"""The loop with something that imagines, and without environment steps."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from counting import CONFIG, Learner, loop

from offline.data.mixture import Mixture, Share
from offline.errors import InputError
from offline.learning.snapshot import LoopSnapshot
from offline.models.imagination import Imagination
from offline.models.world_model import Prediction, StateLayout
from offline.models.world_model_config import WorldModelConfig


class Counted:
    """Imagines nothing, and tells when it is asked to."""

    def __init__(self):
        self.steps, self.state = [], 0

    def advance(self, step):
        self.steps.append(step)
        return {"imagined/at": float(step)} if step % 7 == 0 else {}

    def state_dict(self):
        return {"state": len(self.steps)}

    def load_state_dict(self, state):
        self.state = state["state"]


class Drift:
    """A model of `Count` that knows of the sum alone, with a noise of its own."""

    layout = StateLayout({"state": 3})

    def predict(self, state, act, generator):
        noise = torch.randn(len(state), generator=generator)
        following = torch.stack([state[:, 0], state[:, 1] + 1, state[:, 2] + act[:, 0] + noise], 1)
        return Prediction(following, -torch.ones(len(state)), following[:, 1] >= 5)


def dreamer(count=1):
    """A loop half of whose batches are imagined."""
    running = loop(count)
    config = WorldModelConfig(
        model_every=6, rollouts_per_step=3, imagined_capacity=50, rollout_lengths=(2, 2)
    )
    running.imagination = Imagination(Drift(), running.agent, running.replay, config, 0.9, seed=1)
    running.mixture = Mixture(
        [Share("online", running.replay, 0.5), Share("imagined", running.imagination, 0.5)]
    )
    return running


def test_updates_without_steps():
    agent, imagination, rows = Learner(), Counted(), []
    running = loop(config=dataclasses.replace(CONFIG, utd=3), agent=agent, imagination=imagination)
    with pytest.raises(InputError, match="nothing to learn from yet"):
        running.learn(1)
    running.run(4)
    imagination.steps.clear()
    running.learn(13, stop=lambda: running.learnt == 4)
    running.learn(13, log=lambda number, metrics: rows.append((number, metrics)))
    assert agent.calls == ["critic", "policy"] * 13  # whatever the ratio to steps
    assert (running.learnt, running.updates, running.step) == (13, 13, 4)
    assert imagination.steps == list(range(4, 17))
    ((number, metrics),) = rows
    assert number == 10 and metrics["train/updates"] == 10 and metrics["actor/loss"] == 1
    running.run(6)  # its steps come after those
    assert imagination.steps[13:] == [18, 19] and running.updates == 13 + 2 * 3


@pytest.mark.parametrize("count", [1, 3])
def test_it_imagines_once_it_learns_and_tells_the_newest(count):
    imagination, rows = Counted(), []
    config = dataclasses.replace(CONFIG, log_every=12)
    running = loop(count, config, imagination=imagination)
    running.run(24, log=lambda step, metrics: rows.append(metrics.get("imagined/at")))
    assert imagination.steps == [s for s in range(count, 25, count) if s > CONFIG.update_after]
    assert rows == ([7.0, 21.0] if count == 1 else [None, 21.0])


def test_what_is_imagined_is_learnt_from():
    running = dreamer()
    running.run(11)
    assert 2 * 18 <= len(running.imagination) <= 50
    batch = running.mixture.sample(40, torch.Generator().manual_seed(0))
    imagined, steps = batch.key < 0, batch.obs["state"][:, 1]
    assert imagined.sum() == 20 and (steps < 5).all()
    assert torch.equal(batch.discount[imagined] == 0, steps[imagined] >= 3)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("at", [7, 21])
def test_with_imagination_it_goes_on_where_it_stopped(count, at):
    def through(running, until, rows):
        running.run(min(until, 12), log=lambda step, metrics: rows.append((step, metrics)))
        if running.step >= 12:
            running.learn(5)
        running.run(until, log=lambda step, metrics: rows.append((step, metrics)))

    whole, rows, second = dreamer(count), [], []
    through(whole, 45, rows)
    first = dreamer(count)
    through(first, at, second)
    resumed = dreamer(count)
    assert resumed.restore(LoopSnapshot.of(first.snapshot().tree())) == []
    through(resumed, 45, second)
    assert rows == second and any("imagined/reward" in metrics for _, metrics in rows)
    assert resumed.learnt == 5 and torch.equal(resumed.agent.weight, whole.agent.weight)


def test_a_run_from_before_there_was_imagination_goes_on():
    first = loop()
    first.run(8)
    state = first.snapshot().tree()
    for name in ("imagination", "imagined", "learnt"):
        del state[name]
    resumed = loop()
    assert resumed.restore(LoopSnapshot.of(state)) == [] and resumed.learnt == 0
