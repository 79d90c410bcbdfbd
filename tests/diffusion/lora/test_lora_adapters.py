"""Adapters of our own: which layers, what scale, DoRA, and dropout that keeps ratios exact."""

from __future__ import annotations

import copy

import pytest
import torch
from lora_layouts import ALPHA, SIZES, base_output, expected, fresh, keyed, known, output, write

from diffusion.errors import InputError
from diffusion.loading import prepare_pipeline
from diffusion.lora import load_lora
from diffusion.lora.adapters import TRAINED, target_names
from diffusion.lora.names import base_layers
from diffusion.pipelines import ImagePolicy

AB = (".lora_A.weight", ".lora_B.weight")


def policy_of(family: str, *parts: str, **options) -> ImagePolicy:
    pipe = prepare_pipeline(fresh(family, *parts))
    sizes = {k: v for k, v in SIZES.get(family, {}).items()}
    return ImagePolicy(pipe, guidance_scale=1.0, lora_rank=2, **sizes, **options)


def shaken(policy: ImagePolicy, size: float = 0.2) -> ImagePolicy:
    """Trained weights moved from where they change nothing."""
    stream = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter += size * torch.randn(parameter.shape, generator=stream)
    return policy


# -- which layers ---------------------------------------------------------------------------------


def test_targets_are_a_list_of_the_familys_or_names_or_a_regex():
    policy = policy_of("sd", lora_targets="to_q, attn2.to_v")
    names = {name.partition(".lora_")[0] for name in policy.trainable()}
    layers = base_layers(policy.denoiser)
    assert names == {n for n in layers if n.endswith((".to_q", "attn2.to_v"))} and names
    network, known_lists = policy.denoiser, policy.family.lora_targets
    assert target_names(network, "attention", known_lists) == list(known_lists["attention"])
    picked = target_names(network, r"mid_block\..*to_[qk]", known_lists)
    assert len(picked) == 4 and all(name.startswith("mid_block") for name in picked)


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        ("to_qq", 'Did you mean "to_q"'),
        ("to_q,atention", "no linear or convolutional layer is called atention"),
        ("norm1", "no linear or convolutional layer"),
        ("to_(q", "is no regex"),
        ("block.*", "matches no layer's whole name"),
        (" , ", "expected attention, all"),
    ],
)
def test_targets_that_fit_no_layer_are_one_line(targets, said):
    with pytest.raises(InputError) as error:
        policy_of("sd", lora_targets=targets)
    assert said in str(error.value) and "\n" not in str(error.value)


# -- scale, DoRA ----------------------------------------------------------------------------------


def test_alpha_over_rank_multiplies_the_output():
    one, other = (policy_of("sd", lora_alpha=alpha) for alpha in (None, 6.0))
    for policy in (one, other):
        shaken(policy)
    with torch.no_grad():
        for name, parameter in one.trainable().items():
            if "lora_B" in name:
                parameter *= 3.0  # 6 / 2
    torch.testing.assert_close(output("sd", other.pipe), output("sd", one.pipe))


def test_a_dora_starts_as_the_identity_and_trains_its_magnitudes(tmp_path):
    policy = policy_of("sd", lora_dora=True, lora_alpha=4.0, lora_targets="to_q,conv1")
    torch.testing.assert_close(output("sd", policy.pipe), base_output("sd"), atol=1e-5, rtol=0)
    vectors = [name for name in policy.trainable() if "magnitude" in name]
    assert vectors and all(f".{TRAINED}." in name for name in vectors)
    after = output("sd", shaken(policy).pipe)
    policy.save_weights(tmp_path, kohya=True)
    for file in ("pytorch_lora_weights.safetensors", "lora_kohya.safetensors"):
        pipe = fresh("sd")
        load_lora(pipe, str(tmp_path / file))
        torch.testing.assert_close(output("sd", pipe), after, atol=1e-5, rtol=0)
    pipe = fresh("sd")
    pipe.load_lora_weights(tmp_path)
    torch.testing.assert_close(output("sd", pipe), after, atol=1e-5, rtol=0)


# -- dropout --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dora", [False, True])
def test_dropout_is_the_same_in_every_pass_of_an_epoch(dora):
    policy = shaken(policy_of("sd", lora_dora=dora, lora_targets="all"))
    whole = output("sd", policy.pipe)
    with policy.thinned(0.5, seed=0, epoch=1):
        first = output("sd", policy.pipe)
        assert torch.equal(output("sd", policy.pipe), first)
    with policy.thinned(0.5, seed=0, epoch=2):
        second = output("sd", policy.pipe)
    with policy.thinned(0.5, seed=0, epoch=1):
        assert torch.equal(output("sd", policy.pipe), first)
    assert not torch.allclose(first, whole) and not torch.allclose(first, second)
    assert torch.equal(output("sd", policy.pipe), whole)


