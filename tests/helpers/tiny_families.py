"""Random tiny pipelines of every supported family, of the real classes, built in memory.

Text encoders are the real kinds with one or two layers; tokenisers split into bytes. Images are 32
pixels or so. Weights depend on `seed` alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from tiny_models import SCHEDULE, TEXT_WIDTH, text_encoder, tiny_sd, tiny_sdxl, tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5EncoderModel,
)

WIDTH = 32
SHIFT = {"shift": 3.0}
BY_IMAGE = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}


@functools.cache
def byte_tokenizer(length: int = 24) -> PreTrainedTokenizerFast:
    """One token a byte, with a chat template that adds nothing but a word."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(["<pad>", "</s>", *letters])}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="</s>", model_max_length=length
    )
    fast.chat_template = "{% for m in messages %}u:{{ m['content'] }}{% endfor %}"
    return fast


def language(kind: type, config: type, **more: Any):
    """A decoder-only text encoder of two layers."""
    return kind(
        config(
            vocab_size=300,
            hidden_size=WIDTH,
            intermediate_size=48,
            num_hidden_layers=more.pop("layers", 2),
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=16,
            pad_token_id=0,
            **more,
        )
    ).eval()


def t5() -> T5EncoderModel:
    config = T5Config(
        vocab_size=300, d_model=WIDTH, d_kv=8, d_ff=48, num_layers=2, num_heads=4, pad_token_id=0
    )
    return T5EncoderModel(config).eval()


def kl_vae(channels: int = 4, **more: Any) -> AutoencoderKL:
    """Latents are half as large as images."""
    return AutoencoderKL(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=8,
        sample_size=32,
        latent_channels=channels,
        **more,
    ).eval()


def sd3() -> StableDiffusion3Pipeline:
    return StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=16,
            patch_size=2,
            in_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=2 * TEXT_WIDTH,
            caption_projection_dim=32,
            pooled_projection_dim=2 * TEXT_WIDTH,
            out_channels=4,
            pos_embed_max_size=16,
        ).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(**SHIFT),
        vae=kl_vae(shift_factor=0.1, scaling_factor=1.3),
        text_encoder=text_encoder(CLIPTextModelWithProjection),
        tokenizer=tokenizer(),
        text_encoder_2=text_encoder(CLIPTextModelWithProjection, heads=2),
        tokenizer_2=tokenizer(),
        text_encoder_3=None,
        tokenizer_3=None,
    )


def flux() -> FluxPipeline:
    return FluxPipeline(
        transformer=FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            pooled_projection_dim=TEXT_WIDTH,
            guidance_embeds=True,
            axes_dims_rope=(4, 6, 6),
        ).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(**BY_IMAGE),
        vae=kl_vae(shift_factor=0.1, scaling_factor=1.3),
        text_encoder=text_encoder(CLIPTextModel),
        tokenizer=tokenizer(),
        text_encoder_2=t5(),
        tokenizer_2=byte_tokenizer(),
    )


def flux2_klein() -> Flux2KleinPipeline:
    vae = AutoencoderKLFlux2(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=8,
        sample_size=32,
        latent_channels=4,
    ).eval()
    return Flux2KleinPipeline(
        transformer=Flux2Transformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=3 * WIDTH,
            timestep_guidance_channels=16,
            axes_dims_rope=(4, 4, 4, 4),
        ).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(**BY_IMAGE),
        vae=vae,
        text_encoder=language(Qwen3ForCausalLM, Qwen3Config, layers=28),
        tokenizer=byte_tokenizer(),
    )


def qwen_image() -> QwenImagePipeline:
    text = {
        "vocab_size": 300,
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "rope_parameters": {"mrope_section": [2, 3, 3], "rope_type": "default", "rope_theta": 1e4},
    }
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": WIDTH,
    }
    encoder = Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    )
    return QwenImagePipeline(
        transformer=QwenImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            axes_dims_rope=(4, 6, 6),
        ).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(**BY_IMAGE),
        vae=AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 2],
            num_res_blocks=1,
            temperal_downsample=[False],
            latents_mean=[0.1, -0.2, 0.3, 0.0],
            latents_std=[1.1, 0.9, 1.2, 1.0],
        ).eval(),
        text_encoder=encoder.eval(),
        tokenizer=byte_tokenizer(),
    )


def z_image() -> ZImagePipeline:
    return ZImagePipeline(
        transformer=ZImageTransformer2DModel(
            in_channels=4,
            dim=32,
            n_layers=2,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=WIDTH,
            axes_dims=[4, 6, 6],
            axes_lens=[256, 32, 32],
        ).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(**SHIFT),
        vae=kl_vae(shift_factor=0.1, scaling_factor=1.3),
        text_encoder=language(Qwen3ForCausalLM, Qwen3Config).model,
        tokenizer=byte_tokenizer(),
    )


def sana() -> SanaPipeline:
    dc = AutoencoderDC(
        latent_channels=4,
        attention_head_dim=8,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=(8, 16),
        decoder_block_out_channels=(8, 16),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
        scaling_factor=0.7,
    )
    return SanaPipeline(
        transformer=SanaTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=16,
            num_layers=2,
            num_cross_attention_heads=2,
            cross_attention_head_dim=16,
            cross_attention_dim=32,
            caption_channels=WIDTH,
            sample_size=16,
        ).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(**SHIFT),
        vae=dc.eval(),
        text_encoder=language(Gemma2Model, Gemma2Config),
        tokenizer=byte_tokenizer(),
    )


def pixart() -> PixArtAlphaPipeline:
    return PixArtAlphaPipeline(
        transformer=PixArtTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=4,
            out_channels=8,
            num_layers=2,
            cross_attention_dim=32,
            sample_size=16,
            caption_channels=WIDTH,
        ).eval(),
        scheduler=DDIMScheduler(**SCHEDULE),
        vae=kl_vae(),
        text_encoder=t5(),
        tokenizer=byte_tokenizer(),
    )


FAMILIES: dict[str, Callable[[], Any]] = {
    "sd": tiny_sd,
    "sdxl": tiny_sdxl,
    "pixart": pixart,
    "sd3": sd3,
    "flux": flux,
    "flux2_klein": flux2_klein,
    "qwen_image": qwen_image,
    "z_image": z_image,
    "sana": sana,
}


def tiny(name: str, seed: int = 0) -> Any:
    """A pipeline of the family, its weights depending on `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipe = FAMILIES[name]()
    pipe.set_progress_bar_config(disable=True)
    return pipe
