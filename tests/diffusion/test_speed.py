"""Layout, rounding and attention: the same numbers by other kernels; what was chosen is said."""

from __future__ import annotations

import filecmp
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from family_images import SIZES, policy_of

from diffusion.config import FinetuneConfig
from diffusion.errors import InputError
from diffusion.speed import Speed, chosen, lay_out, speed_of, tf32

# Attention layers of each tiny family; Sana has as many again that are linear, without a softmax.
ATTENTION = {
    "sd": 8, "sdxl": 16, "pixart": 4, "sd3": 2, "flux": 2, "flux2_klein": 2, "qwen_image": 2,
    "z_image": 4, "sana": 2,
}  # fmt: skip


@pytest.mark.parametrize("name", SIZES)
def test_attention_under_a_lora_is_the_fused_one(name, monkeypatch):
    policy = policy_of(name, lora_rank=2)
    cond, calls = policy.encode(["a cat"]), []
    own = F.scaled_dot_product_attention

    def counted(*args, **named):
        calls.append(args)
        return own(*args, **named)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    with torch.no_grad():
        policy.predict(torch.zeros(1, *policy.latent_shape), torch.tensor([500.0]), cond)
    assert len(calls) == ATTENTION[name]


@pytest.mark.parametrize("train", ["lora", "full"])
def test_channels_last_changes_rounding_alone_and_no_file(train, tmp_path):
    targets = {"lora_targets": "all"} if train == "lora" else {}
    plain, last = (
        policy_of("sd", 3.0, train=train, speed=Speed(channels_last=on), **targets)
        for on in (False, True)
    )
    convolutions = [p for p in last.denoiser.parameters() if p.ndim == 4 and p.shape[2] == 3]
    assert convolutions and not any(p.is_contiguous() for p in convolutions)
    assert not last.pipe.vae.decoder.conv_in.weight.is_contiguous()
    cond, t = plain.encode(["a", "b"]), torch.tensor([500, 300])
    x = torch.randn(2, *plain.latent_shape, generator=torch.Generator().manual_seed(0))
    gradients = []
    for policy in (plain, last):
        policy.predict(x, t, cond).square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in policy.trainable().values()]))
        policy.save_weights(tmp_path / str(policy is last), kohya=train == "lora")
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-5)
    with torch.no_grad():
        ours, theirs = last.predict_reference(x, t, cond), plain.predict_reference(x, t, cond)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(last.decode(x), plain.decode(x), rtol=0, atol=1e-4)
    names = [p.name for p in (tmp_path / "True").iterdir()]
    match, *others = filecmp.cmpfiles(tmp_path / "True", tmp_path / "False", names, shallow=False)
    assert sorted(match) == sorted(names) and names and others == [[], []]


def test_networks_of_other_dimensions_stay():
    network = torch.nn.Conv3d(2, 2, 3)
    lay_out(network)
    assert network.weight.is_contiguous()


def test_tf32_is_as_asked_for_inside_and_as_before_outside():
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    for allowed in (True, False):
        with pytest.raises(KeyError), tf32(allowed):
            assert torch.get_float32_matmul_precision() == ("high" if allowed else "highest")
            assert torch.backends.cudnn.allow_tf32 is allowed
            raise KeyError
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before


def test_what_is_left_to_the_device_is_recorded():
    config = FinetuneConfig()

    def record(config: FinetuneConfig, device: str) -> tuple[str, str, str]:
        found = chosen(config, speed_of(config, device), device)
        return found["optimizer"], found["channels_last"], found["allow_tf32"]

    assert record(config, "cpu") == ("adamw", "off", "off")
    assert record(config, "cuda") == ("adamw-fused", "on", "off")
    assert record(replace(config, autocast="bf16"), "cuda") == ("adamw-fused", "on", "on")
    # What a run on cuda has recorded stays so where it goes on without.
    stored = replace(config, optimizer="adamw-fused", channels_last="on", allow_tf32="on")
    assert record(stored, "cpu") == ("adamw-fused", "on", "on")


def test_a_missing_library_is_known_before_anything_is_loaded(monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for settings in ({"quantization": "4bit"}, {"optimizer": "adamw-8bit"}):
        with pytest.raises(InputError, match="pip install bitsandbytes"):
            speed_of(FinetuneConfig(**settings), "cpu")
