"""Gradient checkpointing with every family's denoiser and a LoRA: less kept, same gradient."""

from __future__ import annotations

import pytest
import torch
from family_images import PROMPTS, policy_of
from tiny_families import FAMILIES

from diffusion.errors import InputError


def kept_and_gradient(policy) -> tuple[int, dict[str, torch.Tensor]]:
    """Bytes of activations that a pass keeps for its backward pass, and the gradient."""
    cond, weights = policy.encode(PROMPTS), {p.data_ptr() for p in policy.denoiser.parameters()}
    x = torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(0))
    kept: dict[int, int] = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if tensor.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = policy.predict(x, torch.tensor([500, 200]), cond)
    out.square().sum().backward()
    grads = {n: p.grad.clone() for n, p in policy.trainable().items() if p.grad is not None}
    policy.denoiser.zero_grad(set_to_none=True)
    return sum(kept.values()), grads


@pytest.mark.parametrize("name", FAMILIES)
def test_less_is_kept_and_the_gradient_stays(name):
    policy = policy_of(name, lora_rank=2, lora_targets="all")
    with torch.no_grad():  # up weights start at 0, where down weights have no gradient
        for n, p in policy.trainable().items():
            if "lora_B" in n:
                p.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    assert not policy.denoiser.training
    plain, expected = kept_and_gradient(policy)
    policy.denoiser.enable_gradient_checkpointing()
    kept, found = kept_and_gradient(policy)
    assert kept < 0.7 * plain, (kept, plain)
    # In a last block of two streams, what the text's stream says is read by nothing.
    assert sum(bool(grad.any()) for grad in expected.values()) > 0.6 * len(policy.trainable())
    assert found.keys() == expected.keys()
    for key, grad in expected.items():
        torch.testing.assert_close(found[key], grad, rtol=1e-4, atol=1e-6)


def test_a_network_that_cannot_recompute_is_said(monkeypatch):
    kind = type(policy_of("sd").denoiser)
    monkeypatch.setattr(kind, "_supports_gradient_checkpointing", False)
    with pytest.raises(InputError, match="UNet2DConditionModel cannot recompute"):
        policy_of("sd", gradient_checkpointing=True)
