"""Published values give way to the family's, and those to the objective's."""

from __future__ import annotations

import json

import pytest

from diffusion.families import FAMILIES, family_class
from diffusion.model_facts import ModelFacts, facts_of
from diffusion.objectives.make import OBJECTIVES
from diffusion.recommended import BY_FAMILY, BY_OBJECTIVE, OBJECTIVE, PUBLISHED, recommended


def of(pipeline: str, algorithm: str = "prdp", name: str = "x/y", index=None, denoiser=None):
    facts = ModelFacts(name, {"_class_name": pipeline} | (index or {}), denoiser or {})
    return recommended(name, algorithm, facts.recommended())


@pytest.mark.parametrize(
    ("pipeline", "steps", "guidance"),
    [
        ("StableDiffusionPipeline", 50, 5.0),
        ("StableDiffusionXLPipeline", 50, 5.0),
        ("PixArtAlphaPipeline", 20, 4.5),
        ("StableDiffusion3Pipeline", 28, 4.5),
        ("FluxPipeline", 28, 3.5),
        ("Flux2KleinPipeline", 50, 4.0),
        ("QwenImagePipeline", 50, 4.0),
        ("ZImagePipeline", 28, 5.0),
        ("SanaPipeline", 20, 4.5),
    ],
)
def test_each_family(pipeline, steps, guidance):
    found = of(pipeline)
    assert (found["num_inference_steps"], found["guidance_scale"]) == (steps, guidance)
    assert found["beta"] == PUBLISHED["beta"]


@pytest.mark.parametrize(
    ("pipeline", "facts", "steps"),
    [
        ("StableDiffusion3Pipeline", {"name": "s/stable-diffusion-3.5-large-turbo"}, 4),
        ("FluxPipeline", {"denoiser": {"guidance_embeds": False}}, 4),
        ("Flux2KleinPipeline", {"index": {"is_distilled": True}}, 4),
        ("ZImagePipeline", {"name": "t/Z-Image-Turbo"}, 8),
    ],
)
def test_distilled_checkpoints_take_few_steps_without_guidance(pipeline, facts, steps):
    found = of(pipeline, **facts)
    assert (found["num_inference_steps"], found["guidance_scale"]) == (steps, 1.0)


def test_objectives_come_last_but_for_a_guidance_that_is_an_input():
    assert of("StableDiffusion3Pipeline", "nft")["guidance_scale"] == 1.0
    assert of("StableDiffusion3Pipeline", "nft")["learning_rate"] == 3e-4
    assert of("FluxPipeline", "nft")["guidance_scale"] == 3.5
    grpo, other = of("FluxPipeline", "grpo"), of("StableDiffusionPipeline", "grpo")
    assert (grpo["kl_weight"], grpo["images_per_prompt"]) == (0.04, 24)
    assert (other["kl_weight"], other["images_per_prompt"]) == (0.0, 8)


def test_the_words_of_help_name_what_families_and_objectives_change():
    kinds = {family_class(pipeline) for pipeline in FAMILIES}
    assert {name for kind in kinds for name in kind.recommended} == set(BY_FAMILY)
    assert set(OBJECTIVE) == set(OBJECTIVES)
    sets = [each for three in OBJECTIVE.values() for each in three]
    assert {name for each in sets for name in each} == set(BY_OBJECTIVE)


def test_a_folder_says_what_it_is_before_its_weights_are_there(tmp_path):
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text('{"guidance_embeds": false}')
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    facts = facts_of(str(tmp_path))
    assert facts.recommended()["num_inference_steps"] == 4


@pytest.mark.parametrize("text", [None, "not json", "[1]", '{"_class_name": "StrangePipeline"}'])
def test_what_cannot_be_read_recommends_nothing(tmp_path, text):
    if text is not None:
        (tmp_path / "model_index.json").write_text(text)
    assert facts_of(str(tmp_path)).recommended() == {}
    assert facts_of(str(tmp_path / "model.safetensors")).recommended() == {}
