"""LeRobot by duck type: units, tiling, queues, history, keys, and one-line errors.

The fakes do what LeRobot's policies do: `Act` (no queue), `Diffusion` (stacks what its queues
hold), `Old` (LeRobot 0.3: normalises inside).
"""

from __future__ import annotations

import sys
from collections import deque
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from offline.errors import InputError, SpecError
from offline.spec import ActionSpec
from offline.types import Policy
from robots.policies.lerobot import LeRobotPolicy
from robots.policies.load import load_black_box

SPEC = ActionSpec.from_bounds([-2.0, 0.0], [2.0, 10.0])
OBS = {"state": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}


def config(steps=4, history=1, **inputs):
    inputs = inputs or {"observation.state": (2,)}
    return SimpleNamespace(
        n_action_steps=steps,
        n_obs_steps=history,
        input_features={key: SimpleNamespace(shape=shape) for key, shape in inputs.items()},
        output_features={"action": SimpleNamespace(shape=(2,))},
        image_features=[key for key in inputs if "image" in key],
    )


class Act:
    """Answers (B, 4, 2): the state, plus noise of torch's global generator in dimension 1."""

    def __init__(self, noise=0.0, **options):
        self.config, self.noise, self.batches, self.resets = config(**options), noise, [], 0

    def reset(self):
        self.resets += 1

    def select_action(self, batch):
        raise AssertionError("hands out the actions of an old chunk")

    def predict_action_chunk(self, batch):
        self.batches.append(batch)
        act = batch["observation.state"][:, None].repeat(1, 4, 1).clone()
        act[..., 1] += self.noise * torch.randn(act.shape[:2])
        return act


class Diffusion(Act):
    """Answers the history of state[0] as the actions of dimension 0."""

    def __init__(self, **options):
        super().__init__(**options)
        self.reset()

    def reset(self):
        length = self.config.n_obs_steps
        names = ["observation.state"] + ["observation.images"] * bool(self.config.image_features)
        self._queues = {name: deque(maxlen=length) for name in names}
        self._queues["action"] = deque(maxlen=4)

    def predict_action_chunk(self, batch):
        held = {k: torch.stack(list(self._queues[k]), dim=1) for k in batch if k in self._queues}
        self.batches.append(held)
        act = torch.zeros(len(held["observation.state"]), 4, 2)
        act[:, : self.config.n_obs_steps, 0] = held["observation.state"][..., 0] / 4
        return act


def in_env_units(policy, obs=OBS, n=1, seed=0) -> np.ndarray:
    act = policy.sample(obs, n, torch.Generator().manual_seed(seed))
    return policy.spec.unnormalize(act).numpy()


def test_actions_reach_the_environment_in_its_units():
    """The post-processor un-normalises with the policy's own statistics: 10 a - 1."""
    policy = LeRobotPolicy(
        Act(),
        env_spec=SPEC,
        preprocess=lambda batch: {
            **batch,
            "observation.state": batch["observation.state"] / 10,
            "action": None,
        },
        postprocess=lambda act: 10 * act - 1,
    )
    assert isinstance(policy, Policy) and policy.spec.chunk == 4
    raw = in_env_units(policy, n=3)
    assert raw.shape == (2, 3, 4, 2)
    np.testing.assert_allclose(raw[0], np.broadcast_to([0.0, 1.0], (3, 4, 2)), atol=1e-6)
    np.testing.assert_allclose(raw[1], np.broadcast_to([2.0, 3.0], (3, 4, 2)), atol=1e-6)


