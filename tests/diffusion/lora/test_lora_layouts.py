"""One known LoRA in as many layouts as people have: used in full, or refused; never the base."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lora_layouts import (
    ALPHA,
    RANK,
    Known,
    add_known,
    base_output,
    expected,
    fresh,
    keyed,
    known,
    kohya,
    output,
    peft_config,
    write,
)  # fmt: skip

from diffusion.errors import InputError
from diffusion.lora import load_lora

AB = (".lora_A.weight", ".lora_B.weight")
SCALE, LENGTH = ALPHA / RANK, 0.7


# -- layouts: (folder, layers) -> what load_lora is given -----------------------------------------


def diffusers_folded(folder: Path, lora: Known) -> Path:
    tensors = keyed(lora, "unet.{}", *AB, folded=True)
    return write(folder, tensors, "pytorch_lora_weights.safetensors")


def diffusers_with_metadata(folder: Path, lora: Known) -> Path:
    about = {"unet.r": RANK, "unet.lora_alpha": ALPHA, "unet.target_modules": ["to_q"]}
    return write(folder, keyed(lora, "unet.{}", *AB), lora_adapter_metadata=json.dumps(about))


def peft(folder: Path, lora: Known) -> Path:
    write(folder, keyed(lora, "base_model.model.{}", *AB), "adapter_model.safetensors")
    peft_config(folder)
    return folder


def peft_pattern(folder: Path, lora: Known) -> Path:
    write(folder, keyed(lora, "base_model.model.{}", *AB), "adapter_model.safetensors")
    peft_config(folder, lora_alpha=1, alpha_pattern={name: ALPHA for name in lora})
    return folder


def peft_rslora(folder: Path, lora: Known) -> Path:
    write(folder, keyed(lora, "base_model.model.{}", *AB), "adapter_model.safetensors")
    peft_config(folder, lora_alpha=ALPHA / RANK**0.5, use_rslora=True)
    return folder


def peft_named(folder: Path, lora: Known) -> Path:
    ends = (".lora_A.default.weight", ".lora_B.default.weight")
    write(folder, keyed(lora, "base_model.model.{}", *ends), "adapter_model.safetensors")
    peft_config(folder)
    return folder


def without_prefix(folder: Path, lora: Known) -> Path:
    return write(folder, keyed(lora, "{}", *AB, folded=True))


def parallel(folder: Path, lora: Known) -> Path:
    return write(folder, keyed(lora, "module.{}", *AB, folded=True))


def parallel_in_peft(folder: Path, lora: Known) -> Path:
    return write(folder, keyed(lora, "module.base_model.model.unet.{}", *AB, folded=True))


def up_and_down(folder: Path, lora: Known) -> Path:
    ends = (".lora.down.weight", ".lora.up.weight")
    return write(folder, keyed(lora, "unet.{}", *ends, folded=True))


def old_processors(folder: Path, lora: Known) -> Path:
    """unet....attn1.processor.to_q_lora.down.weight, as diffusers wrote them in 2023."""
    tensors = {}
    for name, (down, up) in lora.items():
        head, _, last = name.removesuffix(".0").rpartition(".")
        tensors[f"unet.{head}.processor.{last}_lora.down.weight"] = down
        tensors[f"unet.{head}.processor.{last}_lora.up.weight"] = up * SCALE
    return write(folder, tensors)


def kohya_file(folder: Path, lora: Known) -> Path:
    return write(folder, kohya(lora)) / "lora.safetensors"


def halves(folder: Path, lora: Known) -> Path:
    return write(folder, {k: v.bfloat16() for k, v in kohya(lora).items()})


def sgm(name: str) -> str:
    """SDXL's original names, for the tiny UNet of one layer a block; attention alone."""
    places = {"down_blocks.1.attentions.0": "input_blocks.3.1", "mid_block.attentions.0":
              "middle_block.1", "up_blocks.0.attentions.0": "output_blocks.0.1",
              "up_blocks.0.attentions.1": "output_blocks.1.1"}  # fmt: skip
    here = next(place for place in places if name.startswith(place))
    return name.replace(here, places[here])


def kohya_sgm(folder: Path, lora: Known) -> Path:
    return write(folder, kohya(lora, rename=sgm))


