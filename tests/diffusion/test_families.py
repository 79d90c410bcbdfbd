"""Every family draws its pipeline's own images, and its LoRA is one that diffusers loads."""

from __future__ import annotations

import pytest
import torch
from family_images import PROMPTS, SIZES, drawn, own_images, policy_of
from tiny_families import FAMILIES, tiny

from diffusion.errors import InputError
from diffusion.loading import load_pipeline, prepare_pipeline
from diffusion.lora import load_lora
from diffusion.pipelines import ImagePolicy


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_draws_what_its_pipeline_draws(name, scale):
    policy = policy_of(name, scale)
    expected = own_images(name, policy.pipe, scale)
    torch.testing.assert_close(drawn(policy), expected, atol=1e-5, rtol=0)
    assert float(expected.std()) > 0.05  # not blank


@pytest.mark.parametrize("targets", ["attention", "all"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_trained_lora_gives_the_same_images_in_the_pipelines_own_call(name, targets, tmp_path):
    policy = policy_of(name, lora_rank=2, lora_targets=targets)
    before = drawn(policy)
    random = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter += 0.3 * torch.randn(parameter.shape, generator=random)
    after = drawn(policy)
    assert float((after - before).abs().max()) > 1e-3
    policy.save_weights(tmp_path)
    plain = prepare_pipeline(tiny(name))
    load_lora(plain, str(tmp_path))
    torch.testing.assert_close(own_images(name, plain, 1.0), after, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_reference_is_the_pipeline_without_its_lora(name):
    policy = policy_of(name, lora_rank=2)
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter += 0.3
    cond = policy.encode(PROMPTS)
    x = torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(0))
    t = policy.process(3, sampler="ode").timesteps[1].expand(2)
    other = ImagePolicy(prepare_pipeline(tiny(name)), guidance_scale=1.0, **SIZES[name])
    torch.testing.assert_close(
        policy.predict_reference(x, t, cond), other.predict(x, t, cond), atol=1e-5, rtol=0
    )


def test_an_unknown_pipeline_is_one_line_that_lists_the_families():
    class StrangePipeline:
        pass

    with pytest.raises(InputError) as error:
        prepare_pipeline(StrangePipeline())
    assert "StrangePipeline" in str(error.value) and "FluxPipeline" in str(error.value)
    assert "EXTENDING.md" in str(error.value)


def test_a_folder_without_its_third_text_encoder_loads(tmp_path):
    pipe = tiny("sd3")
    pipe.save_pretrained(tmp_path)
    loaded = load_pipeline(str(tmp_path))
    assert loaded.text_encoder_3 is None and loaded.tokenizer_3 is None