def test_dropout_leaves_inputs_out_by_hand():
    """A x of one layer: a share of x is 0, the rest is divided by what is kept."""
    policy = shaken(policy_of("sd", lora_targets="conv1"))
    module = policy.denoiser.down_blocks[0].resnets[0].conv1
    x = torch.randn(1, 32, 4, 4)
    seen = []
    hook = module.lora_A[TRAINED].register_forward_hook(lambda m, i, o: seen.append(o.detach()))
    with policy.thinned(0.25, seed=0, epoch=0):
        module(x)
    hook.remove()
    weight = module.lora_A[TRAINED].weight.detach()
    # Which channels are left out follows from the output, which is linear in them.
    parts = torch.stack(
        [
            torch.nn.functional.conv2d(x[:, c : c + 1], weight[:, c : c + 1], padding=1).flatten()
            for c in range(32)
        ]
    )
    factors = torch.linalg.lstsq(parts.T, seen[0].flatten()[:, None]).solution.flatten()
    kept = (factors - 4 / 3).abs() < 1e-2
    assert torch.all(kept | (factors.abs() < 1e-2)) and 16 <= int(kept.sum()) < 32


# -- where a training starts ----------------------------------------------------------------------


@pytest.mark.parametrize("family", ["pixart", "sd3"])
def test_a_start_from_a_lora_is_its_own_reference(family, tmp_path):
    ends = ("to_q",)
    lora, wanted = expected(family, ends)
    write(tmp_path, keyed(lora, "transformer.{}", *AB, folded=True))
    policy = policy_of(family, start_lora=str(tmp_path))
    cond = policy.encode(["a cat"])
    x = torch.randn(1, *policy.latent_shape, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([500.0])
    torch.testing.assert_close(policy.predict(x, t, cond), wanted.float(), atol=1e-5, rtol=0)
    assert torch.equal(policy.predict(x, t, cond), policy.predict_reference(x, t, cond))
    before = policy.predict_reference(x, t, cond)
    shaken(policy)
    assert not torch.allclose(policy.predict(x, t, cond), before, atol=1e-3)
    assert torch.equal(policy.predict_reference(x, t, cond), before)
    assert all(f".{TRAINED}." in name for name in policy.trainable())


def test_a_start_keeps_what_the_lora_changes_in_text_encoders(tmp_path):
    """It is added to them, stays frozen, and is saved beside what is trained."""
    pipe = fresh("sd", "text_encoder")
    unet, text = known(pipe.unet, ("to_q",)), known(pipe.text_encoder, ("q_proj", "fc2"))
    tensors = keyed(unet, "unet.{}", *AB) | keyed(text, "text_encoder.text_model.{}", *AB)
    theirs = write(tmp_path / "theirs", tensors)
    policy = policy_of("sd", "text_encoder", start_lora=str(theirs))
    changed = copy.deepcopy(policy.pipe.text_encoder.state_dict())
    after = output("sd", shaken(policy).pipe)
    assert all(name.split(".")[0] != "text_encoder" for name in policy.trainable())
    policy.save_weights(tmp_path / "ours", kohya=True)
    for file in ("pytorch_lora_weights.safetensors", "lora_kohya.safetensors"):
        again = fresh("sd", "text_encoder")
        found = load_lora(again, str(tmp_path / "ours" / file))
        assert found.used == found.total
        torch.testing.assert_close(output("sd", again), after, atol=1e-5, rtol=0)
        for name, value in again.text_encoder.state_dict().items():
            torch.testing.assert_close(value, changed[name], atol=1e-6, rtol=0)
    plain = fresh("sd", "text_encoder")
    plain.load_lora_weights(tmp_path / "ours")
    torch.testing.assert_close(output("sd", plain), after, atol=1e-5, rtol=0)


def test_full_training_starts_from_a_lora_that_is_the_denoisers_alone(tmp_path):
    lora, wanted = expected("sd", ("to_q", "conv1"))
    theirs = write(tmp_path / "a", keyed(lora, "unet.{}", *AB, folded=True))
    policy = policy_of("sd", train="full", start_lora=str(theirs))
    torch.testing.assert_close(output("sd", policy.pipe), wanted, atol=5e-5, rtol=0)
    text = known(fresh("sd").text_encoder, ("q_proj",))
    more = keyed(lora, "unet.{}", *AB) | keyed(text, "text_encoder.text_model.{}", *AB)
    with pytest.raises(InputError, match="also changes text_encoder"):
        policy_of("sd", train="full", start_lora=str(write(tmp_path / "b", more)))
    only = write(tmp_path / "c", keyed(text, "text_encoder.{}", *AB))
    for train in ("lora", "full"):
        with pytest.raises(InputError, match="text.encoder"):
            policy_of("sd", train=train, start_lora=str(only))


def test_alpha_survives_saving_and_starting_again(tmp_path):
    """diffusers' layout has the scale in its weights; our reader takes it out again."""
    policy = shaken(policy_of("sd", lora_alpha=ALPHA, lora_targets="to_q"))
    policy.save_weights(tmp_path)
    again = policy_of("sd", start_lora=str(tmp_path))
    mine, theirs = (one.lora_layers()["unet"] for one in (policy, again))
    assert mine.keys() == theirs.keys()
    for name, layer in mine.items():
        assert theirs[name].alpha == layer.alpha == ALPHA
        torch.testing.assert_close(theirs[name].up, layer.up)