def test_proposals_are_one_tiled_call_and_depend_on_the_seed_only():
    model = Act(noise=1.0)
    policy = LeRobotPolicy(model, env_spec=SPEC, language="push it")
    state = torch.random.get_rng_state()
    first, again, other = (in_env_units(policy, n=5, seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
    assert len(np.unique(first[0, :, 0, 1])) == 5
    assert len(model.batches) == 3
    batch = model.batches[0]
    assert batch["observation.state"].shape == (10, 2) and batch["task"] == ["push it"] * 10
    assert torch.equal(batch["observation.state"][:5], OBS["state"][:1].expand(5, 2))


def test_a_post_processor_that_adds_the_state_it_remembers():
    """Actions relative to the state: the pre-processor sees B rows, so the other must as well."""
    seen = {}

    def preprocess(batch):
        seen["state"] = batch["observation.state"]
        return batch

    def postprocess(act):
        return act + seen["state"][:, None]

    policy = LeRobotPolicy(Act(), env_spec=SPEC, preprocess=preprocess, postprocess=postprocess)
    np.testing.assert_allclose(in_env_units(policy, n=3)[1, 2, 0], [6.0, 8.0], atol=1e-5)


def test_queues_are_filled_with_the_history_and_left_empty():
    model = Diffusion(history=3)
    policy = LeRobotPolicy(model, env_spec=SPEC)
    policy.reset()
    frames = [{"state": torch.tensor([[float(t), 0.0], [-float(t), 0.0]])} for t in range(4)]
    expected = [[0, 0, 0], [0, 0, 1], [0, 1, 2], [1, 2, 3]]  # the first repeats, then it slides
    for frame, states in zip(frames, expected, strict=True):
        for n in (1, 4):  # proposing twice changes nothing
            raw = in_env_units(policy, frame, n=n)
            np.testing.assert_allclose(raw[0, -1, :3, 0], np.divide(states, 4), atol=1e-6)
            np.testing.assert_allclose(raw[1, -1, :3, 0], np.divide(states, -4), atol=1e-6)
        assert not any(model._queues.values())
        policy.commit(torch.zeros(2, 1, 2))
    policy.keep(torch.tensor([1]))
    raw = in_env_units(policy, {"state": torch.tensor([[8.0, 0.0]])})
    np.testing.assert_allclose(raw[0, 0, :3, 0], [-2 / 4, -3 / 4, 8 / 4], atol=1e-6)


def test_after_a_longer_chunk_the_history_starts_anew():
    policy = LeRobotPolicy(Diffusion(history=2), env_spec=SPEC)
    policy.sample(OBS, 1, None)
    policy.commit(torch.zeros(2, 4, 2))
    raw = in_env_units(policy, {"state": OBS["state"] + 2})
    np.testing.assert_allclose(raw[0, 0, :2, 0], [3 / 4, 3 / 4], atol=1e-6)


def test_before_0_4_queued_inputs_are_normalised_by_the_policy():
    model = Diffusion(history=1)
    model.normalize_inputs = lambda batch: {
        **batch,
        "observation.state": batch["observation.state"] * 2,
    }
    raw = in_env_units(LeRobotPolicy(model, env_spec=SPEC))
    np.testing.assert_allclose(raw[:, 0, 0, 0], [0.5, 1.5], atol=1e-6)


@pytest.mark.parametrize("option", [{}, {"observation.images.top": "image"}])
def test_images_are_renamed_and_scaled(option):
    model = Diffusion(**{"observation.state": (2,), "observation.images.top": (3, 4, 5)})
    policy = LeRobotPolicy(model, env_spec=SPEC, keys=option)
    image = torch.zeros(2, 4, 5, 3, dtype=torch.uint8)
    image[1, 2, 3, 0] = 255
    policy.sample({**OBS, "image": image}, 2, None)
    held = model.batches[0]["observation.images"]
    assert held.shape == (4, 1, 1, 3, 4, 5)  # B * n, history, cameras, channels first
    assert held[2, 0, 0, 0, 2, 3] == 1 and held.sum() == 2


def test_other_vectors_become_one_state_in_sorted_order():
    model = Act()
    obs = {"b": torch.tensor([[2.0]]), "a": torch.tensor([[1.0]]), "language": torch.zeros(1, 384)}
    LeRobotPolicy(model, env_spec=SPEC).sample(obs, 1, None)
    assert model.batches[0]["observation.state"].tolist() == [[1.0, 2.0]]


def test_bounds_come_from_the_post_processor_without_an_environment():
    def postprocess(act):
        return act

    stats = {"action": {"min": np.array([-1.0, 0.0]), "max": torch.tensor([3.0, 1.0])}}
    postprocess.steps = [SimpleNamespace(), SimpleNamespace(stats=stats)]
    policy = LeRobotPolicy(Act(), env_spec=None, postprocess=postprocess)
    assert policy.spec.low == (-1.0, 0.0) and policy.spec.high == (3.0, 1.0)
    with pytest.raises(InputError, match="name --env"):
        LeRobotPolicy(Act(), env_spec=None)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: LeRobotPolicy(object(), env_spec=SPEC), InputError, "no predict_action_chunk"),
        (
            lambda: LeRobotPolicy(Act(), env_spec=ActionSpec.from_bounds([0] * 7, [1] * 7)),
            SpecError,
            "A=2, the environment takes A=7",
        ),
        (
            lambda: LeRobotPolicy(Act(), env_spec=SPEC, action_chunk=8).sample(OBS, 1, None),
            InputError,
            "returned 4 actions, expected chunks of 8: use --action-chunk 4",
        ),
        (lambda: in_env_units(LeRobotPolicy(Act(noise=np.nan), env_spec=SPEC)), InputError, "NaN"),
        (
            lambda: LeRobotPolicy(
                Act(**{"observation.images.top": (3, 4, 4)}), env_spec=SPEC
            ).sample(OBS, 1, None),
            InputError,
            'needs "observation.images.top", the environment observes state',
        ),
        (
            lambda: LeRobotPolicy(Act(), env_spec=SPEC, keys={"observation.stat": "state"}),
            InputError,
            'no observation "observation.stat". Did you mean "observation.state"',
        ),
    ],
)
def test_one_line_says_what_is_wrong(make, error, message):
    with pytest.raises(error, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_loading_through_a_class_that_is_named(tmp_path, monkeypatch):
    module = ModuleType("their_policies")

    class Theirs(Act):
        postprocess = staticmethod(lambda act: act / 2)

        @classmethod
        def from_pretrained(cls, folder):
            if folder != str(tmp_path):
                raise OSError("no config.json\nthere")
            return cls()

    module.Theirs = Theirs
    monkeypatch.setitem(sys.modules, "their_policies", module)
    obs = {"ee": OBS["state"]}
    text = f"lerobot:{tmp_path}?model=their_policies:Theirs&state=ee"
    policy = load_black_box(text, env_spec=SPEC, action_chunk=1)
    np.testing.assert_allclose(in_env_units(policy, obs)[1, 0, 0], [1.5, 2.0], atol=1e-6)
    (tmp_path / "other").mkdir()
    with pytest.raises(InputError, match="does not load: OSError: no config.json; is it"):
        load_black_box(f"lerobot:{tmp_path}/other?model=their_policies:Theirs", env_spec=SPEC)


def test_loading_through_lerobots_own_factory(tmp_path, monkeypatch):
    """Its factory's calls, with the arguments that LeRobot 0.4 and later take."""
    said = {}
    saved = SimpleNamespace(type="act", device=None)

    class PreTrainedConfig:
        @classmethod
        def from_pretrained(cls, folder):
            said["config"] = folder
            return saved

    class Theirs(Act):
        @classmethod
        def from_pretrained(cls, folder, *, config):
            said["policy"] = (folder, config)
            return cls()

    def make_pre_post_processors(policy_cfg, pretrained_path=None, **overrides):
        said["processors"] = (policy_cfg, pretrained_path, overrides)
        return dict, lambda act: act / 4

    modules = {
        name: ModuleType(name) for name in ("lerobot", "lerobot.configs", "lerobot.policies")
    }
    modules["lerobot.configs.policies"] = configs = ModuleType("lerobot.configs.policies")
    modules["lerobot.policies.factory"] = factory = ModuleType("lerobot.policies.factory")
    configs.PreTrainedConfig = PreTrainedConfig
    factory.get_policy_class = {"act": Theirs}.__getitem__
    factory.make_pre_post_processors = make_pre_post_processors
    modules["lerobot.policies"].factory = factory
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    policy = load_black_box(f"lerobot:{tmp_path}", env_spec=SPEC)
    np.testing.assert_allclose(in_env_units(policy)[1, 0, 0], [0.75, 1.0], atol=1e-6)
    folder = str(tmp_path)
    assert said["config"] == folder and said["policy"] == (folder, saved)
    assert said["processors"] == (
        saved,
        folder,
        {"preprocessor_overrides": {"device_processor": {"device": saved.device}}},
    )
    del factory.make_pre_post_processors  # before 0.4
    policy = load_black_box(f"lerobot:{tmp_path}", env_spec=SPEC)
    np.testing.assert_allclose(in_env_units(policy)[0, 0, 0], [1.0, 2.0], atol=1e-6)
