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
    base_output,
    expected,
    fresh,
    keyed,
    kohya,
    output,
    peft_config,
    write,
)  # fmt: skip

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
