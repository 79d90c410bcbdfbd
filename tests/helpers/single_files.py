"""Tiny pipelines as single `.safetensors` files, in the layouts of the models' authors.

The names are written from those layouts, and not from the code that reads them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tiny_families import tiny
from tiny_models import TEXT_WIDTH, text_encoder
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

Tensors = dict[str, torch.Tensor]
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
TOP = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def unet(network: Any) -> Tensors:
    """A UNet in the layout of latent diffusion."""
    layers, out = network.config.layers_per_block, {}
    for name, value in network.state_dict().items():
        stem, _, leaf = name.rpartition(".")
        if stem in TOP:
            out[f"{TOP[stem]}.{leaf}"] = value
            continue
        for short, long in RESNET.items():
            name = re.sub(rf"(resnets\.\d+)\.{short}\.", rf"\1.{long}.", name)
        if match := re.match(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.*)", name):
            way, block, kind, layer, rest = match.groups()
            first = int(block) * (layers + 1)
            if kind == "downsamplers":
                name = f"input_blocks.{1 + first + layers}.0.op.{rest.split('.')[-1]}"
            elif kind == "upsamplers":
                at = 2 if "CrossAttn" in network.config.up_block_types[int(block)] else 1
                name = f"output_blocks.{first + layers}.{at}.conv.{rest.split('.')[-1]}"
            else:
                room = "input_blocks" if way == "down" else "output_blocks"
                at = first + int(layer) + (way == "down")
                name = f"{room}.{at}.{int(kind == 'attentions')}.{rest}"
        elif match := re.match(r"mid_block\.(\w+)\.(\d+)\.(.*)", name):
            kind, layer, rest = match.groups()
            name = f"middle_block.{1 if kind == 'attentions' else 2 * int(layer)}.{rest}"
        out[name] = value
    return out


def vae(network: Any) -> Tensors:
    """An autoencoder in the layout of latent diffusion, its attention as 1 x 1 convolutions."""
    blocks, out = len(network.config.block_out_channels), {}
    words = {
        "conv_norm_out": "norm_out",
        "conv_shortcut": "nin_shortcut",
        "mid_block.resnets.0": "mid.block_1",
        "mid_block.resnets.1": "mid.block_2",
        "mid_block.attentions.0": "mid.attn_1",
        "group_norm": "norm",
        "to_q": "q",
        "to_k": "k",
        "to_v": "v",
        "to_out.0": "proj_out",
    }
    for name, value in network.state_dict().items():
        for short, long in words.items():
            name = name.replace(f".{short}.", f".{long}.")
        name = re.sub(r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block.", name)
        name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0\.", r"down.\1.downsample.", name)
        if match := re.match(r"decoder\.up_blocks\.(\d+)\.(.*)", name):
            rest = match[2].replace("resnets.", "block.").replace("upsamplers.0.", "upsample.")
            name = f"decoder.up.{blocks - 1 - int(match[1])}.{rest}"
        if ".attn_1." in name and name.endswith("weight") and value.ndim == 2:
            value = value[:, :, None, None]
        out[name] = value
    return out


def clip(network: Any) -> Tensors:
    """CLIP's text model in the layout of transformers, whatever the installed one calls it."""
    rows = network.state_dict().items()
    return {n if n.startswith("text_") else f"text_model.{n}": v for n, v in rows}


def open_clip(network: Any) -> Tensors:
    """The same in the layout of OpenCLIP: queries, keys and values in one tensor."""
    rows, out = clip(network), {}
    for name, value in rows.items():
        name = name.replace("text_model.encoder.layers.", "transformer.resblocks.")
        for short, long in {
            "layer_norm1": "ln_1",
            "layer_norm2": "ln_2",
            "mlp.fc1": "mlp.c_fc",
            "mlp.fc2": "mlp.c_proj",
            "self_attn": "attn",
            "text_model.final_layer_norm": "ln_final",
            "text_model.embeddings.token_embedding": "token_embedding",
            "text_model.embeddings.position_embedding.weight": "positional_embedding",
        }.items():
            name = name.replace(short, long)
        if name == "text_projection.weight":
            out["text_projection"] = value.T
        elif match := re.match(r"(.*attn)\.([qkv])_proj\.(weight|bias)", name):
            if match[2] == "q":
                key = f"{match[1]}.in_proj_{match[3]}"
                stem = f"{match[1]}.{{}}_proj.{match[3]}"
                stem = stem.replace("transformer.resblocks.", "text_model.encoder.layers.")
                stem = stem.replace(".attn.", ".self_attn.")
                out[key] = torch.cat([rows[stem.format(one)] for one in "qkv"])
        else:
            out[name] = value
    return out


