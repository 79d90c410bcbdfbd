"""`train` and `finetune` from Python: objects do what names do."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_runs import SMALL
from tiny_rewards import brightness
from toy_reach import NAME, SPEC, ToyReach, demonstration, write_demonstrations
from training_runs import TINY, assert_same_run, rows

from diffusion.errors import InputError as ImageError
from diffusion.loading import load_pipeline
from diffusion.prdp import PRDP
from diffusion.prompts.sources import load_prompts
from genpol.commands.finetune.options import Finetune
from genpol.commands.from_python import finetune, train
from genpol.commands.train.command import run
from genpol.commands.train.options import Train
from genpol.policies.policy import ChunkPolicy
from offline.critics.value import ValueFunction
from offline.errors import InputError
from robots.datasets.memory import EpisodeList
from robots.datasets.open import open_dataset
from robots.policies.callable_policy import CallablePolicy

OWN = "toy_reach:ToyReach"


def options(**changes) -> Train:
    return Train(**TINY | {"max_steps": 12} | changes)


def test_objects_train_as_the_same_things_by_name(tmp_path, no_page):
    path = write_demonstrations(tmp_path / "demos.hdf5", env=OWN)
    run(options(env=OWN, data=str(path), output=tmp_path / "names"))
    summary = train(
        options(env=None, output=tmp_path / "objects"), env=ToyReach, data=open_dataset(path)
    )
    assert_same_run(tmp_path / "names", tmp_path / "objects")
    assert summary["train/env_steps"] == 36
    assert json.loads((tmp_path / "objects" / "config.json").read_text())["env"] == OWN


def test_a_run_is_resumed_with_the_same_objects(tmp_path, no_page):
    whole, part = tmp_path / "whole", tmp_path / "part"
    train(options(env=None, output=whole), env=ToyReach)
    train(options(env=None, output=part, steps=24), env=ToyReach)
    train(Train(resume=part, steps=36), env=ToyReach)
    assert_same_run(whole, part)


def test_demonstrations_are_a_list_and_the_starts_are_copied(tmp_path, no_page):
    demos = [demonstration(seed) for seed in range(6)]
    shapes = {"state": (3,)}
    spec = replace(SPEC.with_chunk(2), mask=(True, True))
    base = ChunkPolicy("flow", spec, shapes, env=NAME)
    value = ValueFunction(spec, shapes, env=NAME, hidden=(8, 8), heads="stacked")
    before = [p.clone() for p in (*base.parameters(), *value.parameters())]
    train(options(output=tmp_path / "run"), data=demos, base=base, value=value)
    after = [*base.parameters(), *value.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert (tmp_path / "run" / "value" / "value.safetensors").exists()


def test_a_black_box_object_is_the_base(tmp_path, no_page):
    aim = CallablePolicy(lambda obs: np.zeros((2, 2)), env_spec=SPEC, action_chunk=2)
    train(options(output=tmp_path / "run"), base=aim)
    assert not (tmp_path / "run" / "policy").exists()  # it is not ours to save


def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(InputError, match="--env is needed"):
        train(options(env=None, output=tmp_path / "run"))
    with pytest.raises(InputError, match="data is a dict, expected a list of offline.Episode"):
        train(options(output=tmp_path / "run"), data={"a": 1})
    elsewhere = EpisodeList([demonstration(0)], env="Hopper-v5")
    with pytest.raises(InputError, match='recorded in "Hopper-v5"'):
        train(options(output=tmp_path / "run"), data=elsewhere)
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------------ images

IMAGES = SMALL | {"held_out": 0.1, "final_eval_images": 2}


def test_objects_fine_tune_as_the_same_things_by_name(tmp_path, models):
    prompts = [f"a {colour} circle" for colour in ("red", "green", "blue", "cyan", "grey")] * 3
    (tmp_path / "prompts.txt").write_text("\n".join(prompts))
    named = Finetune(
        **IMAGES | {"model": str(models["sd"]), "reward": "tiny_rewards:brightness",
                    "prompts": str(tmp_path / "prompts.txt"), "output": tmp_path / "names",
                    "beta": 3e-5, "clip": 1e-3}
    )  # fmt: skip
    by_name = finetune(named)
    given = replace(named, reward=None, prompts=None, output=tmp_path / "objects")
    by_object = finetune(
        given,
        pipeline=load_pipeline(str(models["sd"])),
        reward=brightness,
        prompts=prompts,
        gold={"twice": lambda images, prompts: 2 * brightness(images, prompts)},
        objective=PRDP(beta=3e-5, clip=1e-3),
    )
    for key in ("eval/reward_before", "eval/reward_after"):
        assert by_object[key] == by_name[key]
    assert by_object["eval/twice_after"] == pytest.approx(2 * by_object["eval/reward_after"])
    steps = [[row["reward/mean"] for row in rows(tmp_path / run)] for run in ("names", "objects")]
    assert steps[0] == steps[1]
    config = json.loads((tmp_path / "objects" / "config.json").read_text())
    assert config["reward"] == "tiny_rewards:brightness" and config["model"] == str(models["sd"])
    assert config["algorithm"] == "diffusion.prdp:PRDP"


def test_a_reward_of_the_wrong_shape_is_refused(tmp_path):
    with pytest.raises(ImageError, match="returned shape"):
        finetune(
            Finetune(**IMAGES | {"model": "tiny", "reward": None, "output": tmp_path / "run"}),
            reward=lambda images, prompts: images.mean(),
        )


def test_an_objective_that_is_not_known(tmp_path):
    for name, said in (("ppo", 'unknown objective "ppo"'), ("tiny_rewards:none", 'has no "none"')):
        with pytest.raises(ImageError, match=said):
            finetune(Finetune(**IMAGES | {"algorithm": name, "output": tmp_path / "run"}))


def test_prompts_as_a_list():
    prompts = [f"a {number}" for number in range(50)]
    source = load_prompts(prompts, held_out_fraction=0.25)
    held_out, trained = source.held_out(99, 0), source.train(0, source.num_train, 0)
    assert 5 <= len(held_out) <= 20 and source.num_held_out == len(held_out)
    assert sorted(held_out + trained) == sorted(prompts)
    assert source.fingerprint != load_prompts(prompts[1:], held_out_fraction=0.25).fingerprint
    for wrong in ([], ["a", " "], [1]):
        with pytest.raises(ImageError, match="expected a list of at least one text"):
            load_prompts(wrong)
