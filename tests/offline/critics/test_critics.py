import copy
import math

import numpy as np
import pytest
import torch
from toy_data import ListEpisodes, line_data, spec

from offline.critics.calql import CalQL, actor_loss, calibrated, cql_gap, next_value
from offline.critics.iql import IQL, expectile_loss
from offline.critics.td import td_loss, td_target, track
from offline.critics.train_value import ValueConfig, train_value
from offline.critics.value import ValueFunction
from offline.critics.value_report import auc
from offline.data.batch import Batch
from offline.errors import InputError

SMALL = {"hidden": (32, 32), "batch_size": 64, "action_chunk": 2, "log_every": 50}


def test_expectile_loss_by_hand():
    loss = expectile_loss(torch.tensor([-2.0, 0.0, 2.0]), 0.7)
    torch.testing.assert_close(loss, torch.tensor([0.3 * 4, 0, 0.7 * 4]))
    torch.testing.assert_close(expectile_loss(torch.tensor([3.0]), 0.5), torch.tensor([4.5]))


def test_expectile_minimiser_of_two_points():
    """For u in {0, 1}, the tau-expectile is tau."""
    v = torch.linspace(0, 1, 1001)
    loss = expectile_loss(0 - v, 0.7) + expectile_loss(1 - v, 0.7)
    assert abs(v[loss.argmin()].item() - 0.7) < 2e-3


def test_td_target_by_hand():
    next_q = torch.tensor([[[-3.0, -5.0], [-1.0, -2.0]], [[-6.0, -4.0], [-9.0, -1.0]]])
    # the best action of each head: (-3, -1) and (-4, -1); the lesser head: (-4, -1)
    y = td_target(torch.tensor([-1.0, 0.0]), torch.tensor([0.5, 0.0]), next_value(next_q))
    torch.testing.assert_close(y, torch.tensor([-3.0, 0.0]))
    torch.testing.assert_close(td_loss(torch.tensor([[-1.0, 0.0]]), y), torch.tensor([[2.0, 0.0]]))


def test_cql_gap_by_hand():
    q = torch.tensor([[[0.0, math.log(3)]]])  # densities 1/2 and 1/4
    density = torch.tensor([[math.log(0.5), math.log(0.25)]])
    gap = cql_gap(q, density, torch.tensor([[1.0]]))
    torch.testing.assert_close(gap, torch.tensor([[math.log(2 + 12) - 1]]))


def test_calibration_by_hand():
    q = torch.tensor([[[-10.0, -2.0]], [[-4.0, -6.0]]], requires_grad=True)
    floored = calibrated(q, torch.tensor([-5.0]))
    torch.testing.assert_close(floored.detach(), torch.tensor([[[-5.0, -2.0]], [[-4.0, -5.0]]]))
    floored.sum().backward()  # values below the return are not pushed further down
    torch.testing.assert_close(q.grad, torch.tensor([[[0.0, 1.0]], [[1.0, 0.0]]]))


def test_actor_loss_by_hand():
    loss = actor_loss(torch.tensor([[-1.0], [-3.0]]), torch.tensor([2.0]), 0.5)
    torch.testing.assert_close(loss, torch.tensor([4.0]))


def batch_of(size=8, discount=0.9):
    generator = torch.Generator().manual_seed(3)
    draw = lambda *shape: torch.rand(*shape, generator=generator) * 2 - 1  # noqa: E731
    return Batch(
        obs={"state": draw(size, 3)},
        act=draw(size, 2, 1),
        reward=-torch.ones(size),
        next_obs={"state": draw(size, 3)},
        discount=torch.full((size,), discount),
        mc_return=torch.full((size,), -5.0),
        success=torch.ones(size),
    )


def value_of():
    torch.manual_seed(0)
    return ValueFunction(spec().with_chunk(2), {"state": (3,)}, hidden=(16, 16))


@pytest.mark.parametrize("learner", [CalQL, IQL])
def test_only_the_average_moves_the_target(learner):
    agent = learner(value_of(), ValueConfig(hidden=(16, 16), target_rate=0.25))
    before = copy.deepcopy(agent.target.state_dict())
    agent.update(batch_of(), torch.Generator().manual_seed(0))
    after, online = agent.target.state_dict(), agent.critic.state_dict()
    moved = 0
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor + 0.25 * (online[name] - tensor))
        moved += not torch.equal(after[name], tensor)
    assert moved > 5