def sd3_transformer(network: Any) -> Tensors:
    """SD3's transformer as its authors store it."""
    rows, out = network.state_dict(), {}
    last = network.config.num_layers - 1
    top = {
        "pos_embed.proj": "x_embedder.proj",
        "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
        "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
        "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
        "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
        "context_embedder": "context_embedder",
        "proj_out": "final_layer.linear",
        "norm_out.linear": "final_layer.adaLN_modulation.1",
    }
    block = {
        "attn.to_out.0": "x_block.attn.proj",
        "attn.to_add_out": "context_block.attn.proj",
        "norm1.linear": "x_block.adaLN_modulation.1",
        "norm1_context.linear": "context_block.adaLN_modulation.1",
        "ff.net.0.proj": "x_block.mlp.fc1",
        "ff.net.2": "x_block.mlp.fc2",
        "ff_context.net.0.proj": "context_block.mlp.fc1",
        "ff_context.net.2": "context_block.mlp.fc2",
    }
    for name, value in rows.items():
        stem, _, leaf = name.rpartition(".")
        match = re.match(r"transformer_blocks\.(\d+)\.(.*)", stem)
        if name == "pos_embed.pos_embed":
            out["pos_embed"] = value
        elif match is None:
            swapped = stem == "norm_out.linear"
            out[f"{top[stem]}.{leaf}"] = _swapped(value) if swapped else value
        elif match[2] in block:
            swapped = match[2] == "norm1_context.linear" and int(match[1]) == last
            out[f"joint_blocks.{match[1]}.{block[match[2]]}.{leaf}"] = (
                _swapped(value) if swapped else value
            )
        elif match[2] in ("attn.to_q", "attn.add_q_proj"):
            side = "x_block" if match[2] == "attn.to_q" else "context_block"
            three = [match[2].replace("q", one) for one in "qkv"]
            out[f"joint_blocks.{match[1]}.{side}.attn.qkv.{leaf}"] = torch.cat(
                [rows[f"transformer_blocks.{match[1]}.{one}.{leaf}"] for one in three]
            )
    return out


def _swapped(value: torch.Tensor) -> torch.Tensor:
    """Scale and shift in the other order."""
    one, other = value.chunk(2)
    return torch.cat([other, one])


def pipeline(name: str, seed: int = 0) -> Any:
    """A tiny "sd", "sdxl" or "sd3" whose two text encoders differ in width, as the real ones do:
    readers of single files tell them apart by it."""
    pipe = tiny(name, seed)
    if name == "sd":
        return pipe
    wide, torch_state = TEXT_WIDTH + 16, torch.get_rng_state()
    torch.manual_seed(seed + 1)
    small = text_encoder(CLIPTextModelWithProjection).config.to_dict()
    config = CLIPTextConfig(**small | {"hidden_size": wide, "projection_dim": wide})
    pipe.text_encoder_2 = CLIPTextModelWithProjection(config).eval()
    if name == "sdxl":
        more = {"cross_attention_dim": TEXT_WIDTH + wide}
        more["projection_class_embeddings_input_dim"] = wide + 6 * 8
        pipe.unet = type(pipe.unet).from_config(pipe.unet.config, **more).eval()
    else:
        pipe.text_encoder.text_projection.weight.data = torch.eye(TEXT_WIDTH)
        more = {
            "joint_attention_dim": TEXT_WIDTH + wide,
            "pooled_projection_dim": TEXT_WIDTH + wide,
        }
        pipe.transformer = type(pipe.transformer).from_config(pipe.transformer.config, **more)
        pipe.transformer.eval()
    torch.set_rng_state(torch_state)
    return pipe


def prefixed(prefix: str, tensors: Tensors) -> Tensors:
    return {f"{prefix}{name}": value for name, value in tensors.items()}


def whole(name: str, pipe: Any) -> Tensors:
    """All networks of a pipeline: "sd", "sdxl", or "sd3" without T5."""
    start = "model.diffusion_model."
    if name == "sd3":
        return (
            prefixed(start, sd3_transformer(pipe.transformer))
            | prefixed("first_stage_model.", vae(pipe.vae))
            | prefixed("text_encoders.clip_l.transformer.", clip(pipe.text_encoder))
            | prefixed("text_encoders.clip_g.transformer.", clip(pipe.text_encoder_2))
        )
    both = prefixed(start, unet(pipe.unet)) | prefixed("first_stage_model.", vae(pipe.vae))
    if name == "sd":
        return both | prefixed("cond_stage_model.transformer.", clip(pipe.text_encoder))
    return (
        both
        | prefixed("conditioner.embedders.0.transformer.", clip(pipe.text_encoder))
        | prefixed("conditioner.embedders.1.model.", open_clip(pipe.text_encoder_2))
    )


def write(path: Path, tensors: Tensors) -> Path:
    save_file({name: value.contiguous().clone() for name, value in tensors.items()}, path)
    return path
