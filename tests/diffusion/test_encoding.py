"""Every family encodes images into the latents that it decodes, scaled as diffusers scales them."""

from __future__ import annotations

import diffusers
import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from family_images import PROMPTS, SIZES, drawn, policy_of
from tiny_families import FAMILIES

from diffusion.loading import load_pipeline
from diffusion.pipelines import ImagePolicy

# The image-to-image pipeline of the same components, whose own code encodes an image.
IMAGE_TO_IMAGE = {
    "sd": "StableDiffusionImg2ImgPipeline",
    "sdxl": "StableDiffusionXLImg2ImgPipeline",
    "sd3": "StableDiffusion3Img2ImgPipeline",
    "flux": "FluxImg2ImgPipeline",
    "z_image": "ZImageImg2ImgPipeline",
    "qwen_image": "QwenImageImg2ImgPipeline",
}


@pytest.mark.parametrize("name", FAMILIES)
def test_encoding_is_scaled_as_decoding_is(name):
    """decode(z) = D(u(z)) for the family's u, so an encoder that returns u(z) must give z back."""
    policy = policy_of(name, train="full" if name == "pixart" else "lora")
    vae, seen = policy.pipe.vae, {}
    latents = torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(0))
    decode = vae.decode

    def noted(z, **kwargs):
        seen["z"] = z
        return decode(z, **kwargs)

    class Posterior:
        def mode(self):
            return seen["z"]

    def told(pixels, return_dict=True):
        seen["pixels"] = pixels
        return type("Out", (), {"latent_dist": Posterior()})() if return_dict else (seen["z"],)

    vae.decode, vae.encode = noted, told
    images = policy.decode(latents)
    assert tuple(images.shape[2:]) == policy.family.image_size
    again = policy.encode_images(images)
    torch.testing.assert_close(again, latents, atol=1e-5, rtol=1e-5)
    assert float(seen["pixels"].max()) <= 1 and float(seen["pixels"].min()) < -0.1  # [-1, 1]


@pytest.mark.parametrize("name", IMAGE_TO_IMAGE)
def test_latents_are_those_of_diffusers_image_to_image(name, monkeypatch):
    """With nothing noised the image-to-image pipeline's latents are the encoded image."""
    # Theirs draws from the posterior, ours takes its mode.
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, _: self.mode())
    policy = policy_of(name)
    images = drawn(policy)
    ours = policy.encode_images(images)
    if name == "sd":
        pipe = diffusers.StableDiffusionImg2ImgPipeline(
            **policy.pipe.components, requires_safety_checker=False
        )
    else:
        kind = getattr(diffusers, IMAGE_TO_IMAGE[name], None)
        if kind is None:
            pytest.skip("this diffusers has no such pipeline")
        pipe = kind(**{k: v for k, v in policy.pipe.components.items() if k != "force_zeros"})
    theirs = encoded_by(name, pipe, 2 * images - 1)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert float(theirs.std()) > 0.01


def encoded_by(name, pipe, images):
    generators = [torch.Generator().manual_seed(i) for i in range(len(images))]
    if name in ("sd", "sdxl"):
        # At timestep 0 of a scheduler that adds no noise.
        pipe.scheduler.add_noise = lambda latents, noise, t: latents
        more = {"add_noise": False} if name == "sdxl" else {}
        t = torch.zeros(len(images), dtype=torch.long)
        return pipe.prepare_latents(
            images, t, len(images), 1, torch.float32, "cpu", generators, **more
        )
    if name == "sd3":
        pipe.scheduler.scale_noise = lambda latents, t, noise: latents
        return pipe.prepare_latents(images, None, len(images), 1, torch.float32, "cpu", generators)
    if name == "z_image":
        pipe.scheduler.scale_noise = lambda latents, t, noise: latents
        shape = (len(images), 4, *images.shape[2:])
        return pipe.prepare_latents(images, None, *shape, torch.float32, "cpu", generators)
    video = images[:, :, None] if name == "qwen_image" else images
    found = pipe._encode_vae_image(image=video, generator=generators)
    return found[:, :, 0] if name == "qwen_image" else found


def test_the_shipped_autoencoder_gives_back_its_own_pictures():
    policy = ImagePolicy(load_pipeline("tiny"), guidance_scale=1.0, lora_rank=2)
    pipe = policy.pipe
    images = pipe(
        ["a large plain red circle"] * 2, num_inference_steps=10, output_type="pt",
        generator=[torch.Generator().manual_seed(i) for i in range(2)], guidance_scale=1.0,
    ).images  # fmt: skip
    again = policy.decode(policy.encode_images(images))
    assert float((again - images).square().mean().sqrt()) < 0.05
    twice = policy.decode(policy.encode_images(again))
    assert float((twice - again).square().mean().sqrt()) < 0.05


def test_an_image_of_another_size_is_a_bug_of_the_caller():
    policy = policy_of("sd")
    with pytest.raises(ValueError, match="16"):
        policy.encode_images(torch.zeros(1, 3, 24, 16))


def test_another_guidance_holds_within_its_context_alone():
    policy = policy_of("sd", 3.0)
    assert any(name.endswith("_negative") for name in policy.encode(PROMPTS))
    with policy.at_guidance(1.0):
        assert not any(name.endswith("_negative") for name in policy.encode(PROMPTS))
    assert policy.guidance_scale == 3.0 and SIZES["sd"]
