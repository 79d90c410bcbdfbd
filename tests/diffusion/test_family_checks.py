"""Sizes that a pipeline cannot draw, and classes that are no family, are one line each."""

from __future__ import annotations

import pytest
import torch
from tiny_families import tiny
from tiny_models import tiny_sdxl

from diffusion.chain import sample_chain
from diffusion.errors import InputError
from diffusion.families.family import Family
from diffusion.loading import prepare_pipeline
from diffusion.own_family import load_family
from diffusion.pipelines import ImagePolicy


def policy(pipe, **options) -> ImagePolicy:
    return ImagePolicy(prepare_pipeline(pipe), guidance_scale=1.0, train="nothing", **options)


@pytest.mark.parametrize(
    ("name", "sizes", "said"),
    [
        ("sd", {"height": 17, "width": 16}, "--height 17 is no multiple of 2"),
        ("sdxl", {"width": 1}, "2 is the smallest"),
        ("sd3", {"width": 34}, "--width 34 is no multiple of 4, which StableDiffusion3Pipeline"),
        ("sd3", {"width": 128}, "--width 128 is above 64"),
        ("flux", {"height": 30, "width": 32}, "28 and 32 are near"),
        ("pixart", {"height": 33}, "no multiple of 4"),
        ("sd", {"height": 32, "width": 24, "train_resolution": 16}, "21.3333 pixels"),
        ("flux", {"height": 32, "width": 32, "train_resolution": 10}, "--train-resolution 10"),
    ],
)
def test_a_size_that_cannot_be_drawn_is_refused(name, sizes, said):
    with pytest.raises(InputError) as error:
        policy(tiny(name), **sizes)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_training_is_smaller_than_evaluation_and_keeps_the_shape():
    small = policy(tiny("flux"), height=64, width=32, train_resolution=16)
    assert small.latent_shape == (4, 16, 8)
    shift = small.process(4, sampler="ode").timesteps
    with small.full_size():
        assert small.latent_shape == (4, 32, 16)
        assert not torch.equal(small.process(4, sampler="ode").timesteps, shift)  # by its tokens
    assert small.latent_shape == (4, 16, 8)


def test_sdxl_is_told_the_size_that_is_drawn():
    small = policy(tiny_sdxl(), height=32, width=32, train_resolution=16)
    assert small.encode(["a cat"])["time_ids"].tolist() == [[16, 16, 0, 0, 16, 16]]
    with small.full_size():
        assert small.encode(["a cat"])["time_ids"].tolist() == [[32, 32, 0, 0, 32, 32]]


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "qwen_image"])
def test_full_training_of_a_half_precision_pipeline(name):
    """Masters and reference are fp32, encoders stay as loaded; policy and reference agree."""
    sizes = {} if name == "sd3" else {"height": 16, "width": 16}
    pipe = tiny(name).to(dtype=torch.bfloat16)
    full = ImagePolicy(prepare_pipeline(pipe), guidance_scale=3.0, train="full", **sizes)
    assert {p.dtype for p in full.trainable().values()} == {torch.float32}
    assert {p.dtype for p in full.networks()[1].parameters()} == {torch.float32}
    cond = full.encode(["a cat"])
    noise = [torch.Generator().manual_seed(0)]
    process = full.process(2, noise_level=0.5)
    chain = sample_chain(
        full.predict, process, cond, full.latent_shape, noise, reference=full.predict_reference
    )
    assert torch.equal(chain.log_prob, chain.log_prob_ref)
    full.predict(chain.x[0], process.timesteps[:1], cond).square().mean().backward()
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in full.trainable().values())
    assert full.decode(chain.sample.float()).isfinite().all()


class Whole(Family):
    """A family in form."""

    encode = call = lambda self, *args: None  # noqa: E731


class Half(Family):
    def encode(self, prompts, device):
        return {}


class Untold(Whole):
    lora_targets = {"attention": "to_q", "all": ("to_q",)}


def function():
    return None


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Half", "defines no call"),
        ("Untold", 'lora_targets must hold layer names under "attention" and "all"'),
        ("function", "is a function: expected a class"),
        ("torch.Tensor", "defines no denoiser_name"),
        ("Hall", 'Did you mean "Half"?'),
    ],
)
def test_what_is_no_family_is_one_line(name, said):
    with pytest.raises(InputError) as error:
        load_family(f"{__name__}:{name}")
    assert said in str(error.value) and "\n" not in str(error.value)
    assert load_family(f"{__name__}:Whole") is Whole


def test_a_pipeline_without_the_network_of_its_family_is_one_line():
    with pytest.raises(InputError, match='trains "transformer", and a StableDiffusionPipeline has'):
        policy(tiny("sd"), family=Whole)