def dora(folder: Path, lora: Known) -> Path:
    tensors = keyed(lora, "unet.{}", *AB, folded=True)
    for name in lora:
        tensors[f"unet.{name}.lora_magnitude_vector"] = torch.full((len(lora[name][1]),), LENGTH)
    return write(folder, tensors)


def kohya_dora(folder: Path, lora: Known) -> Path:
    tensors = kohya(lora)
    for name in lora:
        stem = "lora_unet_" + name.replace(".", "_")
        tensors[f"{stem}.dora_scale"] = torch.full((len(lora[name][1]), 1), LENGTH)
    return write(folder, tensors)


ATTENTION = ("to_q", "to_v", "to_out.0")
WIDE = (*ATTENTION, "ff.net.2", "conv1", "proj_in", "time_emb_proj")
UNET: dict[str, tuple[Callable, str, tuple[str, ...]]] = {
    "diffusers, scale in the weights": (diffusers_folded, "sd", WIDE),
    "diffusers, alpha in the metadata": (diffusers_with_metadata, "sd", WIDE),
    "peft": (peft, "sd", WIDE),
    "peft, alpha by layer": (peft_pattern, "sd", WIDE),
    "peft, rank-stabilised": (peft_rslora, "sd", WIDE),
    "peft, adapter's name in the keys": (peft_named, "sd", WIDE),
    "no prefix": (without_prefix, "sd", WIDE),
    "module.": (parallel, "sd", WIDE),
    "module. around peft": (parallel_in_peft, "sd", WIDE),
    "lora.up and lora.down": (up_and_down, "sd", WIDE),
    "old attention processors": (old_processors, "sd", ATTENTION),
    "kohya": (kohya_file, "sd", WIDE),
    "kohya in bf16": (halves, "sd", WIDE),
    "kohya for SDXL, diffusers' names": (kohya_file, "sdxl", WIDE),
    "kohya for SDXL, original names": (kohya_sgm, "sdxl", ("to_q", "to_v", "ff.net.2", "proj_in")),
    "dora": (dora, "sd", ATTENTION),
    "dora of kohya": (kohya_dora, "sd", ATTENTION),
}


def checked(family: str, made: Callable, ends, folder: Path, length=None, atol=5e-5) -> None:
    """The layout gives the known LoRA's output, and every key of it is used."""
    lora, wanted = expected(family, ends, length)
    pipe = fresh(family)
    found = load_lora(pipe, str(made(folder, lora)))
    assert found.used == found.total > 0 and found.note is None
    torch.testing.assert_close(output(family, pipe), wanted, atol=atol, rtol=0)
    assert float((wanted - base_output(family)).abs().max()) > 10 * atol


@pytest.mark.parametrize("layout", UNET)
def test_a_layout_of_unets_is_used_in_full(layout, tmp_path):
    made, family, ends = UNET[layout]
    length = LENGTH if "dora" in layout else None
    checked(family, made, ends, tmp_path, length, atol=1e-2 if "bf16" in layout else 5e-5)


# -- transformers ---------------------------------------------------------------------------------


def transformer(folder: Path, lora: Known) -> Path:
    return write(folder, keyed(lora, "transformer.{}", *AB, folded=True))


def one_trainer(folder: Path, lora: Known) -> Path:
    return write(folder, kohya(lora, "lora_transformer_"))


def lycoris(folder: Path, lora: Known) -> Path:
    return write(folder, kohya(lora, "lycoris_"))


def musubi(folder: Path, lora: Known) -> Path:
    return write(folder, kohya(lora, "lora_unet_"))


def diffusion_model(folder: Path, lora: Known) -> Path:
    tensors = keyed(lora, "diffusion_model.{}", *AB)
    tensors |= {f"diffusion_model.{name}.alpha": torch.tensor(ALPHA) for name in lora}
    return write(folder, tensors)


