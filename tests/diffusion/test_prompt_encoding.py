"""Prompts are encoded once each, some at a time, and stored once."""

from __future__ import annotations

import pytest
import torch
from family_images import policy_of
from tiny_families import FAMILIES

import diffusion.prompt_encoding
from diffusion.prompt_encoding import encode_prompts, joined
from diffusion.prompts.prompt import Prompt

PROMPTS = ["a cat", "a much longer one", "two dogs", "a cat", "x"]


class Encoders:
    """Conditions that say which text they are of, padded to the longest of a call."""

    def __init__(self, mask: bool = True) -> None:
        self.mask, self.calls = mask, list[list[str]]()

    def encode(self, prompts, device):
        self.calls.append(list(prompts))
        longest = max(map(len, prompts))
        text = torch.zeros(len(prompts), longest, 2)
        for i, prompt in enumerate(prompts):
            text[i, : len(prompt)] = float(len(prompt))
        seen = {"text": text, "pooled": text.sum((1, 2))}
        return seen | ({"mask": (text[..., 0] > 0).long()} if self.mask else {})

    def encode_negative(self, prompts, device):
        return self.encode([prompt or " " for prompt in prompts], device)

    def reader(self):
        return None, 8192  # so that two are a pass


CPU = torch.device("cpu")


def test_each_text_is_encoded_once_in_passes_of_bounded_tokens():
    family = Encoders()
    cond = encode_prompts(family, PROMPTS, CPU)
    assert family.calls == [["a cat", "a much longer one"], ["two dogs", "x"]]
    whole = Encoders().encode(PROMPTS, CPU)
    assert cond.keys() == whole.keys()
    for name, value in whole.items():
        assert torch.equal(cond[name], value), name


def test_lengths_that_differ_without_a_mask_are_encoded_together():
    family = Encoders(mask=False)
    cond = encode_prompts(family, PROMPTS, CPU)
    assert family.calls[-1] == ["a cat", "a much longer one", "two dogs", "x"]
    assert torch.equal(cond["text"], Encoders().encode(PROMPTS, CPU)["text"])
    assert joined([{"text": torch.zeros(1, 2, 3)}, {"text": torch.zeros(1, 2, 4)}]) is None


def test_one_negative_prompt_is_stored_once():
    family = Encoders()
    cond = encode_prompts(family, PROMPTS, CPU, negative="blur")
    assert family.calls[2:] == [["blur"]]
    text = cond["text_negative"]
    assert text.shape == (5, 4, 2) and text.untyped_storage().nbytes() == 4 * 2 * 4
    assert torch.equal(text[[3, 0]], torch.full((2, 4, 2), 4.0))
    own = [Prompt("a", negative="n"), *PROMPTS[:2], Prompt("b", negative="")]
    found = encode_prompts(Encoders(), own, CPU, negative="blur")["text_negative"]
    assert found[:, 0, 0].tolist() == [1.0, 4.0, 4.0, 1.0]


@pytest.mark.parametrize("name", FAMILIES)
def test_passes_give_what_one_gives(name, monkeypatch):
    policy = policy_of(name, 3.0)
    prompts = ["a cat", "a dog!", "a bird in a tree", "it"]
    whole = policy.encode(prompts)
    monkeypatch.setattr(diffusion.prompt_encoding, "TOKENS", 1)
    cond = policy.encode(prompts)
    assert cond.keys() == whole.keys() and len(cond) >= 1
    for key, value in whole.items():
        assert cond[key].shape == value.shape, key
        torch.testing.assert_close(cond[key], value, rtol=1e-4, atol=1e-5)


def test_guided_outputs_do_not_depend_on_how_negatives_are_stored():
    policy = policy_of("sdxl", 3.0)
    cond = policy.encode(["a cat", "a dog"])
    copied = {name: value.clone().contiguous() for name, value in cond.items()}
    x = torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        one, other = (policy.predict(x, torch.full((2,), 500), c) for c in (cond, copied))
    assert torch.equal(one, other)
