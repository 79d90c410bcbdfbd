"""Build pipelines that have the shapes of public models, and random weights, to measure with.

    python -m scripts.real_shapes sd15 FOLDER
    python -m scripts.real_shapes sdxl FOLDER --dtype bf16
    python -m scripts.real_shapes flux FOLDER --small

Shapes: sd15 (Stable Diffusion 1.5), sdxl (XL base 1.0), sd35-medium (Stable Diffusion 3.5 Medium)
and flux (Flux.1 dev), from the config.json of the public models. Tokenizers split into bytes, since
no vocabulary is at hand. `--small` keeps the classes and makes everything small, for tests.

Files are written shard by shard, so the memory that this takes is that of one shard (2 GB).
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor

from diffusion.loading import DTYPES

SHARD = 2_000_000_000  # bytes of one file
BLOCK = 1 << 20  # random numbers that are drawn once; weights are pieces of them

CLIP_L = {
    **{"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12},
    **{"num_attention_heads": 12, "projection_dim": 768, "hidden_act": "quick_gelu"},
}
CLIP_G = {
    **{"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32},
    **{"num_attention_heads": 20, "projection_dim": 1280, "hidden_act": "gelu"},
}
T5_XXL = {
    **{"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64},
    **{"vocab_size": 32128, "feed_forward_proj": "gated-gelu", "is_encoder_decoder": False},
}
VAE = {
    **{"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4},
    **{"down_block_types": ("DownEncoderBlock2D",) * 4, "sample_size": 512},
    **{"up_block_types": ("UpDecoderBlock2D",) * 4, "scaling_factor": 0.18215},
}
VAE_16 = {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}
BETAS = {
    **{"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"},
    **{"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1},
}
# A part -> its class and configuration. Parts without one are tokenizers and schedulers.
SHAPES: dict[str, dict[str, Any]] = {
    "sd15": {
        "pipeline": "StableDiffusionPipeline",
        "unet": ("UNet2DConditionModel", {"sample_size": 64, "cross_attention_dim": 768}),
        "vae": ("AutoencoderKL", VAE),
        "text_encoder": ("CLIPTextModel", CLIP_L),
        "scheduler": ("DDIMScheduler", BETAS),
    },
    "sdxl": {
        "pipeline": "StableDiffusionXLPipeline",
        "unet": (
            "UNet2DConditionModel",
            {
                **{"sample_size": 128, "block_out_channels": (320, 640, 1280)},
                "down_block_types": ("DownBlock2D", *("CrossAttnDownBlock2D",) * 2),
                "up_block_types": (*("CrossAttnUpBlock2D",) * 2, "UpBlock2D"),
                **{"transformer_layers_per_block": (1, 2, 10), "attention_head_dim": (5, 10, 20)},
                **{"cross_attention_dim": 2048, "use_linear_projection": True},
                **{"addition_embed_type": "text_time", "addition_time_embed_dim": 256},
                "projection_class_embeddings_input_dim": 2816,
            },
        ),
        "vae": (
            "AutoencoderKL",
            VAE | {"sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True},
        ),
        "text_encoder": ("CLIPTextModel", CLIP_L),
        "text_encoder_2": ("CLIPTextModelWithProjection", CLIP_G),
        "scheduler": ("DDIMScheduler", BETAS),
    },
    "sd35-medium": {
        "pipeline": "StableDiffusion3Pipeline",
        "transformer": (
            "SD3Transformer2DModel",
            {
                **{"sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16},
                **{"num_layers": 24, "attention_head_dim": 64, "num_attention_heads": 24},
                **{"joint_attention_dim": 4096, "caption_projection_dim": 1536},
                **{"pooled_projection_dim": 2048, "pos_embed_max_size": 384},
                **{"dual_attention_layers": tuple(range(13)), "qk_norm": "rms_norm"},
            },
        ),
        "vae": (
            "AutoencoderKL",
            VAE | VAE_16
            | {"sample_size": 1024, "scaling_factor": 1.5305, "shift_factor": 0.0609},
        ),
        "text_encoder": ("CLIPTextModelWithProjection", CLIP_L),
        "text_encoder_2": ("CLIPTextModelWithProjection", CLIP_G),
        "text_encoder_3": ("T5EncoderModel", T5_XXL),
        "scheduler": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    },
    "flux": {
        "pipeline": "FluxPipeline",
        "transformer": (
            "FluxTransformer2DModel",
            {
                **{"in_channels": 64, "num_layers": 19, "num_single_layers": 38},
                **{"attention_head_dim": 128, "num_attention_heads": 24, "patch_size": 1},
                **{"joint_attention_dim": 4096, "pooled_projection_dim": 768},
                **{"guidance_embeds": True, "axes_dims_rope": (16, 56, 56)},
            },
        ),
        "vae": (
            "AutoencoderKL",
            VAE | VAE_16
            | {"sample_size": 1024, "scaling_factor": 0.3611, "shift_factor": 0.1159},
        ),
        "text_encoder": ("CLIPTextModel", CLIP_L),
        "text_encoder_2": ("T5EncoderModel", T5_XXL),
        "scheduler": (
            "FlowMatchEulerDiscreteScheduler",
            {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15, "shift": 3.0},
        ),
    },
}  # fmt: skip
# The same in small: by class, and for what follows from another part's width.
SMALL: dict[str, dict[str, Any]] = {
    "CLIPTextModel": {
        **{"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2},
        **{"num_attention_heads": 2, "projection_dim": 32},
    },
    "T5EncoderModel": {
        **{"d_model": 64, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4},
        "vocab_size": 320,
    },
    "AutoencoderKL": {"block_out_channels": (8, 8, 16, 16), "norm_num_groups": 4},
    "UNet2DConditionModel": {"layers_per_block": 1, "norm_num_groups": 8, "sample_size": 8},
    "SD3Transformer2DModel": {
        **{"num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 4, "sample_size": 8},
        **{"joint_attention_dim": 64, "caption_projection_dim": 32, "pooled_projection_dim": 64},
        **{"dual_attention_layers": (0,), "pos_embed_max_size": 32},
    },
    "FluxTransformer2DModel": {
        **{"num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16},
        **{"num_attention_heads": 2, "joint_attention_dim": 64, "pooled_projection_dim": 32},
        "axes_dims_rope": (4, 6, 6),
    },
}
SMALL["CLIPTextModelWithProjection"] = SMALL["CLIPTextModel"]
SMALL_UNETS = {
    "sd15": {"block_out_channels": (16, 16, 32, 32), "cross_attention_dim": 32},
    "sdxl": {
        **{"block_out_channels": (16, 16, 32), "cross_attention_dim": 64},
        **{"transformer_layers_per_block": (1, 1, 2), "attention_head_dim": (2, 2, 4)},
        **{"addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 80},
    },
}


def build(name: str, folder: Path, *, dtype: str = "bf16", small: bool = False) -> Path:
    """Write a pipeline's folder, whole or not at all; returns it."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    parts: dict[str, Any] = {}
    for part, (kind, config) in ((k, v) for k, v in SHAPES[name].items() if k != "pipeline"):
        if small:
            config = config | SMALL.get(kind, {})
            config |= SMALL_UNETS[name] if part == "unet" else {}
        parts[part] = _made(kind, config)
    for part in list(parts):
        if part.startswith("text_encoder"):
            t5 = isinstance(parts[part], transformers.T5EncoderModel)
            parts[part.replace("text_encoder", "tokenizer")] = t5_tokenizer() if t5 else tokenizer()
    if name == "sd15":
        parts |= {"safety_checker": None, "feature_extractor": None}
        parts["requires_safety_checker"] = False
    pipe: Any = getattr(diffusers, SHAPES[name]["pipeline"])(**parts)
    pipe.save_config(partial)
    random = torch.randn(BLOCK, generator=torch.Generator().manual_seed(0)) * 0.02
    for part, component in pipe.components.items():
        if isinstance(component, torch.nn.Module):
            write_network(component, partial / part, random.to(DTYPES[dtype]))
        elif component is not None:
            component.save_pretrained(partial / part)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return folder


