import json
import math

import numpy as np
import pytest
import torch
from toy_data import spec

from offline.critics.value import ValueFunction
from offline.errors import InputError, SpecError
from offline.networks.heads import CriticHeads, TanhGaussian
from offline.networks.images import random_shift
from offline.networks.normalizer import ObsNormalizer
from offline.types import Critic

SHAPES = {"state": (5,), "goal": (2,)}


def make(shapes=SHAPES, **rest):
    torch.manual_seed(0)
    return ValueFunction(spec(3).with_chunk(2), shapes, env="toy/a", hidden=(32, 16), **rest)


def some_obs(rows=4, shapes=SHAPES):
    generator = torch.Generator().manual_seed(1)
    return {
        key: torch.randint(256, (rows, *shape), generator=generator, dtype=torch.uint8)
        if len(shape) == 3
        else torch.randn(rows, *shape, generator=generator)
        for key, shape in shapes.items()
    }


def some_act(rows=4, candidates=6):
    return torch.rand(rows, candidates, 2, 3, generator=torch.Generator().manual_seed(2)) * 2 - 1


def test_the_split_first_layer_is_the_plain_one():
    torch.manual_seed(0)
    heads = CriticHeads(7, 6, (32, 16), ensemble=3)
    features, act = torch.randn(4, 7), torch.randn(4, 5, 2, 3)
    got = heads(heads.project(features), act)
    together = torch.cat([features[:, None].expand(-1, 5, -1), act.flatten(2)], dim=-1)
    weights, biases = heads.obs_in.weight.chunk(3), heads.obs_in.bias.chunk(3)
    for e, head in enumerate(heads.heads):
        x = together @ torch.cat([weights[e], head.act_in.weight], dim=1).T + biases[e]
        x = torch.relu(head.norms[0](x))
        x = head.layers[1](torch.relu(head.norms[1](head.layers[0](x))))
        torch.testing.assert_close(got[e], x[..., 0])


def test_shapes_and_protocol():
    value = make(ensemble=5)
    assert isinstance(value, Critic)
    features = value.encode(some_obs())
    assert features.shape == (4, 5 * 32)
    q = value.score(features, some_act())
    assert q.shape == (5, 4, 6)
    torch.testing.assert_close(q, value(some_obs(), some_act()))
    assert value(some_obs(), some_act(candidates=1)).shape == (5, 4, 1)
    assert value(some_obs(1), some_act(1)).shape == (5, 1, 6)


def test_candidates_are_scored_alone():
    value = make()
    q, order = value(some_obs(), some_act()), torch.tensor([3, 0, 5, 1, 2, 4])
    torch.testing.assert_close(q[..., order], value(some_obs(), some_act()[:, order]))


def test_save_and_load_exactly(tmp_path):
    value = make(meta={"critic": "calql"})
    value.encoder.normalizer.fit(
        {"state": (np.full(5, 2.0), np.ones(5)), "goal": (np.zeros(2), np.full(2, 3.0))}
    )
    value.save(tmp_path / "run" / "value")
    for folder in (tmp_path / "run", tmp_path / "run" / "value"):
        loaded = ValueFunction.load(folder)
        assert torch.equal(loaded(some_obs(), some_act()), value(some_obs(), some_act()))
        assert (loaded.spec, loaded.env, loaded.meta) == (value.spec, "toy/a", value.meta)
        assert loaded.obs_shapes == SHAPES and not loaded.training


def test_load_refuses_what_is_not_one(tmp_path):
    with pytest.raises(InputError, match="no folder"):
        ValueFunction.load(tmp_path / "absent")
    (tmp_path / "critic.pt").write_bytes(b"\x80")
    with pytest.raises(InputError, match="pickled"):
        ValueFunction.load(tmp_path / "critic.pt")
    with pytest.raises(InputError, match="no value.safetensors"):
        ValueFunction.load(tmp_path)
    folder = make().save(tmp_path / "value")
    document = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(document | {"format": "other"}))
    with pytest.raises(InputError, match="format is 'other'"):
        ValueFunction.load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match="config.json is missing"):
        ValueFunction.load(folder)
    make().save(folder)
    weights = (folder / "value.safetensors").read_bytes()
    (folder / "value.safetensors").write_bytes(weights[:-7])
    with pytest.raises(InputError, match="cannot read"):
        ValueFunction.load(folder)


