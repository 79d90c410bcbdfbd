"""VaGraM's weights against the definition, by hand, and when they are plain squared error."""

from __future__ import annotations

import pytest
import torch
from torch import Generator, Tensor, nn

from offline.critics.value import ValueFunction
from offline.errors import InputError
from offline.models.dynamics import Dynamics
from offline.models.model_training import ModelTraining
from offline.models.vagram import VaGraM, ValueGradient, clip_norms, vagram_weights, value_error
from offline.models.world_model import Prediction, StateLayout, Steps
from offline.models.world_model_config import WorldModelConfig
from offline.spec import ActionSpec

SPEC = ActionSpec.from_bounds([-1.0], [1.0], chunk=2)
SHAPES = {"b": (2,), "a": (1,)}
LAYOUT = StateLayout.of(SHAPES)


class Policy:
    """a = tanh(sum of the state), over and over; what it draws is added."""

    spec = SPEC

    def __init__(self, noise: float = 0.0) -> None:
        self.noise, self.asked = noise, []

    def sample(self, obs, n, generator):
        self.asked.append(len(obs["a"]))
        act = torch.tanh(torch.cat([obs["a"], obs["b"]], 1).sum(1))
        act = act[:, None, None, None].expand(-1, n, 3, 1)  # a longer chunk than is scored
        return act + self.noise * torch.randn(act.shape, generator=generator).to(act)


class LinearCritic(nn.Module):
    """Q_e = w_e . s + the sum of the actions, after a state of no use to it."""

    spec = SPEC

    def __init__(self, slopes: list[list[float]], layout: StateLayout = LAYOUT) -> None:
        super().__init__()
        self.layout = layout
        self.slopes = nn.Parameter(torch.tensor(slopes))
        self.ensemble = len(slopes)

    def encode(self, obs, which=None):
        slopes = self.slopes if which is None else self.slopes[which]
        return self.layout.flat(obs) @ slopes.T

    def score(self, features, act, which=None):
        return features.T[:, :, None] + act.sum((2, 3))


def critic(heads: str = "stacked", ensemble: int = 2, seed: int = 0) -> ValueFunction:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ValueFunction(SPEC, SHAPES, hidden=(16, 16), ensemble=ensemble, heads=heads)


def steps_of(next_state: Tensor, terminated: Tensor | None = None) -> Steps:
    count = len(next_state)
    return Steps(
        state=torch.zeros_like(next_state),
        act=torch.zeros(count, 1),
        reward=torch.zeros(count),
        next_state=next_state,
        terminated=torch.zeros(count) if terminated is None else terminated,
    )


def states(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, generator=Generator().manual_seed(seed))


def linear(*slopes: list[float]) -> ValueGradient:
    return ValueGradient(LinearCritic([list(s) for s in slopes]), Policy(), LAYOUT)


@pytest.mark.parametrize("heads", ["stacked", "separate"])
def test_the_loss_descends_as_its_definition_does(heads):
    """d/ds^' of mean_e sum_m (dV_e/ds'_m (s^'_m - s'_m))^2, both derivatives by differences."""
    value, policy = critic(heads).double(), Policy()
    true, guess = states(5).double(), states(5, seed=1).double()
    std = torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64)
    act = policy.sample(LAYOUT.split(true), 1, Generator())[:, 0, :2]

    def worth(state: Tensor) -> Tensor:  # the action stays what it is at the true state
        with torch.no_grad():
            return value(LAYOUT.split(state), act[:, None])[..., 0]

    def difference(function, state: Tensor, small: float = 1e-5) -> Tensor:
        """(..., N, D)."""
        moves = small * torch.eye(3, dtype=torch.float64)
        return torch.stack([function(state + m) - function(state - m) for m in moves], -1) / (
            2 * small
        )

    slopes = difference(worth, true)  # (E, N, D)

    def definition(state: Tensor) -> Tensor:
        return (slopes * (state - true)).square().sum(-1).mean(0)

    weights, _ = vagram_weights(
        ValueGradient(value, policy, LAYOUT), steps_of(true), std, 1.0, Generator()
    )
    guess.requires_grad_()
    loss = (weights * ((guess - true) / std).square()).sum(1)
    torch.testing.assert_close(loss, definition(guess.detach()), rtol=1e-6, atol=1e-9)
    (descent,) = torch.autograd.grad(loss.sum(), guess)
    expected = difference(definition, guess.detach())
    torch.testing.assert_close(descent, expected, rtol=1e-5, atol=1e-8)
    assert expected.abs().min() > 1e-6  # there is something to compare


