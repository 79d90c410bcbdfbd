"""Octo's package on today's JAX: what it misses is there while it runs, and only then."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from offline.errors import InputError

pytest.importorskip("jax")
pytest.importorskip("orbax.checkpoint")

import jax
import jax.numpy as jnp
from jax.experimental import multihost_utils

from robots.policies.load import load_black_box
from robots.policies.octo_names import old_names

EXAMPLE = {
    "observation": {
        "proprio": np.zeros((5, 1, 3), np.float32),
        "timestep_pad_mask": np.ones((5, 1), bool),
    },
    "task": {"language_instruction": np.zeros((5, 1), np.float32)},
}
STATISTICS = {"action": {"mean": np.array([1.0, 2.0]), "std": np.array([2.0, 4.0])}}


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """A folder that the stand-in saved, named relative to where we are."""
    with old_names():
        import old_octo

        model = old_octo.OldOcto.from_example(EXAMPLE, STATISTICS)
        assert model.example_batch["observation"]["proprio"].shape == (1, 1, 3)
        model.save_pretrained(7, str(tmp_path / "octo"))
    monkeypatch.chdir(tmp_path)
    return "octo:octo?model=old_octo:OldOcto"


def test_a_policy_of_removed_names_loads_and_samples_from_a_relative_path(checkpoint):
    before = dict(vars(jnp)), dict(vars(multihost_utils))
    policy = load_black_box(checkpoint, language="push")
    obs = {"state": torch.tensor([[0.5, -1.0, 2.0]])}
    act = policy.sample(obs, 5, torch.Generator().manual_seed(0))
    assert act.shape == (1, 5, 4, 2) and act.abs().max() == 1.5  # clipped by its own code
    assert len({row.numpy().tobytes() for row in act[0]}) == 5
    again = policy.sample(obs, 5, torch.Generator().manual_seed(0))
    assert torch.equal(act, again)
    mode = policy.mode(obs, None)
    assert mode.shape == (1, 4, 2) and torch.equal(mode, policy.mode(obs, None))
    assert policy.spec.mean == (1.0, 2.0)
    # nothing of it is left
    assert not hasattr(jax, "tree_map") and not hasattr(jax.random, "KeyArray")
    assert (dict(vars(jnp)), dict(vars(multihost_utils))) == before
    for name in ("tensorflow", "dlimp", "distrax"):
        assert name not in sys.modules
    with pytest.raises(TypeError, match="a_min"):
        jnp.clip(jnp.zeros(2), a_min=1)


def test_what_only_the_missing_package_computes_names_it(checkpoint):
    with old_names():
        import old_octo

        with pytest.raises(ImportError, match="tensorflow.stack is needed here: pip install"):
            old_octo.statistics_of([])
    with pytest.raises(InputError, match="octo:nothing: there is no such folder"):
        load_black_box("octo:nothing?model=old_octo:OldOcto")


def test_what_is_there_is_left_alone(monkeypatch):
    kept = object()
    monkeypatch.setitem(sys.modules, "distrax", kept)
    import robots.policies.octo_names as names

    names._missing_modules.cache_clear()
    try:
        with old_names(), old_names():
            assert sys.modules["distrax"] is kept
            assert sys.modules["tensorflow"].io.gfile.join("a", "b") == "a/b"
        assert sys.modules["distrax"] is kept and "tensorflow" not in sys.modules
    finally:
        names._missing_modules.cache_clear()


def test_an_error_inside_takes_the_names_away():
    with pytest.raises(KeyError), old_names():
        assert jax.tree_map(lambda x: x + 1, {"a": 1}) == {"a": 2}
        raise KeyError
    assert not hasattr(jax, "tree_map")
