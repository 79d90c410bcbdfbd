"""Imagined transitions: rewards and discounts by hand, terminations, the ring, schedules, resuming.

The model is linear, so that every number can be worked out: s' = s + a, r = s, and an episode ends
where s' reaches a bound.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Generator

from offline.data.batch import IMAGINED, Batch
from offline.data.mixture import Mixture, Share
from offline.errors import InputError
from offline.models.imagination import Imagination, imagine_chunk
from offline.models.world_model import Prediction, StateLayout
from offline.models.world_model_config import WorldModelConfig
from offline.spec import ActionSpec

GAMMA = 0.5
LAYOUT = StateLayout({"state": 1})


class Linear:
    """s' = s + a (+ noise), r = s; terminates where s' >= bound."""

    def __init__(self, layout=LAYOUT, bound=float("inf"), noise=0.0):
        self.layout, self.bound, self.noise = layout, bound, noise
        self.rows = []

    def predict(self, state, act, generator):
        assert act.abs().max() <= 1
        self.rows.append(len(state))
        following = state + act.sum(-1, keepdim=True)
        if self.noise:
            following = following + self.noise * torch.randn(state.shape, generator=generator)
        return Prediction(following, state[:, 0], following[:, 0] >= self.bound)


class Constant:
    """Always proposes the same chunk, or draws one."""

    def __init__(self, actions=(1.0, 1.0), random=False):
        self.actions, self.random = torch.tensor(actions), random
        self.spec = ActionSpec.from_bounds([-2.0], [2.0], chunk=len(actions))

    def sample(self, obs, n, generator):
        shape = (len(next(iter(obs.values()))), n, len(self.actions), 1)
        if self.random:
            return 2 * torch.rand(shape, generator=generator) - 1
        return self.actions[:, None].expand(shape)


class Real:
    """Real transitions, as many as there are states."""

    def __init__(self, *states, chunk=2):
        self.states, self.chunk = torch.tensor(states), chunk

    def __len__(self):
        return len(self.states)

    def sample(self, batch_size, generator=None):
        state = self.states[torch.randint(len(self), (batch_size,), generator=generator)][:, None]
        zero = torch.zeros(batch_size)
        return Batch(
            obs={"state": state},
            act=torch.zeros(batch_size, self.chunk, 1),
            reward=zero,
            next_obs={"state": state},
            discount=zero,
            mc_return=zero,
            success=zero,
            key=torch.arange(batch_size),
        )


def config(**rest):
    settings = {"model_every": 10, "rollouts_per_step": 2, "imagined_keep": 10}
    return WorldModelConfig(**(settings | rest))


def imagination(model=None, policy=None, real=None, **rest):
    settings = rest.pop("settings", {})
    real = Real(0.0) if real is None else real
    return Imagination(
        model or Linear(), policy or Constant(), real, config(**settings), GAMMA, **rest
    )


def held(source):
    """What is in the ring, in the order of its slots."""
    rows = source._ring.state_dict()["rows"]
    return {name: values.squeeze(-1) for name, values in rows.items()}


def test_a_chunk_by_hand():
    """From 1 by steps of 1, .5 and -1: rewards 1, 2, 2.5 at discounts 1, 1/2, 1/4."""
    act = torch.tensor([[[1.0], [0.5], [-1.0]]])
    chunk = imagine_chunk(Linear(), torch.tensor([[1.0]]), act, GAMMA, None)
    assert chunk.reward.tolist() == [1 + 0.5 * 2 + 0.25 * 2.5]
    assert chunk.next_state.tolist() == [[1.5]]
    assert chunk.discount.tolist() == [GAMMA**3] and not chunk.terminated.any()


def test_nothing_is_added_and_nothing_follows_after_a_termination():
    """Bound 3. From 0 it is not reached; from 1 by the second step; from 2.5 by the first."""
    state = torch.tensor([[0.0], [1.0], [2.5]])
    act = torch.ones(3, 2, 1)
    chunk = imagine_chunk(Linear(bound=3), state, act, GAMMA, None)
    assert chunk.reward.tolist() == [0 + 0.5, 1 + 0.5 * 2, 2.5]
    assert chunk.next_state[:, 0].tolist() == [2.0, 3.0, 3.5]
    assert chunk.discount.tolist() == [0.25, 0.0, 0.0]
    assert chunk.terminated.tolist() == [False, True, True]
    act[2, 1] = -1.0  # after its end
    again = imagine_chunk(Linear(bound=3), state, act, GAMMA, None)
    assert torch.equal(again.reward, chunk.reward)
    assert torch.equal(again.next_state, chunk.next_state)


def test_a_discount_of_zero_is_no_termination():
    source = imagination()
    source.discount = 0.0
    source.imagine(4, 3)
    assert len(source) == 12 and source.imagine(4, 3)["imagined/terminated"] == 0


def test_a_branch_ends_where_it_is_predicted_to():
    """By 2 a decision from 0, bound 4: the second decision terminates, and there is no third."""
    source = imagination(Linear(bound=4))
    metrics = source.imagine(5, 7)
    rows = held(source)
    assert rows["state"].tolist() == [0.0] * 5 + [2.0] * 5
    assert rows["next_state"].tolist() == [2.0] * 5 + [4.0] * 5
    assert rows["discount"].tolist() == [0.25] * 5 + [0.0] * 5
    assert rows["reward"].tolist() == [0.5] * 5 + [2 + 1.5] * 5
    assert metrics == {
        "imagined/length": 7,
        "imagined/terminated": 1.0,
        "imagined/reward": 2.0,
        "imagined/held": 10,
    }
    assert not (rows["state"] >= 4).any()


def test_what_is_drawn_is_a_batch_like_any_other():
    source = imagination(Linear(bound=4))
    source.imagine(5, 7)
    batch = source.sample(64, Generator().manual_seed(0))
    assert batch.obs["state"].shape == batch.next_obs["state"].shape == (64, 1)
    assert batch.act.shape == (64, 2, 1)
    assert set(batch.obs["state"][:, 0].tolist()) == {0.0, 2.0}
    moved = batch.next_obs["state"] - batch.obs["state"]
    torch.testing.assert_close(moved, batch.act.sum(1))
    assert torch.equal(batch.discount == 0, batch.next_obs["state"][:, 0] >= 4)
    assert batch.mc_return.isnan().all() and batch.success.isnan().all()
    assert (batch.key == IMAGINED).all()


def test_actions_are_clipped_like_those_that_are_executed():
    source = imagination(policy=Constant((3.0, -5.0)))
    source.imagine(3, 1)
    assert source.sample(4).act[..., 0].tolist() == [[1.0, -1.0]] * 4


def test_it_is_time_at_once_and_then_every_so_many_steps():
    fitted = []

    def fit(step):
        fitted.append(step)
        return {"model/loss": float(step)}

    source = imagination(real=Real(), fit=fit)
    assert source.advance(0) == source.advance(3) == {}  # no data yet
    source.real.states = torch.zeros(1)
    news = {step: source.advance(step) for step in range(4, 30)}
    assert fitted == [4, 14, 24] == [step for step, metrics in news.items() if metrics]
    assert news[14]["model/loss"] == 14 and news[14]["imagined/held"] == 40
    assert len(source) == 3 * 2 * 10  # rollouts_per_step for each of the steps between


def test_the_length_follows_its_schedule():
    source = imagination(settings={"rollout_lengths": (1, 5), "rollout_schedule": (10, 50)})
    lengths = [source.advance(step)["imagined/length"] for step in range(0, 90, 10)]
    assert lengths == [1, 1, 2, 3, 4, 5, 5, 5, 5]
    assert held(source)["state"].unique().tolist() == [0, 2, 4, 6, 8]
    assert len(source) == 20 * sum(lengths)


# -- how much is kept


def decisions_in(source):
    """Which decision of its branch each transition is: by 2 a decision from 0, chunks of 2."""
    return (held(source)["state"] / 2).int()


@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize("length", [1, 15])
def test_every_decision_of_a_branch_can_be_drawn_alike(length, keep):
    """The published sizes: 40 branches a step, a training every 250 steps."""
    source = imagination(
        settings={
            "model_every": 250,
            "rollouts_per_step": 40,
            "rollout_lengths": (length, length),
            "imagined_keep": keep,
        }
    )
    for training in range(1, 4):
        source.advance(250 * training)
        rows = min(training, keep) * 10_000
        assert decisions_in(source).bincount().tolist() == [rows] * length
    drawn = source.sample(30_000, Generator().manual_seed(0)).obs["state"][:, 0] / 2
    shares = drawn.int().bincount(minlength=length) / 30_000
    torch.testing.assert_close(shares, torch.full((length,), 1 / length), atol=0.006, rtol=0)


def test_a_longer_schedule_makes_room_and_keeps_the_newest_trainings_whole():
    """Of each training 20 branches, 1 to 4 decisions long; those of two trainings are kept."""
    source = imagination(
        settings={"rollout_lengths": (1, 4), "rollout_schedule": (0, 30), "imagined_keep": 2}
    )
    found = []
    for step in range(0, 60, 10):
        source.real.states = torch.tensor([100.0 * step])  # says which training
        source.advance(step)
        state = held(source)["state"]
        found.append([int((state // 1000 == k).sum()) for k in range(6)])
    assert found == [
        [20, 0, 0, 0, 0, 0],
        [20, 40, 0, 0, 0, 0],
        [0, 40, 60, 0, 0, 0],
        [0, 0, 60, 80, 0, 0],
        [0, 0, 0, 80, 80, 0],
        [0, 0, 0, 0, 80, 80],
    ]


def test_branches_that_end_leave_no_room_to_older_trainings():
    """Bound 4: the second decision terminates. What is held is the newest training alone."""
    source = imagination(Linear(bound=4), settings={"rollout_lengths": (9, 9), "imagined_keep": 1})
    for step in (0, 10, 20):
        metrics = source.advance(step)
        assert decisions_in(source).bincount().tolist() == [20, 20]
        assert metrics["imagined/held"] == 40


def test_a_fixed_capacity_counts_transitions():
    source = imagination(settings={"rollout_lengths": (4, 4), "imagined_capacity": 50})
    source.advance(0)
    assert decisions_in(source).bincount().tolist() == [0, 10, 20, 20]  # 80, less the first 30


def test_its_share_of_a_batch():
    real, source = Real(-1.0), imagination()
    mixture = Mixture(
        [Share("offline", real, 0.5), Share("online", real, 0.3), Share("imagined", source, 0.2)]
    )
    assert mixture.counts(16) == {"offline": 10, "online": 6}  # while nothing is imagined
    source.advance(0)
    assert mixture.counts(20) == {"offline": 10, "online": 6, "imagined": 4}
    batch = mixture.sample(20, Generator().manual_seed(0))
    assert (batch.obs["state"][:, 0] == -1).tolist() == [True] * 16 + [False] * 4
    assert (batch.key >= 0).tolist() == [True] * 16 + [False] * 4


def test_starts_come_from_the_real_data_in_its_shares():
    real = Mixture([Share("offline", Real(7.0), 0.25), Share("online", Real(9.0), 0.75)])
    source = imagination(real=real)
    source.imagine(40, 1)
    assert sorted(held(source)["state"].tolist()) == [7.0] * 10 + [9.0] * 30


class Weight:
    """Something that is saved along."""

    def __init__(self):
        self.value = torch.zeros(1)

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"].clone()


SIZES = [
    {"imagined_capacity": 37},
    {"imagined_keep": 1},
    {"imagined_keep": 3, "rollout_lengths": (1, 4), "rollout_schedule": (10, 70)},
]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("at", [0, 14, 60])
def test_it_goes_on_bit_for_bit(at, size):
    def make():
        weight = Weight()

        def fit(step):
            weight.value = weight.value + step
            return {"model/loss": float(weight.value)}

        return imagination(
            Linear(bound=1.5, noise=0.3),
            Constant(random=True),
            Real(*torch.linspace(-1, 1, 50).tolist()),
            fit=fit,
            parts={"weight": weight},
            settings={"rollout_lengths": (3, 3)} | size,
        )

    whole, first, resumed = make(), make(), make()
    expected = [whole.advance(step) for step in range(100)]
    rows = [first.advance(step) for step in range(at)]
    state = copy.deepcopy(first.state_dict())
    first.advance(1_000)  # must not reach what was saved
    resumed.load_state_dict(state)
    rows += [resumed.advance(step) for step in range(at, 100)]
    assert rows == expected
    one = whole.sample(99, Generator().manual_seed(3))
    two = resumed.sample(99, Generator().manual_seed(3))
    for name in ("act", "reward", "discount"):
        assert torch.equal(getattr(one, name), getattr(two, name))
    assert torch.equal(one.obs["state"], two.obs["state"])


def test_a_state_of_other_settings_is_refused():
    saved = imagination(settings={"imagined_capacity": 1000}).state_dict()
    with pytest.raises(InputError, match="imagined_capacity 1000, this run has 5"):
        imagination(settings={"imagined_capacity": 5}).load_state_dict(saved)
    with pytest.raises(InputError, match="imagined_capacity 1000, this run has None"):
        imagination().load_state_dict(saved)
    saved = imagination().state_dict()
    with pytest.raises(InputError, match=r"action_chunk \[2, 1\], this run has \[3, 1\]"):
        imagination(policy=Constant((0.0, 0.0, 0.0))).load_state_dict(saved)


def test_divergence_is_one_line():
    class Wild(Linear):
        def predict(self, state, act, generator):
            return Prediction(state * float("inf"), state[:, 0], state[:, 0] > 0)

    with pytest.raises(InputError, match="NaN or infinite numbers: try a smaller --model-lr"):
        imagination(Wild(), real=Real(1.0)).advance(0)


def test_many_branches_are_few_calls():
    model = Linear()
    source = imagination(model, settings={"imagined_capacity": 100_000})
    source.imagine(10_000, 3)
    assert model.rows == [10_000] * 6 and len(source) == 30_000
    model.rows.clear()
    source.rows_at_once = 4_000
    source.imagine(10_000, 1)
    assert model.rows == [4_000, 4_000, 4_000, 4_000, 2_000, 2_000]