def test_each_head_has_its_own_gradient():
    """Slopes (3, 0, 1) and (-3, 4, 1): squares average to (9, 8, 1). Accumulated slopes, or the
    slope of the mean, would give (4.5, 8, 1) and (0, 4, 1)."""
    weights, metrics = vagram_weights(
        linear([3.0, 0.0, 1.0], [-3.0, 4.0, 1.0]), steps_of(states(7)), torch.ones(3), 1.0, None
    )
    torch.testing.assert_close(weights, torch.tensor([9.0, 8.0, 1.0]).expand(7, 3))
    assert metrics["vagram/weight"] == pytest.approx(6.0)
    assert metrics["vagram/gradient_norm"] == pytest.approx((10**0.5 + 26**0.5) / 2)
    assert metrics["vagram/dimensions"] == pytest.approx(18**2 / (81 + 64 + 1))


def test_units_are_those_of_the_model():
    """An error of one std in dimension m is worth g_m std_m."""
    weights, _ = vagram_weights(
        linear([3.0, 0.5, 1.0]), steps_of(states(4)), torch.tensor([2.0, 2.0, 0.1]), 1.0, None
    )
    torch.testing.assert_close(weights, torch.tensor([36.0, 1.0, 0.01]).expand(4, 3))


@pytest.mark.parametrize("clip", [0.95, 1.0])
def test_a_unit_gradient_is_plain_squared_error(clip):
    """Exactly, with any signs, terminal rows among them, clipped or not."""
    steps = steps_of(states(50), (torch.arange(50) % 5 == 0).float())
    unit = linear([1.0, -1.0, 1.0], [-1.0, -1.0, 1.0], [1.0, 1.0, 1.0])
    weights, _ = vagram_weights(unit, steps, torch.ones(3), clip, None)
    assert torch.equal(weights, torch.ones(50, 3))
    # a unit of the standardised state
    std = torch.tensor([0.25, 2.0, 8.0])
    unit = linear([4.0, 0.5, -0.125])
    assert torch.equal(vagram_weights(unit, steps, std, clip, None)[0], torch.ones(50, 3))


def test_the_clip_really_clips():
    gradient = states(400) * torch.linspace(0.1, 10, 400)[:, None]
    clipped, bound = clip_norms(gradient, 0.9)
    norms = gradient.norm(dim=1)
    assert float(bound) == pytest.approx(float(norms.quantile(0.9)))
    assert clipped.norm(dim=1).max() <= bound * (1 + 1e-6) < norms.max()
    long = norms > bound
    assert int(long.sum()) == 40
    assert torch.equal(clipped[~long], gradient[~long])
    directions = nn.functional.cosine_similarity(clipped, gradient)
    torch.testing.assert_close(directions, torch.ones(400))
    assert torch.equal(clip_norms(torch.zeros(4, 3), 0.9)[0], torch.zeros(4, 3))


def test_norms_are_clipped_by_the_table_and_for_each_head():
    """Rows of a network's gradient weigh at most the quantile's square; batches do not matter."""
    value, steps = critic(ensemble=1), steps_of(4 * states(300))
    std = torch.tensor([1.0, 2.0, 0.5])
    free, _ = vagram_weights(ValueGradient(value, Policy(), LAYOUT), steps, std, 1.0, None)
    tight, metrics = vagram_weights(
        ValueGradient(value, Policy(), LAYOUT, rows=64), steps, std, 0.8, None
    )
    norms = free.sum(1).sqrt()
    bound = float(norms.quantile(0.8))
    assert metrics["vagram/gradient_norm"] == pytest.approx(bound, rel=1e-5)
    torch.testing.assert_close(tight.sum(1).sqrt(), norms.clamp(max=bound))
    assert float(norms.max()) > 1.05 * bound
    # two heads, one of them ten times as steep: neither's bound is the other's
    steep = linear([1.0, 0.0, 0.0], [0.0, 10.0, 0.0])
    weights, _ = vagram_weights(steep, steps, torch.ones(3), 0.5, None)
    torch.testing.assert_close(weights, torch.tensor([0.5, 50.0, 0.0]).expand(300, 3))


