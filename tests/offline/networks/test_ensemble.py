"""Stacked critic heads: the same functions as separate ones, any few of them, in bfloat16."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from toy_data import spec

from offline.critics.calql import CalQL
from offline.critics.iql import IQL
from offline.critics.value import ValueFunction
from offline.critics.value_config import ValueConfig
from offline.data.batch import Batch
from offline.errors import SpecError
from offline.networks.ensemble import StackedHeads
from offline.networks.heads import CriticHeads

F, A, HIDDEN, E = 7, 6, (32, 16), 5


def heads(dtype="float32", hidden=HIDDEN, ensemble=E):
    torch.manual_seed(0)
    made = StackedHeads(F, A, hidden, ensemble, dtype)
    with torch.no_grad():  # a LayerNorm that does something
        for parameter in (*made.scales, *made.shifts):
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return made


def inputs(rows=4, candidates=3):
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(rows, F, generator=generator)
    return features, torch.rand(rows, candidates, 2, 3, generator=generator) * 2 - 1


def separate(stacked: StackedHeads) -> CriticHeads:
    """The same functions as modules."""
    same = CriticHeads(F, A, HIDDEN, E)
    with torch.no_grad():
        same.obs_in.weight.copy_(stacked.obs_weight)
        same.obs_in.bias.copy_(stacked.obs_bias)
        for e, head in enumerate(same.heads):
            head.act_in.weight.copy_(stacked.act_weight[e])
            for i, (layer, norm) in enumerate(zip(head.layers, head.norms, strict=True)):
                layer.weight.copy_(stacked.weights[i][e])
                layer.bias.copy_(stacked.biases[i][e])
                norm.weight.copy_(stacked.scales[i][e])
                norm.bias.copy_(stacked.shifts[i][e])
    return same


@pytest.mark.parametrize(("rows", "candidates"), [(4, 1), (4, 6), (1, 3)])
@pytest.mark.parametrize("method", ["_looped", "_batched"])
def test_both_ways_of_running_are_the_separate_heads(method, rows, candidates):
    stacked, (features, act) = heads(), inputs(rows, candidates)
    expected = separate(stacked)
    q = expected(expected.project(features), act)
    state = stacked.project(features).unflatten(-1, (E, -1))
    run = getattr(stacked, method)
    torch.testing.assert_close(run(state, act.flatten(2), None), q, rtol=1e-5, atol=1e-5)
    which = torch.tensor([4, 1])
    few = run(state[:, which], act.flatten(2), which)
    torch.testing.assert_close(few, q[which], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("candidates", [1, 6])
def test_the_gradients_are_those_of_separate_heads(candidates):
    stacked, (features, act) = heads(), inputs(4, candidates)
    expected = separate(stacked)
    for method in ("_looped", "_batched"):
        stacked.zero_grad(), expected.zero_grad()
        state = stacked.project(features).unflatten(-1, (E, -1))
        getattr(stacked, method)(state, act.flatten(2), None).square().sum().backward()
        expected(expected.project(features), act).square().sum().backward()
        torch.testing.assert_close(stacked.obs_weight.grad, expected.obs_in.weight.grad)
        for e, head in enumerate(expected.heads):
            torch.testing.assert_close(stacked.act_weight.grad[e], head.act_in.weight.grad)
            for i, (layer, norm) in enumerate(zip(head.layers, head.norms, strict=True)):
                torch.testing.assert_close(stacked.weights[i].grad[e], layer.weight.grad)
                torch.testing.assert_close(stacked.biases[i].grad[e], layer.bias.grad)
                torch.testing.assert_close(stacked.scales[i].grad[e], norm.weight.grad)
                torch.testing.assert_close(stacked.shifts[i].grad[e], norm.bias.grad)


def test_the_initial_distribution_is_that_of_separate_heads():
    torch.manual_seed(0)
    stacked, modules = StackedHeads(40, 24, (200, 100), 6), CriticHeads(40, 24, (200, 100), 6)
    pairs = [
        (stacked.obs_weight, [modules.obs_in.weight], 64),
        (stacked.obs_bias, [modules.obs_in.bias], 64),
        (stacked.act_weight, [h.act_in.weight for h in modules.heads], 64),
        (stacked.weights[0], [h.layers[0].weight for h in modules.heads], 200),
        (stacked.biases[0], [h.layers[0].bias for h in modules.heads], 200),
        (stacked.weights[1], [h.layers[1].weight for h in modules.heads], 100),
    ]
    for ours, theirs, fan_in in pairs:
        bound = 1 / math.sqrt(fan_in)
        values = torch.cat([p.flatten() for p in theirs])
        assert ours.numel() == values.numel()
        for sample in (ours.flatten(), values):  # U(-bound, bound) has std bound / sqrt(3)
            assert 0.95 * bound < sample.abs().max().item() <= bound
            assert sample.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)
    assert all(bool((p == 1).all()) for p in stacked.scales)
    assert all(bool((p == 0).all()) for p in stacked.shifts)
    assert sum(p.numel() for p in stacked.parameters()) == sum(
        p.numel() for p in modules.parameters()
    )


def value_of(heads="stacked", **rest):
    torch.manual_seed(0)
    shapes = {"state": (3,)}
    return ValueFunction(
        spec(3).with_chunk(2), shapes, hidden=HIDDEN, ensemble=E, heads=heads, **rest
    )


@pytest.mark.parametrize("heads", ["stacked", "separate"])
def test_a_few_heads_are_those_rows_of_all(heads):
    value, obs, act = value_of(heads), {"state": torch.randn(4, 3)}, inputs(4, 6)[1]
    every, which = value(obs, act), torch.tensor([3, 0])
    features = value.encode(obs, which)
    assert features.shape == (4, 2 * 32) and value.ensemble == E
    few = value.score(features, act, which)
    assert few.shape == (2, 4, 6)
    torch.testing.assert_close(few, every[which], rtol=1e-5, atol=1e-6)


def test_heads_not_asked_for_are_not_run_nor_moved():
    value, which = value_of(), torch.tensor([1, 4])
    with torch.no_grad():  # would make every score NaN
        for e in (0, 2, 3):
            value.heads.weights[0][e] = float("nan")
    obs = {"state": torch.randn(4, 3)}
    q = value.score(value.encode(obs, which), inputs(4, 6)[1], which)
    assert torch.isfinite(q).all()
    q.sum().backward()
    moved = value.heads.weights[1].grad.abs().sum((1, 2)) > 0
    assert moved.tolist() == [False, True, False, False, True]


def test_separate_heads_learn_in_float32():
    with pytest.raises(SpecError, match='heads="stacked"'):
        value_of("separate", critic_dtype="bfloat16")


def test_without_layer_norm_each_head_is_linear_layers_and_relu(tmp_path):
    with pytest.raises(SpecError, match='heads="stacked" to go without'):
        value_of("separate", layer_norm=False)
    value = value_of(layer_norm=False)
    heads, act = value.heads, inputs(4, 6)[1]
    assert not any("scales" in name or "shifts" in name for name, _ in heads.named_parameters())
    features = torch.randn(4, 3)
    first = torch.cat([features[:, None].expand(-1, 6, -1), act.flatten(2)], dim=-1)
    for e in range(heads.ensemble):
        x = first @ heads.matrices()[0][e].T + heads.obs_bias.unflatten(0, (heads.ensemble, -1))[e]
        for weight, bias in zip(heads.weights, heads.biases, strict=True):
            x = x.relu() @ weight[e].T + bias[e]
        expected = heads(heads.project(features), act)[e]
        torch.testing.assert_close(x[..., 0], expected, rtol=1e-5, atol=1e-5)
    loaded = ValueFunction.load(value.save(tmp_path))
    assert loaded.architecture["layer_norm"] is False
    assert torch.equal(loaded.heads.obs_bias, heads.obs_bias)


def test_save_load_and_copy(tmp_path):
    value = value_of(critic_dtype="bfloat16")
    obs, act = {"state": torch.randn(4, 3)}, inputs(4, 6)[1]
    loaded = ValueFunction.load(value.save(tmp_path))
    assert loaded.architecture == value.architecture and isinstance(loaded.heads, StackedHeads)
    with torch.no_grad():
        assert torch.equal(loaded(obs, act), value(obs, act))
        other = copy.deepcopy(value)
        for parameter in value.parameters():
            parameter.zero_()
        assert torch.equal(loaded(obs, act), other(obs, act))


def test_bfloat16_is_for_learning_only():
    exact, low = heads(), heads("bfloat16")
    features, act = inputs(64, 1)
    q = exact(exact.project(features), act)
    learning = low(low.project(features), act)
    assert learning.dtype == torch.float32 and not torch.equal(learning, q)
    torch.testing.assert_close(learning, q, rtol=0.03, atol=0.03)
    with torch.no_grad():
        assert torch.equal(low(low.project(features), act), q)
    low.eval()
    assert torch.equal(low(low.project(features), act), q)


@pytest.mark.parametrize("method", ["_looped", "_batched"])
def test_bfloat16_gradients_point_the_same_way(method):
    features, act = inputs(64, 1)
    gradients = []
    for dtype in ("float32", "bfloat16"):
        made = heads(dtype)
        state = made.project(features).unflatten(-1, (E, -1))
        getattr(made, method)(state, act.flatten(2), None).square().sum().backward()
        assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in made.parameters())
        gradients.append(torch.cat([p.grad.flatten() for p in made.parameters()]))
    assert torch.cosine_similarity(*gradients, dim=0).item() > 0.999


@pytest.mark.parametrize("learner", [CalQL, IQL])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_offline_learners_train_stacked_heads(learner, dtype):
    generator = torch.Generator().manual_seed(3)
    state = torch.rand(64, 3, generator=generator)
    batch = Batch(
        obs={"state": state},
        act=torch.rand(64, 2, 3, generator=generator) * 2 - 1,
        reward=-state[:, 0],
        next_obs={"state": state},
        discount=torch.zeros(64),
        mc_return=-state[:, 0],
        success=torch.ones(64),
    )
    config = ValueConfig(hidden=HIDDEN, ensemble=E, lr=3e-3, cql_alpha=0.0)
    agent = learner(value_of(critic_dtype=dtype), config)
    losses = [float(agent.update(batch, generator)["critic/td_loss"]) for _ in range(150)]
    assert losses[-1] < 0.05 * losses[0]
