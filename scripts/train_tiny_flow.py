"""Train the shipped flow pipeline (the SD3 classes, the world of the other one) and export it.

The autoencoder is that of the shipped diffusion pipeline, and its text encoder is where the first
of the two text encoders starts from. Captions are noisy on purpose, as in `train_tiny_unet.py`:
the model learns to draw well and to follow the caption only mostly, which is the gap that reward
fine-tuning can close. Held-out captions are seen neither as truth nor as noise.

    python -m scripts.train_tiny_flow --steps 4000 --output runs/tiny-flow

A kill loses at most --save-every steps: the same command goes on from there.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from diffusion.loading import TINY
from diffusion.world import scenes
from scripts.train_tiny_unet import MAX_TOKENS, WIDTH, more_scenes, noisy_caption

SECOND_WIDTH = 32  # of the second text encoder
T5_TOKENS = 1  # SD3 appends zeros where it has no T5; one is enough


def build_text(tokenizer: CLIPTokenizer) -> tuple[torch.nn.Module, torch.nn.Module]:
    """SD3's two CLIP encoders: one that starts from the shipped pipeline's, and a small one."""
    common = {
        "vocab_size": len(tokenizer),
        "num_attention_heads": 4,
        "max_position_embeddings": MAX_TOKENS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    first = CLIPTextConfig(
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=3,
        projection_dim=WIDTH,
        **common,
    )
    second = CLIPTextConfig(
        hidden_size=SECOND_WIDTH,
        intermediate_size=2 * SECOND_WIDTH,
        num_hidden_layers=2,
        projection_dim=SECOND_WIDTH,
        **common,
    )
    one, two = CLIPTextModelWithProjection(first), CLIPTextModelWithProjection(second)
    learnt = CLIPTextModel.from_pretrained(TINY / "text_encoder", dtype=torch.float32).state_dict()
    missing = one.load_state_dict(
        {key if key.startswith("text_model.") else f"text_model.{key}": value
         for key, value in learnt.items()}, strict=False
    )  # fmt: skip
    assert missing.missing_keys == ["text_projection.weight"], missing
    assert not missing.unexpected_keys, missing
    return one, two


def build_transformer() -> SD3Transformer2DModel:
    return SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=5,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=WIDTH + SECOND_WIDTH,
        caption_projection_dim=128,
        pooled_projection_dim=WIDTH + SECOND_WIDTH,
        out_channels=4,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
    )


def embed(one: torch.nn.Module, two: torch.nn.Module, ids: Tensor) -> tuple[Tensor, Tensor]:
    """(B, L, C) and pooled (B, C) embeddings, as SD3's pipeline makes them from token ids."""
    outputs = [encoder(ids, output_hidden_states=True) for encoder in (one, two)]
    tokens = torch.cat([output.hidden_states[-2] for output in outputs], -1)
    zeros = tokens.new_zeros(len(ids), T5_TOKENS, tokens.shape[-1])
    return torch.cat([tokens, zeros], 1), torch.cat([output[0] for output in outputs], -1)