def test_terminal_rows_weigh_what_others_do_on_average():
    value, state = critic(), states(6)
    ended = torch.tensor([0.0, 1.0, 0.0, 0.0, 1.0, 0.0])
    values = ValueGradient(value, Policy(), LAYOUT)
    weights, _ = vagram_weights(values, steps_of(state, ended), torch.ones(3), 0.95, None)
    others, _ = vagram_weights(values, steps_of(state[ended == 0]), torch.ones(3), 0.95, None)
    torch.testing.assert_close(weights[ended == 0], others)
    torch.testing.assert_close(weights[ended == 1], others.mean(0).expand(2, 3))
    alone, metrics = vagram_weights(
        values, steps_of(state, torch.ones(6)), torch.ones(3), 0.9, None
    )
    assert torch.equal(alone, torch.ones(6, 3)) and metrics == {}


@pytest.mark.parametrize("heads", ["stacked", "separate"])
def test_the_critic_is_left_as_it_was(heads):
    value = critic(heads).train()
    value.encoder.eval()
    next(value.parameters()).requires_grad_(False)
    learning = [p.requires_grad for p in value.parameters()]
    modes = [m.training for m in value.modules()]
    first = list(value.parameters())[1]
    first.grad = torch.full_like(first, 7.0)
    weights, _ = vagram_weights(
        ValueGradient(value, Policy(), LAYOUT), steps_of(states(9)), torch.ones(3), 0.95, None
    )
    assert not weights.requires_grad
    assert [p.requires_grad for p in value.parameters()] == learning
    assert [m.training for m in value.modules()] == modes
    assert torch.equal(first.grad, torch.full_like(first, 7.0))
    assert all(p.grad is None for p in value.parameters() if p is not first)


def test_policies_are_asked_in_batches_with_the_generator_passed():
    policy = Policy(noise=1.0)
    values = ValueGradient(critic(), policy, LAYOUT, rows=4)
    first, second, other = (
        values.act(states(10), Generator().manual_seed(seed)) for seed in (3, 3, 4)
    )
    assert policy.asked[:3] == [4, 4, 2] and first.shape == (10, 2, 1)
    assert torch.equal(first, second) and not torch.equal(first, other)


def test_a_diverged_critic_is_refused():
    with pytest.raises(InputError, match="diverged"):
        vagram_weights(linear([float("nan"), 1, 1]), steps_of(states(3)), torch.ones(3), 0.9, None)


def test_the_warm_up_is_plain_squared_error():
    config = WorldModelConfig(vagram_warmup=100, vagram_clip=1.0)
    vagram, steps, std = VaGraM(linear([3.0, 0.0, 1.0]), config), steps_of(states(3)), torch.ones(3)

    def weights(at: VaGraM, step: int) -> Tensor:
        return at.weights(steps, std, step, None)

    expected = torch.tensor([9.0, 0.0, 1.0]).expand(3, 3)
    for step in (500, 599):  # counted from the first training
        assert torch.equal(weights(vagram, step), torch.ones(3, 3))
        assert vagram.metrics == {"vagram/active": 0.0}
    again = VaGraM(vagram.values, config)
    again.load_state_dict(vagram.state_dict())
    for resumed in (vagram, again):
        torch.testing.assert_close(weights(resumed, 600), expected)
        assert resumed.metrics["vagram/active"] == 1.0
    never = VaGraM(vagram.values, WorldModelConfig(vagram_warmup=0, vagram_clip=1.0))
    torch.testing.assert_close(weights(never, 0), expected)


class Off:
    """Predicts the true next state plus an error, and terminations as told."""

    layout = LAYOUT

    def __init__(self, steps: Steps, error: list[float], ended: list[bool]) -> None:
        self.steps, self.error, self.ended = steps, torch.tensor(error), torch.tensor(ended)

    def predict(self, state, act, generator):
        return Prediction(self.steps.next_state + self.error, self.steps.reward, self.ended)