@pytest.mark.parametrize("learner", [CalQL, IQL])
def test_nothing_is_bootstrapped_through_the_end(learner):
    """With discount 0 the critic must not depend on what follows."""
    results = []
    for scale in (1.0, -3.0):
        batch = batch_of(discount=0.0)
        batch.next_obs["state"].mul_(scale)
        agent = learner(value_of(), ValueConfig(hidden=(16, 16), cql_alpha=0.0))
        agent.update(batch, torch.Generator().manual_seed(0))
        results.append(agent.critic(batch.obs, batch.act[:, None]).detach())
    torch.testing.assert_close(*results)


def test_track_moves_by_the_rate():
    a, b = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    with torch.no_grad():
        for p in a.parameters():
            p.fill_(1.0)
        for p in b.parameters():
            p.fill_(3.0)
    track(a, b, 0.25)
    assert all(p.item() == 1.5 for p in a.parameters())


def ranks_good_first(value, chunk=2):
    """Share of states where heading for 0 scores above heading away, and above standing still."""
    x = torch.cat([torch.linspace(-0.9, -0.4, 6), torch.linspace(0.4, 0.9, 6)])[:, None]
    moves = torch.tensor([1.0, -1.0, 0.0]) * 1.2
    raw = -x.sign()[:, :, None] * moves[None, :, None]
    act = value.spec.normalize(raw)[:, :, None].expand(-1, -1, chunk, -1)
    with torch.no_grad():
        q = value({"state": x}, act).amin(0)
    return (q[:, :1] > q[:, 1:]).float().mean().item()


@pytest.mark.parametrize(("critic", "steps"), [("calql", 200), ("iql", 400)])
def test_good_actions_rank_first(critic, steps):
    rows = []
    rates = {"target_rate": 0.05, "lr": 2e-3, "actor_lr": 1e-3}
    value = train_value(
        line_data(80),
        ValueConfig(critic=critic, steps=steps, discount=0.9, **rates, **SMALL),
        log=lambda step, metrics: rows.append((step, metrics)),
    )
    assert ranks_good_first(value) > 0.9
    assert [step for step, _ in rows] == list(range(50, steps + 1, 50))
    last = rows[-1][1]
    assert last["value/auc_success"] > 0.6 and last["value/rank_correlation"] > 0.5
    assert abs(last["value/bias"]) < 4 and value.meta["steps"] == steps


def test_the_seed_decides():
    config = ValueConfig(steps=3, **SMALL)
    data = line_data(20)
    one, two = train_value(data, config), train_value(data, config)
    for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    other = train_value(data, ValueConfig(steps=3, seed=1, **SMALL))
    assert not torch.equal(one.heads.obs_in.weight, other.heads.obs_in.weight)


@pytest.mark.parametrize("critic", ["calql", "iql"])
def test_images_and_language_train(critic):
    data = line_data(12, image=True, language="go to the middle")
    config = ValueConfig(
        critic=critic, steps=2, image_keys=("camera",), random_shift=1, **SMALL | {"batch_size": 8}
    )
    value = train_value(data, config, language=lambda text: torch.ones(4))
    assert value.obs_shapes == {"camera": (16, 16, 3), "language": (4,)}
    assert value.meta["instructions"] == ["go to the middle"]


def test_stopping_early_keeps_what_was_learnt():
    asked = []
    value = train_value(
        line_data(20),
        ValueConfig(steps=1000, **SMALL),
        stop=lambda: bool(asked.append(0)) or len(asked) > 7,
    )
    assert value.meta["steps"] == 7


def test_a_dataset_without_success_is_refused():
    data = line_data(40)
    failures = ListEpisodes([e for e in data if not e.success], data.spec)
    with pytest.raises(InputError, match="none of the .* succeeded"):
        train_value(failures, ValueConfig(steps=1, **SMALL))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"discount": 1.0}, "--discount must be below 1, received 1.0"),
        ({"action_chunk": 0}, "--action-chunk must be at least 1"),
        ({"ensemble": 11}, "--ensemble must be at most 10"),
        ({"image_keys": ("state",)}, r'--image-keys: "state" is no image but has shape \(\d+,\)'),
        ({"image_keys": ("sate",)}, 'no observation "sate". Did you mean "state"'),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        train_value(line_data(10), ValueConfig(**options))


def test_several_instructions_without_language_are_mentioned():
    episodes = [*line_data(8, language="left"), *line_data(8, language="right")]
    with pytest.warns(UserWarning, match="2 instructions"):
        train_value(ListEpisodes(episodes, spec()), ValueConfig(steps=1, **SMALL))


def test_auc_by_hand():
    scores, won = np.array([1.0, 2.0, 2.0, 3.0]), np.array([False, True, False, True])
    assert auc(scores, won) == pytest.approx(3.5 / 4)
    assert math.isnan(auc(scores, np.ones(4, bool)))
