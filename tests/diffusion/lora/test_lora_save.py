"""What is written for user interfaces is read by diffusers and by us, with the same output."""

from __future__ import annotations

import pytest
import torch
from lora_layouts import ALPHA, RANK, denoiser_name, expected, fresh, output
from safetensors import safe_open

from diffusion.lora import load_lora
from diffusion.lora.names import Layer
from diffusion.lora.save import original_name, save_diffusers, save_kohya

ENDS = {
    "sd": ("to_q", "to_out.0", "conv1", "proj_in", "ff.net.0.proj"),
    "sdxl": ("to_q", "conv1", "conv_shortcut", "proj_out", "ff.net.2", "time_emb_proj"),
    "sd3": ("attn.to_q", "attn.add_k_proj"),
    "flux": ("attn.to_q", "attn.add_k_proj"),
    "flux2_klein": ("attn.to_q", "to_qkv_mlp_proj"),
    "qwen_image": ("attn.to_q", "img_mlp.net.2"),
    "z_image": ("attention.to_q", "feed_forward.w1"),
    "sana": ("attn1.to_q", "conv_point"),
    "pixart": ("attn1.to_q", "ff.net.2"),
}


def written(family: str, folder, layout: str):
    lora, wanted = expected(family, ENDS[family])
    pipe = fresh(family)
    layers = {denoiser_name(pipe): {n: Layer(a, b, ALPHA) for n, (a, b) in lora.items()}}
    if layout == "diffusers":
        return save_diffusers(folder, layers, {}), wanted
    unet = pipe.unet.config if denoiser_name(pipe) == "unet" else None
    return save_kohya(folder, layers, {"ss_steps": "7"}, unet), wanted


@pytest.mark.parametrize(
    ("family", "layout"),
    [*((family, "kohya") for family in ENDS), ("sd", "diffusers"), ("pixart", "diffusers")],
)
def test_a_written_lora_gives_its_output(family, layout, tmp_path):
    file, wanted = written(family, tmp_path, layout)
    pipe = fresh(family)
    found = load_lora(pipe, str(file))
    assert found.used == found.total
    torch.testing.assert_close(output(family, pipe), wanted, atol=1e-5, rtol=0)
    if family != "pixart":  # whose class in diffusers loads no LoRA
        plain = fresh(family)
        plain.load_lora_weights(tmp_path, weight_name=file.name)
        torch.testing.assert_close(output(family, plain), wanted, atol=1e-5, rtol=0)


def test_keys_are_those_that_user_interfaces_look_for(tmp_path):
    with safe_open(written("sd", tmp_path, "kohya")[0], "pt") as file:
        stem = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_out_0"
        assert {f"{stem}.lora_down.weight", f"{stem}.lora_up.weight"} <= set(file.keys())
        assert float(file.get_tensor(f"{stem}.alpha")) == ALPHA
        about = file.metadata()
    assert (about["ss_network_dim"], about["ss_network_alpha"]) == (str(RANK), str(ALPHA))
    assert about["ss_steps"] == "7" and about["ss_network_module"] == "networks.lora"
    with safe_open(written("sdxl", tmp_path, "kohya")[0], "pt") as file:
        keys = set(file.keys())
    assert "lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q.lora_down.weight" in keys
    assert "lora_unet_input_blocks_1_0_in_layers_2.alpha" in keys
    with safe_open(written("flux", tmp_path, "kohya")[0], "pt") as file:
        assert "transformer.transformer_blocks.0.attn.to_q.lora_A.weight" in set(file.keys())
        assert file.metadata()["ss_network_alpha"] == str(RANK)  # the scale is in the weights


@pytest.mark.parametrize(
    ("name", "original"),
    [
        ("conv_in", "input_blocks.0.0"),
        ("down_blocks.0.resnets.1.conv1", "input_blocks.2.0.in_layers.2"),
        ("down_blocks.0.downsamplers.0.conv", "input_blocks.3.0.op"),
        ("down_blocks.1.attentions.0.proj_in", "input_blocks.4.1.proj_in"),
        ("down_blocks.2.attentions.1.transformer_blocks.9.attn2.to_k",
         "input_blocks.8.1.transformer_blocks.9.attn2.to_k"),
        ("mid_block.resnets.1.conv2", "middle_block.2.out_layers.3"),
        ("mid_block.attentions.0.proj_out", "middle_block.1.proj_out"),
        ("up_blocks.0.attentions.2.proj_in", "output_blocks.2.1.proj_in"),
        ("up_blocks.0.upsamplers.0.conv", "output_blocks.2.2.conv"),
        ("up_blocks.2.resnets.1.conv_shortcut", "output_blocks.7.0.skip_connection"),
        ("add_embedding.linear_2", "label_emb.0.2"),
    ],
)  # fmt: skip
def test_original_names_of_the_real_sdxl(name, original):
    """As Stability's own code has them: 9 input blocks, 3 middle blocks, 9 output blocks."""
    config = {
        "layers_per_block": 2,
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    }
    assert original_name(name, config) == original
