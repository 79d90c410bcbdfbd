"""A frozen base in 8 or 4 bits: close to what it was, its ratios exact, trained on by a LoRA."""

from __future__ import annotations

import importlib.util
import logging

import pytest
import torch
from small_runs import small_config
from tiny_families import tiny

from diffusion import quantization
from diffusion.config import FinetuneConfig, check
from diffusion.errors import InputError
from diffusion.finetune import Finetuner
from diffusion.loading import load_pipeline
from diffusion.lora import load_lora
from diffusion.pipelines import ImagePolicy
from diffusion.prompts.sources import load_prompts
from diffusion.quantization import library_for, quantise
from diffusion.speed import Speed

KINDS = [("8bit", "torchao"), ("8bit", "bitsandbytes"), ("4bit", "bitsandbytes")]
MOST = {"8bit": 0.05, "4bit": 0.5}  # of the output, that rounding may change


def redness(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    return images[:, 0].mean((1, 2))


def held(policy: ImagePolicy) -> int:
    """Bytes of the denoiser's weights."""

    def size(value: torch.Tensor) -> int:
        if hasattr(value, "__tensor_flatten__"):  # torchao's, made of several
            return sum(size(getattr(value, name)) for name in value.__tensor_flatten__()[0])
        return value.numel() * value.element_size()

    return sum(size(p.data) for p in policy.denoiser.parameters())


@pytest.fixture
def by(monkeypatch):
    """Makes one library the only one, or skips."""

    def choose(kind: str, library: str) -> None:
        pytest.importorskip(library)
        monkeypatch.setitem(quantization.LIBRARIES, kind, (library,))

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    return choose


@pytest.mark.parametrize(("kind", "library"), KINDS)
def test_an_epoch_trains_a_lora_on_it(kind, library, by, tmp_path):
    by(kind, library)
    whole, pipe = (load_pipeline("tiny-flow", say=lambda line: None) for _ in range(2))
    policy = ImagePolicy(pipe, guidance_scale=3.0, lora_rank=2, speed=Speed(quantization=kind))
    assert policy.speed.library == library
    plain = ImagePolicy(whole, guidance_scale=3.0, lora_rank=2)
    cond = policy.encode(["a red circle"])
    x = torch.randn(1, *policy.latent_shape, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([500.0])
    with torch.no_grad():
        ours, theirs = policy.predict(x, t, cond), plain.predict(x, t, cond)
    apart = float((ours - theirs).norm() / theirs.norm())
    assert 0 < apart < MOST[kind]
    assert held(policy) < held(plain) * (0.5 if kind == "8bit" else 0.4)

    config = small_config(quantization=kind, micro_batch=3, rollout_batch=3, inner_steps=1)
    tuner = Finetuner(policy, redness, load_prompts("world"), config)
    before = {n: p.detach().clone() for n, p in policy.trainable().items()}
    metrics = tuner.run_epoch()
    assert metrics["check/ratio_error"] <= 1e-5
    assert all(p.dtype == torch.float32 for p in policy.trainable().values())
    assert any(not torch.equal(before[n], p) for n, p in policy.trainable().items())
    policy.save_weights(tmp_path / "lora")
    fresh = load_pipeline("tiny-flow", say=lambda line: None)
    load_lora(fresh, str(tmp_path / "lora"))  # as any LoRA: into the whole network


@pytest.mark.parametrize(("kind", "library"), KINDS)
def test_layers_that_are_kept_in_float32_stay(kind, library, by):
    by(kind, library)
    net = tiny("sd3").transformer
    net._keep_in_fp32_modules = ["proj_out"]
    before = net.proj_out.weight.clone()
    quantise(net, kind, "cpu")
    assert type(net.proj_out) is torch.nn.Linear and torch.equal(net.proj_out.weight, before)
    assert type(net.context_embedder.weight) is not torch.nn.Parameter


def test_a_missing_library_is_one_line_with_the_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for kind, library in (("8bit", "torchao"), ("4bit", "bitsandbytes")):
        with pytest.raises(InputError, match=f"--quantization {kind} .*pip install {library}"):
            library_for(kind)


def test_what_cannot_go_with_it_is_refused():
    with pytest.raises(InputError, match="--quantization 4bit is of a frozen denoiser"):
        check(FinetuneConfig(quantization="4bit", train="full"))
    with pytest.raises(InputError, match="--quantization 8bit goes with a plain LoRA"):
        check(FinetuneConfig(quantization="8bit", lora_dora=True))
    with pytest.raises(InputError, match=r"this launch splits it \(FSDP\)"):
        Speed(quantization="8bit").quantise(torch.nn.Linear(2, 2), "cpu", split=True)


def test_a_network_without_linear_layers_is_refused(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    with pytest.raises(InputError, match="has no linear layer"):
        quantise(torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1)), "8bit", "cpu")
