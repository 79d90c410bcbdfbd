"""Held weights take the place of trained ones, and these come back bit for bit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from family_images import PROMPTS, SIZES
from small_runs import small_config
from tiny_families import tiny

from diffusion.config import check
from diffusion.errors import InputError
from diffusion.finetune import Finetuner
from diffusion.held import HeldWeights
from diffusion.loading import prepare_pipeline
from diffusion.pipelines import ImagePolicy
from diffusion.prompts.sources import load_prompts
from diffusion.rewards import load_reward

WORDS = ["a dog", "a cat", "a hat", "a cup", "an egg", "a fox"]


def held(dtype: torch.dtype = torch.float32) -> tuple[torch.nn.Linear, HeldWeights]:
    network = torch.nn.Linear(3, 2)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(parameter.bfloat16())
    found = dict(network.named_parameters())
    return network, HeldWeights(found, dict.fromkeys(found, dtype))


def copies(network: torch.nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in network.parameters()]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_change_places_and_come_back_even_after_an_error(dtype):
    network, reference = held(dtype)
    before = copies(network)
    for _ in range(2):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter += 0.1
        trained = copies(network)
        with pytest.raises(KeyError), reference.swapped():
            assert reference.in_place and same(copies(network), before)
            with reference.swapped():
                assert same(copies(network), before)
            assert same(copies(network), before)
            raise KeyError
        assert not reference.in_place and same(copies(network), trained)


def test_a_swap_between_a_pass_and_its_backward_pass_raises():
    network, reference = held()
    x = torch.ones(1, 3, requires_grad=True)
    out = network(x).sum()
    with reference.swapped():
        pass
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()


def test_a_host_reference_says_what_a_second_network_says():
    policies = {
        on: ImagePolicy(
            prepare_pipeline(tiny("sd3")), guidance_scale=2.0, train="full", reference_on=on,
            **SIZES["sd3"],
        )
        for on in ("host", "device")
    }  # fmt: skip
    said = {}
    for on, policy in policies.items():
        assert len(policy.networks()) == (2 if on == "device" else 1)
        with torch.no_grad():
            for parameter in policy.trainable().values():
                parameter *= 1.1
        cond = policy.encode(PROMPTS)
        x = torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(0))
        t = policy.process(3, sampler="ode").timesteps[1].expand(2)
        predictions = [policy.predict(x, t, cond).detach()]
        with policy.as_reference():
            predictions += [policy.predict_reference(x, t, cond) for _ in range(2)]
        said[on] = [*predictions, policy.predict_reference(x, t, cond), policy.predict(x, t, cond)]
    assert same(said["host"], said["device"])
    assert not torch.equal(said["host"][0], said["host"][1])
    assert torch.equal(said["host"][0], said["host"][-1])


@pytest.mark.parametrize(
    "options",
    [
        {"algorithm": "prdp", "clip": 1e6},
        {"algorithm": "grpo", "kl_weight": 0.1},
        {"algorithm": "nft", "kl_weight": 0.1, "draws": 2},
    ],
    ids=lambda options: options["algorithm"],
)
def test_training_is_the_same_with_either(options, tmp_path):
    found = []
    for on in ("host", "device"):
        config = small_config(
            model="tiny", prompts="world", output=tmp_path, train="full", reference_on=on,
            learning_rate=1e-4, unit="nats", **options,
        )  # fmt: skip
        policy = ImagePolicy(
            prepare_pipeline(tiny("sd3")), guidance_scale=2.0, train="full", reference_on=on,
            **SIZES["sd3"],
        )  # fmt: skip
        tuner = Finetuner(policy, load_reward("jpeg_compressibility"), load_prompts(WORDS), config)
        rows = [tuner.run_epoch() for _ in range(2)]
        weights = [p.detach() for p in policy.trainable().values()]
        numbers = [
            {k: v for k, v in row.items() if not k.startswith(("time/", "memory/"))} for row in rows
        ]
        found.append((numbers, weights))
    assert found[0][0] == found[1][0] and same(found[0][1], found[1][1])
    assert any(value != 0 for name, value in found[0][0][1].items() if name.startswith("kl/"))


def test_it_is_an_option_of_full_fine_tuning():
    full = small_config(train="full", reference_on="host")
    check(full)
    with pytest.raises(InputError, match="--reference-on is of --train full"):
        check(replace(full, train="lora"))
