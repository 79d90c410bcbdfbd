"""Steered chains against chains whose optimum is known: linear Gaussian ones, in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDIMScheduler
from tiny_models import SCHEDULE

from diffusion import steered_chain
from diffusion.chain import sample_chain
from diffusion.errors import InputError
from diffusion.flow import flow_process
from diffusion.process import ReverseProcess, reverse_process
from diffusion.steered_chain import Stage, pruning, resampling, stage_at, steer_chains
from genpol.steering.keep import best, resampled

T, SPREAD = 10, 0.8  # steps; standard deviation of the data
PROCESS = reverse_process(DDIMScheduler(**SCHEDULE), T)
THREE = (0.7, 0.4, 0.2)


def predict(x, t, cond):
    """The exact noise of data N(0, SPREAD^2): linear in x."""
    step = (PROCESS.timesteps[None] == t[:, None].cpu()).long().argmax(1)
    a, s = PROCESS.sqrt_alpha[step].float()[:, None], PROCESS.sqrt_noise[step].float()[:, None]
    return x * s / (a**2 * SPREAD**2 + s**2)


def ends() -> tuple[list[float], list[float]]:
    """Mean slope and variance of x_0 given x after each number of steps."""
    slopes = []
    for i in range(T):
        a, s = float(PROCESS.sqrt_alpha[i]), float(PROCESS.sqrt_noise[i])
        eps = s / (a**2 * SPREAD**2 + s**2)
        slopes.append(
            float(PROCESS.c_x0[i]) * (1 - s * eps) / a
            + float(PROCESS.c_eps[i]) * eps
            + float(PROCESS.c_xt[i])
        )
    mean, variance = [1.0], [0.0]
    for i in reversed(range(T)):
        variance.append(variance[-1] + (mean[-1] * float(PROCESS.std[i])) ** 2)
        mean.append(mean[-1] * slopes[i])
    return mean[::-1], variance[::-1]


SLOPE, VARIANCE = ends()
PRIOR = SLOPE[0] ** 2 + VARIANCE[0]  # of x_0, whose first noise is N(0, 1)


def gens(count: int, width: int, seed: int = 0) -> list[list[torch.Generator]]:
    return [
        [torch.Generator().manual_seed(seed + i * width + k) for k in range(width)]
        for i in range(count)
    ]


def drawn(value, stages, keep, count, width, **rest):
    batch = rest.pop("batch", 4096)
    options = {"batch": batch, "choosers": [torch.Generator().manual_seed(i) for i in range(count)]}
    return steer_chains(
        rest.pop("predict", predict),
        rest.pop("process", PROCESS),
        {},
        (1,),
        rest.pop("generators", None) or gens(count, width),
        value,
        stages,
        keep,
        **options,
    )


def tilted(curve: float, slope: float, temperature: float):
    """Mean and variance of pi(x_0) exp(R / temperature), R = slope x - curve x^2 / 2, and the
    value temperature log E[exp(R / temperature) | x_t], which is exact."""
    precision = 1 / PRIOR + curve / temperature

    def value(x, done, rows, x0):
        m, v = SLOPE[done] * x[:, 0].double(), VARIANCE[done]
        a, b = slope / temperature, curve / temperature
        d = 1 + b * v
        log = (a * m + a * a * v / 2 - b * m * m / 2) / d - math.log(d) / 2
        return temperature * log

    return slope / temperature / precision, 1 / precision, value


def many(value, keep, n: int, width: int, monkeypatch) -> torch.Tensor:
    """Samples of n resampled chains, whose noise is drawn at once: only its law matters here."""

    def at_once(shape, generators, like):
        return torch.randn(len(generators), *shape, generator=generators[0])

    monkeypatch.setattr(steered_chain, "draw", at_once)
    one = torch.Generator().manual_seed(0)
    stages, streams = resampling(THREE, width, PROCESS), [[one] * width] * n
    return drawn(value, stages, keep, n, width, generators=streams).sample[:, 0]


@pytest.mark.parametrize(("curve", "slope"), [(0.0, 1.0), (1.5, 0.5)])
def test_resampling_by_the_exact_value_draws_the_tilted_distribution(curve, slope, monkeypatch):
    temperature, n = 0.7, 800
    mean, variance, value = tilted(curve, slope, temperature)
    x = many(value, resampled(temperature), n, 64, monkeypatch)  # few chains tilt too little
    assert float(x.mean()) == pytest.approx(mean, abs=4 * math.sqrt(variance / n) + 0.02)
    assert float(x.var()) == pytest.approx(variance, rel=4 * math.sqrt(2 / n) + 0.03)
    assert abs(mean) > 5 * math.sqrt(variance / n)  # so the tilt is no accident


def test_a_value_that_is_wrong_on_the_way_still_draws_the_tilted_distribution(monkeypatch):
    """Only the value at the end is the target; on the way it may be anything."""
    temperature, n = 0.7, 800
    mean, variance, exact = tilted(0.0, 1.0, temperature)

    def value(x, done, rows, x0):
        return exact(x, done, rows, x0) if done == T else 0.5 * x[:, 0].double().sin()

    x = many(value, resampled(temperature), n, 32, monkeypatch)
    assert float(x.mean()) == pytest.approx(mean, abs=4 * math.sqrt(variance / n) + 0.03)


def test_weights_of_the_whole_value_would_tilt_too_far(monkeypatch):
    """Why weights are increments: the whole value at each of four stages counts it four times."""
    temperature, n = 0.7, 200
    mean, variance, value = tilted(0.0, 1.0, temperature)
    rule = resampled(temperature)

    def whole(now, before, count, generators):
        return rule(now, torch.zeros_like(before), count, generators)

    x = many(value, whole, n, 32, monkeypatch)
    assert float(x.mean()) > 1.5 * mean > mean + 4 * math.sqrt(variance / n)


def ode_end(x, done, rows, x0):
    """The sample that a chain without noise will reach: a perfect value for R = x."""
    return x[:, 0] * TO_END[done]


ODE = reverse_process(DDIMScheduler(**SCHEDULE), T, eta=0.0)


def to_end() -> list[float]:
    x, found = torch.ones(1, 1), [1.0]
    for i in range(T):
        step = torch.tensor([i])
        x = ODE.mean(predict(x, ODE.timesteps_at(step), {}), x, step)
        found.append(float(x))
    return [found[-1] / value for value in found]


TO_END = to_end()


def test_pruning_by_a_perfect_value_is_the_best_of_k_at_half_its_evaluations():
    n, k, passes = 50, 8, []

    def counted(x, t, cond):
        passes.append(len(x))
        return predict(x, t, cond)

    stages = pruning(THREE, k, T)
    assert stages == [Stage(3, 4), Stage(6, 2), Stage(8, 1)]
    found = drawn(ode_end, stages, best(), n, k, process=ODE, predict=counted)
    flat = [g for row in gens(n, k) for g in row]
    every = sample_chain(predict, ODE, {}, (1,), flat).sample.view(n, k)
    torch.testing.assert_close(found.sample[:, 0], every.max(1).values, rtol=1e-5, atol=1e-6)
    assert torch.equal(found.candidate, every.argmax(1)) and not found.copied.any()
    assert sum(passes) == n * (8 * 3 + 4 * 3 + 2 * 2 + 2) == n * 42  # best of 8: 80
    assert found.value_calls == n * (8 + 4 + 2)
    torch.testing.assert_close(found.values[:, 2], found.sample[:, 0], rtol=1e-4, atol=1e-5)
    assert (found.values >= found.mean_values).all()


def test_one_candidate_is_the_plain_chain_bit_for_bit():
    found = drawn(ode_end, [], best(), 3, 1)
    plain = sample_chain(predict, PROCESS, {}, (1,), [g for (g,) in gens(3, 1)])
    assert torch.equal(found.sample, plain.sample)


@pytest.mark.parametrize("how", ["prune", "resample"])
def test_a_sample_does_not_depend_on_its_batch(how):
    stages = pruning(THREE, 8, T) if how == "prune" else resampling(THREE, 8, PROCESS)
    keep = best() if how == "prune" else resampled(0.3)
    whole, parts = (drawn(ode_end, stages, keep, 6, 8, batch=b) for b in (64, 5))
    assert torch.equal(whole.sample, parts.sample)
    alone = drawn(ode_end, stages, keep, 1, 8)
    assert torch.equal(whole.sample[:1], alone.sample)


def test_a_survivor_of_pruning_is_its_own_generators_chain():
    found = drawn(ode_end, pruning(THREE, 8, T), best(), 5, 8)
    ones = [row[k] for row, k in zip(gens(5, 8), found.candidate.tolist(), strict=True)]
    assert torch.equal(found.sample, sample_chain(predict, PROCESS, {}, (1,), ones).sample)
    assert len(set(found.candidate.tolist())) > 1


def test_copies_part_and_those_that_are_none_keep_their_stream():
    """One chain is copied into all eight; afterwards they are eight chains."""
    seen = []

    def value(x, done, rows, x0):
        seen.append(x[:, 0].clone())
        return x[:, 0] if done == 3 else torch.zeros(len(x))

    def first(now, before, count, generators):
        return now.argmax(1, keepdim=True).expand(-1, count)

    stages = [Stage(3, 8), Stage(6, 8), Stage(T, 1)]
    found = drawn(value, stages, first, 1, 8)
    assert len(set(seen[1].tolist())) == 8 and len(set(seen[0].tolist())) == 8
    assert not found.copied[0]  # argmax of zeros is the first one, which kept its stream
    own = gens(1, 8)[0][int(found.candidate)]
    assert torch.equal(found.sample, sample_chain(predict, PROCESS, {}, (1,), [own]).sample)


def test_what_the_last_step_took_for_the_sample_comes_with_the_chain():
    asked = []

    def value(x, done, rows, x0):
        asked.append((done, None if x0 is None else x0.clone(), rows.tolist(), x.clone()))
        return x[:, 0]

    drawn(value, [Stage(0, 2), Stage(T, 1)], best(), 2, 3, process=ODE)
    (_, noise, rows, _), (done, x0, rows_later, x) = asked
    assert noise is None and rows == [0, 0, 0, 1, 1, 1]
    assert done == T and rows_later == [0, 0, 1, 1]
    assert x0.shape == x.shape and float((x0 - x).abs().max()) < 0.1  # nearly clean at the end


@pytest.mark.parametrize(
    ("shares", "candidates", "left"),
    [
        (THREE, 8, [4, 2, 1]),
        (THREE, 16, [6, 3, 1]),
        ((0.5,), 8, [1]),
        ((0.9, 0.7, 0.5, 0.3), 5, [4, 3, 2, 1]),
        ((1.0, 0.5, 0.0), 27, [9, 3, 1]),
    ],
)
def test_fewer_remain_at_every_stage(shares, candidates, left):
    assert [stage.keep for stage in pruning(shares, candidates, 20)] == left


def test_shares_are_steps_that_remain():
    assert [stage_at(share, 10) for share in (1, 0.7, 0.65, 0.4, 0.2, 0)] == [0, 3, 4, 6, 8, 10]
    assert stage_at(0.1, 50) == 45 and stage_at(1 / 3, 3) == 2


@pytest.mark.parametrize(
    ("shares", "candidates", "said"),
    [
        ((), 8, "names no stage"),
        ((0.4, 0.7), 8, "less than the one before"),
        ((0.4, 0.4), 8, "less than the one before"),
        ((1.2, 0.4), 8, "from 1 to 0"),
        ((math.nan, 0.4), 8, "from 1 to 0"),
        ((0.7, 0.65), 8, None),
        ((0.7, 0.69), 8, None),
        ((0.69, 0.65), 8, "the same step"),
        ((0.7, 0.4, 0.2), 3, "at most 2 times"),
        ((0.7,), 1, "at most 0 times"),
    ],
)
def test_shares_that_cannot_be_are_refused(shares, candidates, said):
    if said is None:
        assert len(pruning(shares, candidates, T)) == len(shares)
        return
    with pytest.raises(InputError, match=said):
        pruning(shares, candidates, T)


def test_resampling_needs_noise_behind_it():
    ode: ReverseProcess = ODE
    with pytest.raises(InputError, match="copies would stay identical"):
        resampling(THREE, 8, ode)
    from diffusers import FlowMatchEulerDiscreteScheduler

    flow = flow_process(FlowMatchEulerDiscreteScheduler(), 10, "ode")
    with pytest.raises(InputError, match="--sampler cps"):
        resampling(THREE, 8, flow)
    noisy = flow_process(FlowMatchEulerDiscreteScheduler(), 10, "cps")
    assert resampling(THREE, 8, noisy)[-1] == Stage(10, 1)
    with pytest.raises(InputError, match="0.1 remains"):  # its last step draws none
        resampling((0.5, 0.1), 8, noisy)


def test_more_than_one_chain_at_the_end_is_an_error():
    with pytest.raises(ValueError, match="leave one"):
        drawn(ode_end, [Stage(3, 2)], best(), 1, 8)