JOINT = ("attn.to_q", "attn.add_k_proj", "attn.to_add_out")
TRANSFORMERS: dict[str, tuple[Callable, str, tuple[str, ...]]] = {
    "sd3, diffusers": (transformer, "sd3", JOINT),
    "sd3, one trainer": (one_trainer, "sd3", JOINT),
    "flux, diffusers": (transformer, "flux", (*JOINT, "proj_mlp")),
    "flux, lycoris": (lycoris, "flux", JOINT),
    "flux2, peft": (peft, "flux2_klein", ("attn.to_q", "to_qkv_mlp_proj")),
    "qwen, musubi": (musubi, "qwen_image", JOINT),
    "qwen, diffusion_model. with alphas": (diffusion_model, "qwen_image", JOINT),
    "z-image, diffusion_model. with alphas": (diffusion_model, "z_image", ("attention.to_q",)),
    "sana, no prefix": (without_prefix, "sana", ("attn1.to_q",)),
    "pixart, peft": (peft, "pixart", ("attn1.to_q", "ff.net.2")),
}


@pytest.mark.parametrize("layout", TRANSFORMERS)
def test_a_layout_of_transformers_is_used_in_full(layout, tmp_path):
    made, family, ends = TRANSFORMERS[layout]
    checked(family, made, ends, tmp_path, atol=1e-6)


def test_fused_layers_of_flux_are_taken_apart(tmp_path):
    """kohya trains Flux under its original names, whose q, k and v are one layer."""
    lora, wanted = expected("flux", ("transformer_blocks.0.attn.to_q",))
    name, (down, up) = next((n, v) for n, v in lora.items() if not n.startswith("single"))
    stem = "lora_unet_double_blocks_0_img_attn_qkv"
    zeros = torch.zeros_like(up)
    tensors = {
        f"{stem}.lora_down.weight": down,
        f"{stem}.lora_up.weight": torch.cat([up, zeros, zeros]),
        f"{stem}.alpha": torch.tensor(ALPHA),
    }
    pipe, alone = fresh("flux"), fresh("flux")
    found = load_lora(pipe, str(write(tmp_path, tensors)))
    assert (found.used, found.total) == (3, 3)
    add_known(alone.transformer, {name: (down, up)}, SCALE)
    torch.testing.assert_close(output("flux", pipe), output("flux", alone), atol=1e-6, rtol=0)
    assert not torch.allclose(output("flux", alone), base_output("flux"), atol=1e-4)


# -- text encoders --------------------------------------------------------------------------------


def encoders(folder: Path, lora: Known, layout: str) -> Path:
    if layout == "diffusers":
        return write(folder, keyed(lora, "text_encoder.text_model.{}", *AB, folded=True))
    if layout == "kohya":
        return write(folder, kohya(lora, "lora_te_text_model_"))
    if layout == "kohya, numbered":
        return write(folder, kohya(lora, "lora_te1_text_model_"))
    tensors = {}
    for name, (down, up) in lora.items():  # old: ...self_attn.to_q_lora.down.weight
        stem = f"text_encoder.text_model.{name.replace('q_proj', 'to_q')}_lora"
        tensors |= {f"{stem}.down.weight": down, f"{stem}.up.weight": up * SCALE}
    return write(folder, tensors)


@pytest.mark.parametrize("layout", ["diffusers", "kohya", "kohya, numbered", "old"])
def test_the_part_in_a_text_encoder_is_added_to_it(layout, tmp_path):
    ends = ("q_proj",) if layout == "old" else ("q_proj", "fc1")
    pipe, other = fresh("sd", "text_encoder"), fresh("sd", "text_encoder")
    lora = known(other.text_encoder, ends)
    add_known(other.text_encoder, lora, SCALE)
    found = load_lora(pipe, str(encoders(tmp_path, lora, layout)))
    assert found.used == found.total and set(found.layers) == {"text_encoder"}
    torch.testing.assert_close(output("sd", pipe), output("sd", other), atol=1e-5, rtol=0)
    assert not torch.allclose(output("sd", other), base_output("sd"), atol=1e-3)


# -- what is not used -----------------------------------------------------------------------------


def test_a_partial_match_says_how_many_keys_were_used(tmp_path):
    lora, wanted = expected("sd", ATTENTION)
    tensors = keyed(lora, "unet.{}", *AB, folded=True)
    strange = {
        "unet.down_blocks.7.to_q.lora_A.weight": torch.ones(4, 8),
        "bundle_emb.x": torch.ones(2),
    }
    pipe = fresh("sd")
    with pytest.warns(UserWarning) as said:
        found = load_lora(pipe, str(write(tmp_path, tensors | strange)))
    assert (found.used, found.total) == (len(tensors), len(tensors) + 2)
    text = str(said[0].message)
    assert f"{len(tensors)} of {len(tensors) + 2} keys are used" in text
    assert "bundle_emb.x" in text and "down_blocks.7" in text
    torch.testing.assert_close(output("sd", pipe), wanted, atol=5e-5, rtol=0)


