"""A saved model is the old one or the new one: each kind of model, at every point of a save."""

import json
import os

import pytest
import safetensors.torch
import torch
from torch import nn

from genpol.agents.deploy import load_edit, save_edit
from genpol.agents.edit import EditPolicy
from genpol.policies.architecture import Architecture
from genpol.policies.policy import ChunkPolicy, load_policy
from offline.critics.value import ValueFunction
from offline.errors import InputError
from offline.learning.actor_policy import ActorPolicy
from offline.model_files import HASH, load_model, save_model
from offline.networks.encoder import ObsEncoder
from offline.networks.heads import TanhGaussian
from offline.spec import ActionSpec

SPEC = ActionSpec.from_bounds([-1.0], [1.0], chunk=2)
SHAPES = {"state": (3,)}


def linear(number):
    model = nn.Linear(2, 1)
    nn.init.constant_(model.weight, number)
    return model


def save(folder, number):
    save_model(folder, "w.safetensors", linear(number), "c.json", {"format": "f", "number": number})


def load(folder):
    """The number that the weights say and the one that the document says."""
    document, tensors = load_model(folder, "w.safetensors", "c.json", kind="model", form="f")
    return float(tensors["weight"][0, 0]), document["number"]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("event", range(5))
def test_a_save_over_an_older_model_may_be_killed_anywhere(tmp_path, monkeypatch, event):
    """Two fsyncs, two renames and the folder's fsync: none of them may leave a mixture."""
    save(tmp_path, 1.0)
    seen, fsync, replace = [], os.fsync, os.replace

    def counted(real):
        def call(*args):
            if len(seen) == event:
                raise Killed
            seen.append(real)
            return real(*args)

        return call

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(os, "fsync", counted(fsync))
        patch.setattr(os, "replace", counted(replace))
        save(tmp_path, 2.0)
    expected = 1.0 if event < 3 else 2.0  # the weights are renamed third
    assert load(tmp_path) == (expected, expected)
    save(tmp_path, 3.0)
    assert load(tmp_path) == (3.0, 3.0)
    assert sorted(os.listdir(tmp_path)) == ["c.json", "w.safetensors"]


def test_a_kill_between_the_renames_of_a_first_hash_is_seen_too(tmp_path, monkeypatch):
    """The older document has no hash, as those of earlier versions."""
    save(tmp_path, 1.0)
    config = tmp_path / "c.json"
    config.write_text(json.dumps({"format": "f", "number": 1.0}))
    assert load(tmp_path) == (1.0, 1.0)
    replace = os.replace

    def killed(old, new):
        if new == config:
            raise Killed
        replace(old, new)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(os, "replace", killed)
        save(tmp_path, 2.0)
    assert load(tmp_path) == (2.0, 2.0)


def test_weights_of_another_model_are_refused(tmp_path):
    save(tmp_path / "a", 1.0)
    save(tmp_path / "b", 2.0)
    os.replace(tmp_path / "b" / "w.safetensors", tmp_path / "a" / "w.safetensors")
    with pytest.raises(InputError, match="does not fit c.json beside it: are they of two models"):
        load(tmp_path / "a")
    config = tmp_path / "a" / "c.json"
    document = json.loads(config.read_text())
    del document[HASH]
    config.write_text(json.dumps(document))
    assert load(tmp_path / "a") == (2.0, 1.0)  # as the error says


def value(folder, seed):
    torch.manual_seed(seed)
    return ValueFunction(SPEC, SHAPES, hidden=(4, 4)).save(folder)


def policy(folder, seed):
    torch.manual_seed(seed)
    sizes = Architecture(features=4, width=4, layers=1)
    return ChunkPolicy("flow", SPEC, SHAPES, architecture=sizes).save(folder)


def actor(folder, seed):
    torch.manual_seed(seed)
    encoder = ObsEncoder(SHAPES)
    return ActorPolicy(SPEC, encoder, TanhGaussian(encoder.dim, 2, (4,)), (4,)).save(folder)


def edit(folder, seed):
    torch.manual_seed(seed)
    save_edit(EditPolicy(3, 2, (4,), scale=1.0, clip=True), folder, candidates=2, edits=1)


KINDS = {
    "value": (value, ValueFunction.load),
    "policy": (policy, load_policy),
    "actor": (actor, ActorPolicy.load),
    "edit": (edit, lambda folder: load_edit(folder)[0]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk_leaves_the_older_model_whole(tmp_path, monkeypatch, kind):
    write, read = KINDS[kind]
    write(tmp_path, 1)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(os, "fsync", full)
        write(tmp_path, 2)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    old = read(tmp_path).state_dict()
    write(tmp_path, 2)
    new = read(tmp_path).state_dict()
    assert any(not torch.equal(old[name], new[name]) for name in old)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_do_not_fit_are_named(tmp_path, kind):
    write, read = KINDS[kind]
    write(tmp_path, 1)
    (config,) = tmp_path.glob("*.json")
    (weights,) = tmp_path.glob("*.safetensors")
    document = json.loads(config.read_text())
    del document[HASH]
    config.write_text(json.dumps(document))
    tensors = safetensors.torch.load_file(weights)
    name = sorted(tensors)[0]
    for changed, says in (
        ({k: v for k, v in tensors.items() if k != name}, f'lacks tensor "{name}"'),
        (tensors | {"more": torch.zeros(1)}, 'the unknown tensor "more"'),
        (tensors | {name: torch.zeros(3, 5, 7)}, f'"{name}" is float32 .3, 5, 7., expected'),
        (tensors | {name: tensors[name].half()}, f'"{name}" is float16'),
        (
            tensors | {name: torch.full_like(tensors[name], torch.nan)},
            "holds NaN or infinite weights",
        ),
    ):
        safetensors.torch.save_file(changed, weights)
        with pytest.raises(InputError, match=says):
            read(tmp_path)


@pytest.mark.parametrize("entry", ["spec", "obs_shapes", "architecture", "meta"])
def test_a_document_is_held_to_its_schema(tmp_path, entry):
    config = value(tmp_path, 1) / "config.json"
    document = json.loads(config.read_text())
    for bad in (None, [], "text", 3):
        config.write_text(json.dumps(document | {entry: bad}))
        with pytest.raises(InputError, match=f'"{entry}" should be an object'):
            ValueFunction.load(tmp_path)
    config.write_text(json.dumps(document | {"architecture": {"hidden": [10**9]}}))
    with pytest.raises(InputError, match="sizes should be at most 65536"):
        ValueFunction.load(tmp_path)
    config.write_text(json.dumps(document | {"architecture": {"hidden": [65536, 65536]}}))
    with pytest.raises(InputError, match="are they of two models"):  # before 16 GiB are allocated
        ValueFunction.load(tmp_path)
