"""Cloning a dataset: chunks, filtering, held-out loss, determinism."""

import math

import numpy as np
import pytest
import torch
from toy_data import ListEpisodes, episode, line_data, spec

from genpol.policies.cloning import CloneConfig, clone, learning_rate
from genpol.policies.policy import load_policy
from offline.errors import InputError

SMALL = {"batch_size": 64, "features": 32, "width": 16, "action_chunk": 2, "log_every": 50}


def config(**rest):
    return CloneConfig(**SMALL | rest)


def split(data):
    """Every fifth episode is held out."""
    index = np.arange(len(data))
    data.splits = {"train": index[index % 5 != 0], "valid": index[index % 5 == 0]}
    return data


@pytest.mark.parametrize("kind", ["diffusion", "flow", "gaussian"])
def test_a_clone_walks_towards_the_goal(kind):
    data = split(line_data(90))
    rows = []
    settings = config(policy=kind, filter="success", steps=300, lr=2e-3)
    policy = clone(data, settings, log=lambda step, metrics: rows.append((step, metrics)))
    x = torch.tensor([[-0.9], [-0.6], [0.6], [0.9]])
    act = policy.mode({"state": x})
    assert act.shape == (4, 2, 1)
    assert (act[:, 0, 0].sign() == -x[:, 0].sign()).all()
    assert [step for step, _ in rows] == list(range(50, 301, 50))
    assert rows[-1][1]["clone/valid_loss"] < rows[0][1]["clone/valid_loss"]
    assert set(rows[0][1]) == {
        "clone/loss",
        "clone/valid_loss",
        "clone/valid_mode_error",
        "clone/lr",
        "clone/grad_norm",
        "clone/step_ms",
    }
    assert policy.meta["steps"] == 300 and policy.env == "toy/line"
    assert policy.spec.chunk == 2 and policy.spec.scale == "bounds"
    assert not policy.training and not any(p.requires_grad for p in policy.parameters())


def test_filtering_leaves_failures_out():
    """Successes say -1, failures +1: a filtered clone has heard of the former only."""
    episodes = []
    for i in range(20):
        e = episode(6, success=i % 2 == 0, seed=i)
        e.actions[:] = -1.0 if e.success else 1.0
        episodes.append(e)
    data = ListEpisodes(episodes, spec())
    obs = {"state": torch.arange(5.0)[:, None]}
    filtered = clone(data, config(policy="gaussian", filter="success", steps=150, lr=3e-3))
    everything = clone(data, config(policy="gaussian", steps=150, lr=3e-3))
    assert torch.allclose(filtered.mode(obs), torch.tensor(-0.5), atol=0.1)  # bounds are +-2
    assert everything.mode(obs).abs().mean() < 0.2
    assert filtered.meta["episodes"] == 10 and everything.meta["episodes"] == 20
    # 10 episodes of 6 steps; a success is padded, so every step starts a chunk
    assert filtered.meta["chunks"] == 60 and everything.meta["chunks"] == 60 + 50


@pytest.mark.parametrize("kind", ["diffusion", "gaussian"])
def test_the_same_seed_gives_the_same_policy(kind):
    data = line_data(10)
    same = [clone(data, config(policy=kind, steps=5)) for _ in range(2)]
    other = clone(data, config(policy=kind, steps=5, seed=1))
    for name, value in same[0].state_dict().items():
        assert torch.equal(value, same[1].state_dict()[name])
    assert not torch.equal(same[0].body[0].weight, other.body[0].weight)
    state = torch.random.get_rng_state()
    clone(data, config(policy=kind, steps=1))
    assert torch.equal(state, torch.random.get_rng_state())  # the caller's randomness is its own


def test_normalisation_comes_from_the_dataset(tmp_path):
    policy = clone(line_data(10), config(policy="gaussian", steps=2))
    states = np.concatenate([e.obs["state"] for e in line_data(10)])
    assert torch.allclose(policy.encoder.normalizer.mean, torch.tensor(states.mean(0)), atol=1e-5)
    assert policy.spec.low == (-2.0,) and policy.spec.high == (2.0,)
    policy.save(tmp_path)
    assert torch.equal(
        load_policy(tmp_path).encoder.normalizer.mean, policy.encoder.normalizer.mean
    )


def test_stopping_early_keeps_what_there_is():
    count = iter(range(100))
    policy = clone(line_data(10), config(policy="flow", steps=1000), stop=lambda: next(count) >= 7)
    assert policy.meta["steps"] == 7
    assert torch.isfinite(policy.mode({"state": torch.zeros(1, 1)})).all()


def test_the_average_moves_off_its_start():
    """The decay is warmed up: after a few steps the average is not the initial weights."""
    data = line_data(10)
    start, after = (clone(data, config(steps=n, warmup=0)) for n in (1, 40))
    assert (start.body[0].weight - after.body[0].weight).abs().max() > 1e-3


def test_images_and_instructions():
    data = line_data(8, image=True, language="to the middle")
    policy = clone(
        data,
        config(steps=2, batch_size=8, image_keys=("camera",), random_shift=1),
        language=lambda text: torch.full((4,), float(len(text))),
    )
    assert policy.obs_shapes == {"camera": (16, 16, 3), "language": (4,)}
    obs = {
        "camera": torch.zeros(2, 16, 16, 3, dtype=torch.uint8),
        "language": torch.zeros(2, 4),
    }
    assert policy.sample(obs, 3, None).shape == (2, 3, 2, 1)


def test_learning_rate():
    settings = CloneConfig(steps=1000, lr=1.0, warmup=100)
    assert learning_rate(0, settings) == 0.01 and learning_rate(99, settings) == 1.0
    assert learning_rate(100, settings) == 1.0
    assert math.isclose(learning_rate(550, settings), 0.5)
    assert learning_rate(999, settings) < 1e-5
    assert learning_rate(0, CloneConfig(steps=1, lr=1.0)) == 1.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "--steps must be at least 1"),
        ({"lr": 0.0}, "--lr must be above 0"),
        ({"ema": 1.0}, "--ema must be"),
        ({"denoising_steps": 0}, "--denoising-steps must be"),
        ({"filter": "success"}, "none of the 3 training episodes is marked as a success"),
        ({"image_keys": ("camera",)}, 'no observation "camera"'),
        ({"obs_keys": ("stat",)}, 'Did you mean "state"'),
        ({"action_chunk": 50}, "no episode has a chunk of 50"),
        ({"lr": 1e30, "steps": 30}, "diverged"),
    ],
)
def test_bad_input_is_one_line(settings, message):
    data = ListEpisodes([episode(10, success=False, seed=i) for i in range(3)], spec())
    with pytest.raises(InputError, match=message) as caught:
        clone(data, config(policy="gaussian", **{"steps": 2} | settings))
    assert "\n" not in str(caught.value)


def test_unknown_bounds_need_another_scale():
    data = ListEpisodes([episode(10, seed=i) for i in range(3)], spec())
    data.spec = type(data.spec)(**{**data.spec.to_dict(), "high": (float("inf"),)})
    with pytest.raises(InputError, match="--scale p01_p99"):
        clone(data, config(steps=1))
    assert clone(data, config(steps=1, scale="p01_p99")).spec.scale == "p01_p99"