def test_value_error_by_hand():
    """V_e = w_e . s + 2 tanh(sum s): the action follows the predicted state."""
    state = torch.tensor([[0.1, 0.0, 0.0], [0.0, 0.2, 0.0], [0.3, 0.0, 0.0], [0.0, 0.0, 0.4]])
    steps = steps_of(state, torch.tensor([0.0, 0.0, 1.0, 1.0]))
    model = Off(steps, [0.5, 0.0, -0.5], [False, True, False, True])
    values = linear([1.0, 0.0, 0.0], [0.0, 0.0, 2.0])
    metrics = value_error(model, values, steps, Generator().manual_seed(0))

    def both(x: list[float]) -> Tensor:
        act = 2 * torch.tensor(x).sum().tanh()
        return torch.stack([x[0] + act, 2 * x[2] + act])

    first = torch.tensor([0.5, -1.0])  # the sum of the state, and so the action, is the same
    second = -both([0.0, 0.2, 0.0])  # an end where there was none: its whole value
    third = both([0.8, 0.0, -0.5])  # an end that was missed: the value of what is made up instead
    errors = torch.stack([first, second, third, torch.zeros(2)])
    assert metrics["model/value_error"] == pytest.approx(float(errors.abs().mean()), rel=1e-5)
    true = torch.stack([both([0.1, 0.0, 0.0]), both([0.0, 0.2, 0.0]), *torch.zeros(2, 2)])
    assert metrics["model/value_error_relative"] == pytest.approx(
        float(errors.abs().mean() / true.std(0, correction=0).mean()), rel=1e-5
    )


def test_a_perfect_model_misses_no_value_even_if_the_policy_draws():
    steps = steps_of(states(50), (torch.arange(50) % 7 == 0).float())
    values = ValueGradient(critic(), Policy(noise=0.5), LAYOUT, rows=16)
    perfect = Off(steps, [0.0] * 3, (steps.terminated > 0).tolist())
    assert value_error(perfect, values, steps, Generator())["model/value_error"] == 0.0
    off = Off(steps, [0.1] * 3, (steps.terminated > 0).tolist())
    assert value_error(off, values, steps, Generator())["model/value_error"] > 0.0


def test_a_small_model_gets_right_what_the_value_depends_on():
    """Four hidden units, eight dimensions as hard as each other, one of which has value: plain
    squared error spends the units on all of them. Four models, so that no lucky start decides."""

    layout = StateLayout.of({"x": (8,)})

    class Idle:
        def sample(self, obs, n, generator):
            return torch.zeros(len(obs["x"]), n, 2, 1)

    def steps(count: int, seed: int) -> Steps:
        generator = Generator().manual_seed(seed)
        state = 4 * torch.rand(count, 8, generator=generator) - 2
        act = 2 * torch.rand(count, 1, generator=generator) - 1
        change = state.square() + 0.2 * act
        none = torch.zeros(count)
        return Steps(state, act, none, state + change, none)

    def never(state, act, following):
        return torch.zeros(len(state), dtype=torch.bool)

    config = WorldModelConfig(
        model_updates=300, model_batch_size=128, model_lr=1e-2, vagram_warmup=0
    )
    slopes = LinearCritic([[3.0] + [0.0] * 7, [1.0] + [0.0] * 7], layout)
    values = ValueGradient(slopes, Idle(), layout)
    vagram, found = VaGraM(values, config), {}
    for name in ("mse", "vagram"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = Dynamics(layout, 1, (4,), 4, 4, terminated=never)

        def weights(steps: Steps, model: Dynamics = model) -> Tensor:
            return vagram.weights(steps, model.delta_std, 0, None)

        ModelTraining(model, config).fit(
            steps(2000, 0), Generator().manual_seed(0), weights if name == "vagram" else None
        )
        error = value_error(model, values, steps(500, 1), Generator().manual_seed(0))
        found[name] = error["model/value_error_relative"]
    assert found["vagram"] < 0.4 * found["mse"]
