"""State trees come back from a checkpoint as they were, to the last bit and type."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from genpol.runs import checkpoints
from genpol.runs.state_tree import flatten, unflatten
from offline.errors import InputError


def through_files(tree, folder):
    tensors, document = flatten(tree)
    json.dumps(document, allow_nan=False)  # plain JSON, also for other readers
    # Named as data, which may be NaN: weights may not.
    named = {f"obs/{name}": value for name, value in tensors.items()}
    checkpoints.save(folder, 3, named, {"tree": document}, keep=1)
    _, tensors, state = checkpoints.latest(folder)
    tensors = {name.removeprefix("obs/"): value for name, value in tensors.items()}
    return unflatten(tensors, state["tree"])


def assert_same(a, b):
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert (
            torch.equal(a.contiguous().view(torch.uint8), b.view(torch.uint8))
            if a.ndim
            else (a.item() == b.item())
        )
    elif isinstance(a, (np.ndarray, np.generic)):
        assert a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    elif isinstance(a, dict):
        assert list(a) == list(b) and list(map(type, a)) == list(map(type, b))
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for one, two in zip(a, b, strict=True):
            assert_same(one, two)
    elif isinstance(a, float) and math.isnan(a):
        assert math.isnan(b)
    else:
        assert a == b


def test_every_kind_of_leaf_and_container(tmp_path):
    rng = np.random.default_rng(0)
    tree = {
        "none": None,
        "flags": [True, False],
        "numbers": (0, -1, 2**200, 0.1, -0.0, 5e-324, math.nan, math.inf, -math.inf),
        "text": 'a "quoted"\nline, é',
        "nested": [{"a": ({"b": []},)}, {}, [], ()],
        "tensors": {
            "float": torch.randn(2, 3),
            "bfloat16": torch.randn(5).to(torch.bfloat16),
            "nan": torch.tensor([math.nan, -0.0]),
            "bytes": torch.Generator().get_state(),
            "scalar": torch.tensor(7),
            "empty": torch.empty(0, 4),
            "bool": torch.tensor([True, False]),
        },
        "arrays": [np.arange(6).reshape(2, 3)[:, ::2], np.uint8([1]), np.zeros(()), rng.random(3)],
        "numpy numbers": [np.float32(0.1), np.float64(0.1), np.int64(-3), np.bool_(True)],
        "generator": rng.bit_generator.state,
        "mersenne": np.random.RandomState(1).get_state(),
        7: {"7": torch.ones(1), 7: torch.zeros(1)},
        "7": "text",
        "a/b": torch.ones(1),
        "a": {"b": torch.zeros(1)},
    }
    assert_same(through_files(tree, tmp_path), tree)


def test_tensors_that_share_memory_are_stored_apart(tmp_path):
    base = torch.arange(12.0)
    tree = {"whole": base, "again": base, "part": base[2:5], "columns": base.view(3, 4)[:, 1]}
    back = through_files(tree, tmp_path)
    assert_same(back, {key: value.contiguous() for key, value in tree.items()})
    back["whole"][3] = -1
    assert back["again"][3] == 3 and back["part"][1] == 3


def test_an_optimiser_goes_on_from_it(tmp_path):
    def trained(steps, resume_at=None):
        weights = torch.nn.Parameter(torch.ones(3))
        optimiser = torch.optim.Adam([weights], lr=0.1)
        for step in range(steps):
            if step == resume_at:
                state = {"optimiser": optimiser.state_dict(), "weights": weights}
                state = through_files(state, tmp_path)
                weights = torch.nn.Parameter(state["weights"])
                optimiser = torch.optim.Adam([weights], lr=0.1)
                optimiser.load_state_dict(state["optimiser"])
            optimiser.zero_grad()
            (weights**2 * torch.arange(3.0)).sum().backward()
            optimiser.step()
        return weights.detach()

    assert torch.equal(trained(6), trained(6, resume_at=3))


def test_random_generators_go_on_from_it(tmp_path):
    torch_rng, numpy_rng = torch.Generator().manual_seed(1), np.random.default_rng(1)
    torch.randn(3, generator=torch_rng), numpy_rng.normal(size=3)
    tree = {"torch": torch_rng.get_state(), "numpy": numpy_rng.bit_generator.state}
    back = through_files(tree, tmp_path)
    expected = torch.randn(3, generator=torch_rng), numpy_rng.normal(size=3)
    torch_rng, numpy_rng = torch.Generator(), np.random.default_rng(0)
    torch_rng.set_state(back["torch"])
    numpy_rng.bit_generator.state = back["numpy"]
    assert torch.equal(torch.randn(3, generator=torch_rng), expected[0])
    assert (numpy_rng.normal(size=3) == expected[1]).all()


@pytest.mark.parametrize(
    ("tree", "named"),
    [
        ({"agent": [1, {2, 3}]}, "state/agent/1 is a set"),
        ({"agent": {(1, 2): 0}}, "state/agent has the key"),
        ({"agent": {True: 0}}, "state/agent has the key"),
        ({"names": np.array(["a"])}, "state/names is an array of <U1"),
    ],
)
def test_what_no_checkpoint_can_hold_is_named(tree, named):
    with pytest.raises(TypeError) as caught:
        flatten(tree)
    assert named in str(caught.value)


def test_halves_of_two_checkpoints_are_refused():
    tensors, document = flatten({"a": torch.ones(1), "b": 2})
    for wrong in ({}, {"x": torch.ones(1)}):
        with pytest.raises(InputError, match="do not fit together"):
            unflatten(wrong, document)
    with pytest.raises(InputError, match="do not fit together"):
        unflatten(tensors, {"dictionary": []})
