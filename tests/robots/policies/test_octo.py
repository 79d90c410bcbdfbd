"""Octo by duck type: units, shapes, what heads ignore, history, keys, and one-line errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from offline.errors import InputError, SpecError
from offline.spec import ActionSpec
from offline.types import HasMode, Policy

pytest.importorskip("jax")

import jax

from robots.policies.octo import wrap

ENV = ActionSpec.from_bounds([-5.0, -50.0], [5.0, 50.0], names=("x", "grip"), gripper=1)
STATISTICS = {
    "action": {
        "mean": np.array([1.0, 7.0]),
        "std": np.array([2.0, 9.0]),
        "min": np.array([-4.0, 0.0]),
        "max": np.array([4.0, 1.0]),
        "p01": np.array([-3.0, 0.0]),
        "p99": np.array([5.0, 1.0]),
        "mask": np.array([True, False]),
    },
    "proprio": {"mean": np.array([1.0, 2.0, 3.0]), "std": np.array([1.0, 2.0, 4.0])},
}
OBS = {"state": torch.tensor([[1.0, 2.0, 3.0], [2.0, 4.0, 7.0], [0.0, 0.0, -1.0]])}


class Fake:
    """Octo's interface; the action's first dimension is the present normalised state[0].

    `head` is what Octo's heads do: "diffusion" honours sample_shape, "single" ignores it, "unet"
    ignores it and answers the whole window, "mse" answers copies, "discrete" heeds argmax.
    """

    def __init__(
        self, head="diffusion", window=2, statistics=STATISTICS, dim=2, mask=None, horizon=4
    ):
        self.head, self.dim, self.horizon = head, dim, horizon
        self.calls, self.texts = [], []
        self.dataset_statistics, self.config = statistics, {"model": {}}
        self.example_batch = {
            "observation": {
                "proprio": np.zeros((1, window, 3), np.float32),
                mask or "timestep_pad_mask": np.ones((1, window), bool),
            }
        }

    def create_tasks(self, texts):
        self.texts += texts
        return {"language_instruction": np.array([[len(text)] for text in texts])}

    def sample_actions(
        self,
        observations,
        tasks,
        unnormalization_statistics=None,
        argmax=False,
        sample_shape=(),
        rng=None,
        temperature=1.0,
    ):
        self.calls.append((observations, tasks, unnormalization_statistics, temperature))
        state = observations["proprio"]
        assert len(tasks["language_instruction"]) == len(state)
        shape = (*sample_shape, *state.shape[:2], self.horizon, self.dim)
        if self.head in ("single", "unet"):
            shape = shape[len(sample_shape) :]
        noise = np.random.default_rng(np.asarray(rng)).normal(size=shape)
        if self.head == "mse" or (self.head == "discrete" and argmax):
            noise = np.zeros(shape)
        act = noise + np.eye(self.dim)[0] * state[..., None, :1]
        act = act if self.head == "unet" else act[..., -1, :, :]
        if (stats := unnormalization_statistics) is not None:
            size = len(stats["mean"])
            mask = stats.get("mask", np.ones(size, bool))
            act = act[..., :size]
            act = np.where(mask, act * stats["std"] + stats["mean"], act)
        return act


def draw(policy, n=1, seed=0, obs=OBS):
    return policy.sample(obs, n, torch.Generator().manual_seed(seed))


def test_actions_reach_the_environment_as_the_model_would_un_normalise_them():
    model = Fake("mse")
    policy = wrap(model, env_spec=ENV, language="push it")
    raw = policy.spec.unnormalize(draw(policy, n=2)).numpy()
    assert raw.shape == (3, 2, 4, 2)
    # proprio (state - mean) / std is 0, 1, -1; then 2 a + 1, and the masked dimension unchanged
    np.testing.assert_allclose(raw[:, 1, 3], [[1.0, 0.0], [3.0, 0.0], [-1.0, 0.0]], atol=1e-6)
    observations = {
        "proprio": np.array([[0.0, 0, 0], [1, 1, 1], [-1, -1, -1]])[:, None],
        "timestep_pad_mask": np.ones((3, 1), bool),
    }
    theirs = model.sample_actions(
        observations,
        model.create_tasks(["push it"] * 3),
        unnormalization_statistics=STATISTICS["action"],
        rng=jax.random.PRNGKey(0),
    )
    np.testing.assert_allclose(raw[:, 0], theirs, atol=1e-6)


@pytest.mark.parametrize(("normalization", "factor"), [("normal", 2.0), ("bounds", 4.0)])
def test_the_spec_is_the_checkpoints_statistics_with_the_environments_bounds(normalization, factor):
    policy = wrap(Fake(), env_spec=ENV, action_chunk=2, options={"normalization": normalization})
    spec = policy.spec
    assert isinstance(policy, Policy)
    assert (spec.low, spec.names, spec.gripper, spec.chunk) == (ENV.low, ENV.names, 1, 2)
    raw = spec.unnormalize(torch.tensor([[0.5, 0.3]]))[0].tolist()
    assert raw == pytest.approx([1 + factor / 2, 0.3])
    assert wrap(Fake()).spec.high == (4.0, 1.0) and wrap(Fake()).spec.chunk == 4
    configured = Fake()
    configured.config = {"dataset_kwargs": {"action_proprio_normalization_type": normalization}}
    scale = {"normal": "mean_std", "bounds": "p01_p99"}[normalization]
    with_p = {key: {**value, "p01": 0, "p99": 1} for key, value in STATISTICS.items()}
    configured.dataset_statistics = {**with_p, "action": STATISTICS["action"]}
    assert wrap(configured).spec.scale == scale


@pytest.mark.parametrize("head", ["diffusion", "single", "unet", "discrete", "mse"])
def test_what_a_head_ignores_is_found_and_made_up_for(head):
    policy = wrap(Fake(head), env_spec=ENV)
    act, again, other = (draw(policy, n=5, seed=seed) for seed in (1, 1, 2))
    assert act.shape == (3, 5, 4, 2)
    assert torch.equal(act, again)
    assert torch.equal(act, other) == (head == "mse")
    different = len(np.unique(act[0, :, 0, 1]))
    assert different == (1 if head == "mse" else 5)
    assert bool(policy.notes) == (head == "mse")
    # rows stay rows: the mean over many draws is each row's own state
    mean = draw(policy, n=300).mean((1, 2))[:, 0]
    np.testing.assert_allclose(mean, [0.0, 1.0, -1.0], atol=0.15)
    assert isinstance(policy, HasMode) == (head in ("discrete", "mse"))
    if isinstance(policy, HasMode):
        mode = policy.mode(OBS, None)
        np.testing.assert_allclose(mode[:, 2], [[0, 0], [1, 0], [-1, 0]], atol=1e-6)


def test_one_instruction_is_created_once_and_rows_fill_up_to_a_power_of_two():
    model = Fake()
    policy = wrap(model, env_spec=ENV, language="push it", options={"temperature": "0.5"})
    model.calls.clear()
    for rows in (3, 4, 2):
        draw(policy, n=2, obs={"state": torch.ones(rows, 3)})
    assert model.texts.count("push it") <= 2  # the probe's and the policy's
    assert [len(call[0]["proprio"]) for call in model.calls] == [4, 4, 2]
    assert model.calls[0][1]["language_instruction"].tolist() == [[7]] * 4
    assert model.calls[0][3] == 0.5


@pytest.mark.parametrize("mask", ["timestep_pad_mask", "pad_mask"])
def test_single_steps_are_looked_back_on_and_chunks_are_not(mask):
    model = Fake("mse", window=3, mask=mask)
    policy = wrap(model, env_spec=ENV, action_chunk=1)
    policy.reset()
    model.calls.clear()
    for t in range(3):
        draw(policy, obs={"state": torch.tensor([[1.0 + t, 0, 0], [1.0 - t, 0, 0]])})
        policy.commit(torch.zeros(2, 1, 2))
    first, second, third = (call[0] for call in model.calls)
    assert first[mask].tolist() == [[False, False, True]] * 2
    assert second[mask].tolist() == [[False, True, True]] * 2
    assert third[mask].all() and third["proprio"][1, :, 0].tolist() == [0, -1, -2]
    policy.keep(torch.tensor([1]))
    draw(policy, obs={"state": torch.tensor([[9.0, 0, 0]])})
    assert model.calls[-1][0]["proprio"][0, :, 0].tolist() == [-1, -2, 8]
    for horizon, chunk, options, window in (
        (4, 4, {}, 1),
        (4, None, {}, 1),
        (1, None, {}, 3),
        (4, 4, {"window": "2"}, 2),
    ):
        model = Fake(window=3, mask=mask, horizon=horizon)
        draw(wrap(model, env_spec=ENV, action_chunk=chunk, options=options))
        assert model.calls[-1][0]["proprio"].shape[1] == window


def test_a_head_for_longer_actions_is_told_how_many_count():
    model = Fake("single", dim=7)
    policy = wrap(model, env_spec=ENV)
    assert draw(policy, n=2).shape == (3, 2, 4, 2)
    told = model.calls[-1][2]
    assert told["mean"].tolist() == [0, 0] and told["std"].tolist() == [1, 1]


def test_a_dimension_that_never_moved_keeps_its_value():
    action = {"mean": np.array([1.0, 7.0]), "std": np.array([2.0, 0.0])}
    policy = wrap(Fake(statistics={"action": action}), env_spec=ENV)
    assert (policy.spec.unnormalize(draw(policy, n=3))[..., 1] == 7).all()


def test_keys_images_and_datasets_by_option():
    model = Fake("mse", statistics={"a": STATISTICS, "b": STATISTICS, "steps": 3})
    model.example_batch["observation"]["image_primary"] = np.zeros((1, 2, 8, 6, 3), np.uint8)
    model.example_batch["observation"]["pad_mask_dict"] = {"proprio": np.ones((1, 2), bool)}
    options = {"dataset": "b", "proprio": "eef+grip", "image_primary": "front"}
    policy = wrap(model, env_spec=ENV, options=options)
    obs = {
        "eef": torch.ones(2, 2),
        "grip": torch.ones(2, 1),
        "front": torch.full((2, 16, 12, 3), 200, dtype=torch.uint8),
        "side": torch.zeros(2, 16, 12, 3, dtype=torch.uint8),
    }
    draw(policy, obs=obs)
    given = model.calls[-1][0]
    assert given["image_primary"].shape == (2, 1, 8, 6, 3)
    assert given["image_primary"].dtype == np.uint8 and (given["image_primary"] == 200).all()
    assert given["proprio"][0, 0].tolist() == [0.0, -0.5, -0.5]
    assert set(given["pad_mask_dict"]) == {"proprio", "image_primary"}


def rank_two():
    model = Fake()
    model.sample_actions = lambda observations, tasks, rng=None: np.zeros((1, 2))
    return wrap(model, env_spec=ENV)


def failing():
    policy = wrap(Fake(), env_spec=ENV)
    policy.model.sample_actions = lambda *a, **k: 1 / 0
    return draw(policy)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (rank_two, InputError, r"returned shape \(1, 2\) for B=1, expected \(B, H, A\)"),
        (failing, InputError, "sample_actions failed: ZeroDivisionError.*proprio"),
        (lambda: wrap(Fake(dim=1), env_spec=ENV), SpecError, "gives A=1 dimensions.* have 2"),
        (
            lambda: wrap(Fake(), env_spec=ActionSpec.from_bounds([0] * 7, [1] * 7)),
            SpecError,
            "A=2 dimensions, the environment takes A=7",
        ),
        (
            lambda: wrap(Fake(), env_spec=ENV, action_chunk=8),
            SpecError,
            "chunks of H=4, 8 were asked for: use --action-chunk 4",
        ),
        (lambda: wrap(Fake(statistics=None)), InputError, "no dataset_statistics.json"),
        (
            lambda: wrap(Fake(statistics={"a": {}, "b": {}})),
            InputError,
            "dataset=NAME; it has a, b",
        ),
        (
            lambda: wrap(Fake(statistics={"bridge": {}, "b": {}}), options={"dataset": "brige"}),
            InputError,
            'no statistics "brige". Did you mean "bridge"',
        ),
        (
            lambda: wrap(Fake(), options={"propio": "state"}),
            InputError,
            'no option "propio". Did you mean "proprio"',
        ),
        (lambda: wrap(Fake(), options={"window": "3"}), InputError, "at most 2 steps.*window=3"),
        (lambda: wrap(Fake(), options={"window": "x"}), InputError, 'received "x"'),
        (
            lambda: wrap(Fake(), options={"normalization": "l1"}),
            InputError,
            "normalization=normal or bounds",
        ),
        (
            lambda: draw(wrap(Fake(), options={"proprio": "stat"})),
            InputError,
            'does not observe "stat". Did you mean "state"',
        ),
        (
            lambda: draw(wrap(Fake()), obs={"state": torch.zeros(1, 39)}),
            InputError,
            r'"proprio" has shape \(3,\), state has \(39,\): say which of state with octo:DIR',
        ),
        (
            lambda: draw(wrap(Fake()), obs={"state": torch.full((1, 3), float("nan"))}),
            InputError,
            "NaN",
        ),
    ],
)
def test_one_line_says_what_is_wrong(make, error, message):
    with pytest.raises(error, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