def export(folder: Path, vae, one, two, tokenizer, transformer) -> None:
    """Write the pipeline in half precision: it ships in the repository."""
    vae = copy.deepcopy(vae)
    vae.register_to_config(shift_factor=0.0, force_upcast=False)
    pipe = StableDiffusion3Pipeline(
        transformer=copy.deepcopy(transformer),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
        vae=vae,
        text_encoder=copy.deepcopy(one),
        tokenizer=tokenizer,
        text_encoder_2=copy.deepcopy(two),
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )
    pipe.to(dtype=torch.float16)
    # transformers loads weights in the dtype they were stored in, diffusers in float32: rounded
    # to half all the same, but stored so that both agree.
    pipe.text_encoder.float(), pipe.text_encoder_2.float()
    pipe.save_pretrained(folder, safe_serialization=True)
    config = folder / "vae" / "config.json"  # no path of the machine it was trained on
    kept = {k: v for k, v in json.loads(config.read_text()).items() if k != "_name_or_path"}
    config.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--bad-captions", type=float, default=0.5)
    parser.add_argument("--garble", type=float, default=0.6)
    parser.add_argument("--scenes", type=int, default=60_000)
    parser.add_argument("--save-every", type=int, default=250)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/tiny-flow"))
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    args.output.mkdir(parents=True, exist_ok=True)
    vae = AutoencoderKL.from_pretrained(TINY / "vae", torch_dtype=torch.float32).eval()
    tokenizer = CLIPTokenizer.from_pretrained(TINY / "tokenizer")
    one, two = build_text(tokenizer)
    networks = torch.nn.ModuleList([one, two, build_transformer()])
    averages = copy.deepcopy(networks).eval().requires_grad_(False)
    parameters, averaged = list(networks.parameters()), list(averages.parameters())
    optimiser = torch.optim.AdamW(parameters, lr=args.lr, weight_decay=1e-2, betas=(0.9, 0.98))
    empty = tokenizer("", padding="max_length", max_length=MAX_TOKENS).input_ids

    done, seconds, saved = 0, 0.0, args.output / "state.pt"
    if saved.exists():
        state = torch.load(saved, weights_only=True)
        networks.load_state_dict(state["networks"])
        averages.load_state_dict(state["averages"])
        optimiser.load_state_dict(state["optimiser"])
        done, seconds = state["step"], state["seconds"]
    rng = np.random.default_rng([args.seed, done])
    cache = args.output / "scenes.safetensors"
    if cache.exists():
        latents = load_file(cache)["latents"]
        drawn = [
            scenes.parse_caption(c) for c in json.loads((args.output / "scenes.json").read_text())
        ]
    else:
        drawn, latents = more_scenes(vae, rng, 6000)
    start, running = time.time() - seconds, float("nan")
    log = (args.output / "flow.csv").open("a")
    for step in range(done + 1, args.steps + 1):
        if step % 30 == 0 and len(drawn) < args.scenes:
            more, encoded = more_scenes(vae, rng, 500)
            drawn, latents = drawn + more, torch.cat([latents, encoded])
        warm = min(1.0, step / 200)
        shape = 0.5 * (1 + np.cos(np.pi * step / args.steps)) * 0.98 + 0.02
        for group in optimiser.param_groups:
            group["lr"] = float(args.lr * warm * shape)
        picked = rng.integers(len(drawn), size=args.batch)
        captions = [noisy_caption(drawn[i], rng, args.bad_captions, args.garble) for i in picked]
        ids = tokenizer(captions, padding="max_length", max_length=MAX_TOKENS).input_ids
        ids = torch.tensor([empty if rng.random() < 0.1 else row for row in ids])
        x0 = latents[torch.from_numpy(picked)]
        noise = torch.randn_like(x0)
        # Half uniform, half logit-normal (arXiv 2403.03206): the ends matter for a sampler too.
        t = torch.where(
            torch.rand(args.batch) < 0.5, torch.rand(args.batch), torch.randn(args.batch).sigmoid()
        )
        at = t.view(-1, 1, 1, 1)
        tokens, pooled = embed(one, two, ids)
        with torch.autocast("cpu", torch.bfloat16):
            out = networks[2]((1 - at) * x0 + at * noise, tokens, pooled, 1000 * t).sample
        loss = F.mse_loss(out.float(), noise - x0)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        decay = min(0.999, (1 + step) / (10 + step))
        torch._foreach_lerp_(averaged, [p.detach() for p in parameters], 1 - decay)
        running = loss.item() if running != running else 0.98 * running + 0.02 * loss.item()
        if step % 25 == 0:
            print(
                f"{step},{running:.5f},{time.time() - start:.0f},{len(drawn)}", file=log, flush=True
            )
        if step % args.save_every == 0 or step == args.steps:
            state = {
                "networks": networks.state_dict(),
                "averages": averages.state_dict(),
                "optimiser": optimiser.state_dict(),
                "step": step,
                "seconds": time.time() - start,
            }
            torch.save(state, saved.with_suffix(".tmp"))
            os.replace(saved.with_suffix(".tmp"), saved)
            save_file({"latents": latents.contiguous()}, cache)
            (args.output / "scenes.json").write_text(json.dumps([s.caption() for s in drawn]))
            export(args.output / "pipeline", vae, averages[0], averages[1], tokenizer, averages[2])


if __name__ == "__main__":
    main()