def refusal(folder: Path | str) -> str:
    pipe = fresh("sd")
    with pytest.raises(InputError) as error:
        load_lora(pipe, str(folder))
    assert "\n" not in str(error.value)
    assert getattr(pipe.unet, "peft_config", None) is None
    return str(error.value)


def test_what_fits_nothing_is_refused(tmp_path):
    tensors = {
        "other model": keyed(expected("flux", JOINT)[0], "transformer.{}", *AB),
        "loha": {"lora_unet_x.hada_w1_a": torch.ones(2, 2)},
        "a whole model": {"unet.conv_in.weight": torch.ones(2, 2)},
        "half a layer": {"unet.conv_in.lora_A.weight": torch.ones(2, 2)},
    }
    for name, content in tensors.items():
        said = refusal(write(tmp_path / name, content))
        assert "no key of the LoRA" in said and f"0 of {len(content)}" in said, name
    assert "LoHa" in refusal(tmp_path / "loha")


def test_another_width_is_refused(tmp_path):
    lora, _ = expected("sdxl", ("to_k",))
    said = refusal(write(tmp_path, keyed(lora, "unet.{}", *AB)))
    assert "does not fit this pipeline" in said and "attn" in said


def test_numbers_that_cannot_be_are_refused(tmp_path):
    lora, _ = expected("sd", ATTENTION)
    tensors, first = kohya(lora), next(iter(kohya(lora))).partition(".")[0]
    up = f"{first}.lora_up.weight"
    bad = {
        "NaN": {up: torch.full_like(tensors[up], torch.nan)},
        "finite alpha": {f"{first}.alpha": torch.tensor(torch.inf)},
        "magnitudes": {f"{first}.dora_scale": torch.ones(1, 3)},
    }
    for said, change in bad.items():
        assert said in refusal(write(tmp_path / said, tensors | change))
    two = keyed(lora, "unet.{}", ".lora_A.a.weight", ".lora_B.a.weight")
    two |= keyed(lora, "unet.{}", ".lora_A.b.weight", ".lora_B.b.weight")
    assert "more than one LoRA" in refusal(write(tmp_path / "two", two))


@pytest.mark.parametrize(
    "document",
    [
        "[]", "{", '{"r": "many"}', '{"lora_alpha": 1e999}', '{"r": 0}', '{"alpha_pattern": [1]}',
        '{"alpha_pattern": {"(a+)+$": 1}}', '{"lora_alpha": null, "r": -3}', "[" * 5000,
    ],
)  # fmt: skip
def test_a_strangers_configuration_is_checked(document, tmp_path):
    lora, _ = expected("sd", ATTENTION)
    beside = write(tmp_path / "beside", keyed(lora, "unet.{}", *AB), "adapter_model.safetensors")
    (beside / "adapter_config.json").write_text(document)
    assert len(refusal(beside)) < 600
    inside = write(tmp_path / "in", keyed(lora, "unet.{}", *AB), lora_adapter_metadata=document)
    if "alpha_pattern" not in document:  # which is of a component there
        refusal(inside)


def test_files_that_are_no_lora_are_one_line(tmp_path):
    (tmp_path / "lora.bin").write_bytes(b"\x80\x02")
    assert "is a pickle" in refusal(tmp_path / "lora.bin") and "pickle" in refusal(tmp_path)
    (tmp_path / "torn.safetensors").write_bytes(b"\x10" * 9)
    assert "cannot read the LoRA" in refusal(tmp_path / "torn.safetensors")
    assert 'no LoRA at "nowhere"' in refusal("nowhere")
    for name in ("a", "b"):
        write(tmp_path / "two", {"x": torch.ones(1)}, f"{name}.safetensors")
    assert "2 .safetensors files (a.safetensors, b.safetensors)" in refusal(tmp_path / "two")
