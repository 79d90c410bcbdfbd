"""Random tiny Stable Diffusion and SDXL pipelines of the real classes, built in memory.

Every call builds fresh modules, so a test may train them; the weights depend on `seed` alone.
Images are 16x16, latents 4x8x8, prompts at most 16 tokens (the text is split into bytes).
"""

from __future__ import annotations

import functools

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers import pre_tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

LATENT = (4, 8, 8)
TOKENS, TEXT_WIDTH = 16, 32
SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


@functools.cache
def tokenizer() -> CLIPTokenizer:
    """CLIP's byte-level tokenizer without merges: one token a character."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = letters + [c + "</w>" for c in letters] + ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: i for i, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=TOKENS)


def text_encoder(kind: type = CLIPTextModel, heads: int = 4):
    end = tokenizer().eos_token_id
    config = CLIPTextConfig(
        vocab_size=len(tokenizer()),
        hidden_size=TEXT_WIDTH,
        intermediate_size=37,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=heads,
        max_position_embeddings=TOKENS,
        bos_token_id=tokenizer().bos_token_id,
        eos_token_id=end,
        pad_token_id=end,
    )
    return kind(config).eval()


def unet(**options) -> UNet2DConditionModel:
    """About 1M parameters; `options` go to `UNet2DConditionModel`."""
    return UNet2DConditionModel(
        **{
            "sample_size": LATENT[-1],
            "block_out_channels": (32, 64),
            "layers_per_block": 1,
            "norm_num_groups": 8,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "attention_head_dim": 8,
            "cross_attention_dim": TEXT_WIDTH,
        }
        | options
    ).eval()


def vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=8,
        sample_size=16,
    ).eval()


def tiny_sd(seed: int = 0, **schedule) -> StableDiffusionPipeline:
    """`schedule` overrides the DDIMScheduler's, for example `prediction_type="v_prediction"`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipe = StableDiffusionPipeline(
            vae=vae(),
            text_encoder=text_encoder(),
            tokenizer=tokenizer(),
            unet=unet(),
            scheduler=DDIMScheduler(**SCHEDULE | schedule),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_sdxl(seed: int = 0, **schedule) -> StableDiffusionXLPipeline:
    """Two text encoders and the added text-and-size conditions of SDXL."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipe = StableDiffusionXLPipeline(
            vae=vae(),
            text_encoder=text_encoder(),
            text_encoder_2=text_encoder(CLIPTextModelWithProjection, heads=2),
            tokenizer=tokenizer(),
            tokenizer_2=tokenizer(),
            unet=unet(
                cross_attention_dim=2 * TEXT_WIDTH,
                addition_embed_type="text_time",
                addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=TEXT_WIDTH + 6 * 8,
                transformer_layers_per_block=(1, 2),
                use_linear_projection=True,
            ),
            scheduler=DDIMScheduler(**SCHEDULE | schedule),
            add_watermarker=False,
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def guided_predictor(unet: UNet2DConditionModel, scale: float):
    """A `Predictor` with classifier-free guidance, written apart from the product's own.

    Conditions: text (B, L, C), text_negative likewise; for SDXL also pooled, pooled_negative
    (B, C) and time_ids (B, 6). Guidance off at `scale` <= 1, as in the pipelines.
    """

    def predict(x, t, cond):
        if scale > 1:
            negative = {k: cond.get(k + "_negative", v) for k, v in cond.items()}
            cond = {k: torch.cat([negative[k], v]) for k, v in cond.items()}
            x, t = torch.cat([x, x]), torch.cat([t, t])
        added = None
        if "pooled" in cond:
            added = {"text_embeds": cond["pooled"], "time_ids": cond["time_ids"]}
        output = unet(x, t, encoder_hidden_states=cond["text"], added_cond_kwargs=added).sample
        if scale <= 1:
            return output
        without, with_text = output.chunk(2)
        return without + scale * (with_text - without)

    return predict