def _made(kind: str, config: dict[str, Any]) -> Any:
    """A network on the meta device, or a scheduler."""
    with torch.device("meta"):
        if hasattr(diffusers, kind):
            return getattr(diffusers, kind)(**config)
        if kind == "T5EncoderModel":
            return transformers.T5EncoderModel(transformers.T5Config(**config))
        ids = tokenizer()
        own = {"bos_token_id": ids.bos_token_id, "eos_token_id": ids.eos_token_id}
        text = transformers.CLIPTextConfig(**config, **own, pad_token_id=ids.eos_token_id)
        return getattr(transformers, kind)(text)


def write_network(network: Any, folder: Path, random: Tensor) -> None:
    """Save a network of the meta device with weights that are pieces of `random`; norms' are 1 and
    biases 0."""
    folder.mkdir()
    if isinstance(network, transformers.PreTrainedModel):
        network.config.architectures = [type(network).__name__]
        network.config.save_pretrained(folder)
        stem = "model"
    else:
        network.save_config(folder)
        stem = "diffusion_pytorch_model"
    kept = set(network.state_dict())
    tensors = {name: p for name, p in network.named_parameters() if name in kept}
    tensors |= {name: b for name, b in network.named_buffers() if name in kept}
    shards = list(_shards(tensors, random.element_size()))
    where: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        whole = f"{stem}.safetensors"
        file = whole if len(shards) == 1 else f"{stem}-{number:05}-of-{len(shards):05}.safetensors"
        filled = {name: _filled(name, tensors[name], random) for name in names}
        save_file(filled, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(names, file)
        del filled
    if len(shards) > 1:
        size = sum(t.numel() for t in tensors.values()) * random.element_size()
        index = {"metadata": {"total_size": size}, "weight_map": where}
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2))


def _shards(tensors: dict[str, Tensor], width: int) -> Iterator[list[str]]:
    names: list[str] = []
    size = 0
    for name, tensor in tensors.items():
        if names and size + tensor.numel() * width > SHARD:
            yield names
            names, size = [], 0
        names.append(name)
        size += tensor.numel() * width
    yield names


def _filled(name: str, like: Tensor, random: Tensor) -> Tensor:
    if not like.is_floating_point():
        return torch.zeros(like.shape, dtype=like.dtype)
    if like.ndim < 2:
        value = 0.0 if name.endswith("bias") else 1.0
        return torch.full(like.shape, value, dtype=random.dtype)
    filled = torch.empty(like.shape, dtype=random.dtype)
    flat, shift = filled.view(-1), sum(name.encode()) * 997 % BLOCK
    for first in range(0, len(flat), BLOCK):
        piece = flat[first : first + BLOCK]
        piece.copy_(random.roll(shift + first // BLOCK)[: len(piece)])
    return filled


def tokenizer() -> transformers.CLIPTokenizer:
    """CLIP's byte-level tokenizer without merges: one token a character, at most 77."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = letters + [c + "</w>" for c in letters] + ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: i for i, token in enumerate(tokens)}
    return transformers.CLIPTokenizer(vocab=vocab, merges=[], model_max_length=77)


def t5_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """One token a byte, at most 512."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(["<pad>", "</s>", *letters])}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="</s>", model_max_length=512
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--small", action="store_true", help="small sizes, for tests")
    options = parser.parse_args()
    print(build(options.name, options.folder, dtype=options.dtype, small=options.small))


if __name__ == "__main__":
    main()