def test_wrong_observations_are_refused():
    value = make()
    with pytest.raises(SpecError, match='"goal" \\(2,\\), received "state".*another dataset'):
        value.encode({"state": torch.zeros(1, 5)})
    with pytest.raises(SpecError, match='"state" has shape \\(6,\\).*\\(5,\\)'):
        value.encode({"state": torch.zeros(1, 6), "goal": torch.zeros(1, 2)})


def test_wrong_actions_are_refused():
    with pytest.raises(SpecError, match=r"\(B, K, 2, 3\), received \(4, 6, 3, 2\)"):
        make()(some_obs(), some_act().transpose(2, 3))


def test_another_task_is_refused():
    make().require_env("toy/a")
    make().require_env("toy/b", allow_other=True)
    with pytest.raises(SpecError, match="trained for toy/a.*toy/b"):
        make().require_env("toy/b")


def test_normalizer_order_floor_and_limit():
    stats = {
        "b": (np.array([1.0]), np.array([2.0])),
        "a": (np.array([0.0, 5.0]), np.array([0.0, 1.0])),
    }
    normalizer = ObsNormalizer.from_shapes({"b": (1,), "language": (3,), "a": (2,)}).fit(stats)
    x = normalizer({"b": torch.tensor([[5.0]]), "a": torch.tensor([[0.02, -100.0]])})
    torch.testing.assert_close(x, torch.tensor([[2.0, -10 - math.log(96), 2.0]]))
    with pytest.raises(SpecError, match='"a" should be'):
        normalizer.fit({"b": stats["b"]})


IMAGES = {"camera": (16, 16, 3), "state": (5,), "language": (8,)}


def test_an_image_is_encoded_once_for_all_candidates():
    value = make(IMAGES)
    seen = []
    value.encoder.images[0].stem.register_forward_hook(lambda net, x, y: seen.append(len(y)))
    features = value.encode(some_obs(3, IMAGES))
    for candidates in (1, 50, 50):
        value.score(features, some_act(3, candidates))
    assert seen == [3] and value.encoder.encoded_images == 3
    value(some_obs(3, IMAGES), some_act(3, 50))
    assert seen == [3, 3]


def test_image_and_instruction_both_matter():
    value = make(IMAGES)
    obs = some_obs(3, IMAGES)
    base = value(obs, some_act(3))
    assert not torch.allclose(value(obs | {"camera": 255 - obs["camera"]}, some_act(3)), base)
    torch.testing.assert_close(  # FiLM starts as the identity
        value(obs | {"language": -obs["language"]}, some_act(3)), base
    )
    for block in value.encoder.images[0].blocks:
        torch.nn.init.normal_(block.film.weight)
    moved = value(obs | {"language": -obs["language"]}, some_act(3))
    assert not torch.allclose(moved, value(obs, some_act(3)))


def test_the_bigger_network_runs_and_is_rebuilt_by_load(tmp_path):
    value = make({"camera": (32, 32, 3)}, image_encoder="resnet34").eval()
    obs = some_obs(1, {"camera": (32, 32, 3)})
    loaded = ValueFunction.load(value.save(tmp_path))
    assert torch.equal(loaded(obs, some_act(1)), value(obs, some_act(1)))
    assert sum(p.numel() for p in value.encoder.images.parameters()) > 2e7


def test_random_shift_moves_each_image_and_repeats_its_border():
    images = torch.arange(8 * 8 * 3, dtype=torch.uint8).view(1, 8, 8, 3).repeat(50, 1, 1, 1)
    shifted = random_shift(images, 2, torch.Generator().manual_seed(0))
    assert shifted.shape == images.shape and shifted.dtype == torch.uint8
    assert len(shifted.flatten(1).unique(dim=0)) > 10
    padded = torch.nn.functional.pad(
        images[:1].movedim(-1, 1).float(), (2, 2, 2, 2), mode="replicate"
    ).byte()
    crops = {
        padded[0, :, i : i + 8, j : j + 8].movedim(0, -1).numpy().tobytes()
        for i in range(5)
        for j in range(5)
    }
    assert {image.numpy().tobytes() for image in shifted} <= crops
    assert random_shift(images, 0) is images


def test_tanh_gaussian_density_integrates_to_one():
    torch.manual_seed(0)
    actor = TanhGaussian(2, 1, (8,))
    features = torch.randn(1, 2)
    act, log_prob = actor.sample(features, 200_000, torch.Generator().manual_seed(0))
    # E_p[1 / p] over (-1, 1) is the interval's length
    inside = act[0, :, 0].abs() < 0.95
    estimate = (torch.exp(-log_prob[0]) * inside).mean().item()
    assert abs(estimate - 1.9) < 0.03
