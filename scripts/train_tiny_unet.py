"""Train the shipped pipeline's text encoder and UNet together, and export the pipeline.

Captions are noisy on purpose: the images are right, the words sometimes are not. The model learns
to draw every attribute well and to follow the caption only mostly, which is the gap that reward
fine-tuning can close. Held-out captions are seen neither as truth nor as noise.

    python scripts/train_tiny_unet.py --steps 6000 --bad-captions 0.6   # after train_tiny_vae.py

The shipped weights were trained in several legs, which docs/TINY.md records.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from diffusion.world import scenes

WIDTH, MAX_TOKENS = 96, 20


def build_tokenizer(folder: Path) -> CLIPTokenizer:
    """Byte-level BPE in which every word of the world is one token; other text falls to bytes."""
    words = set("a to the of".split())
    for group in (scenes.SHAPES, scenes.TEXTURES, scenes.COLOURS, scenes.SIZES):
        words.update(group)
    for phrase in (*scenes.POSITIONS, *scenes.RELATIONS):
        words.update(phrase.split())
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(
        vocab_size=2000, end_of_word_suffix="</w>", min_frequency=1, show_progress=False
    )
    bpe.train_from_iterator([" ".join(sorted(words))] * 4, trainer)
    merges = [tuple(m) for m in json.loads(bpe.to_str())["model"]["merges"]]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = alphabet + [c + "</w>" for c in alphabet] + ["".join(m) for m in merges]
    tokens = list(dict.fromkeys(tokens)) + ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: i for i, token in enumerate(tokens)}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_TOKENS)
    tokenizer.save_pretrained(folder)
    loaded = CLIPTokenizer.from_pretrained(folder)
    for word in words:
        assert len(loaded(word).input_ids) == 3, f"{word} is not one token"
    return loaded


def build_models(tokenizer: CLIPTokenizer) -> tuple[CLIPTextModel, UNet2DConditionModel]:
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            projection_dim=WIDTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(64, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )
    return text, unet


def build_scheduler() -> DDIMScheduler:
    """SD's noise schedule, its square-rooted cumulative alphas moved down to .003 at the last step.

    With SD's own .068 pure noise at t=999 reads as a strange background, and one picture in ten
    came out blank. At exactly zero (`rescale_betas_zero_snr`) diffusers' DDIM step gives NaN at
    eta 1 for some step counts (50 among them).
    """
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    root = (1 - betas).cumprod(0).sqrt()
    root = (root - root[-1]) * (root[0] - 0.003) / (root[0] - root[-1]) + 0.003
    cumulative = root**2
    alphas = cumulative / torch.cat([torch.ones(1, dtype=torch.float64), cumulative[:-1]])
    return DDIMScheduler(
        trained_betas=[round(float(b), 9) for b in 1 - alphas],
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="trailing",
        prediction_type="v_prediction",
    )


def noisy_caption(scene: scenes.Scene, rng: np.random.Generator, bad: float, garble: float) -> str:
    """The scene's caption with attributes replaced: many in a share `bad` of captions, few else."""
    rate = garble if rng.random() < bad else 0.04

    def corrupt(thing: scenes.Thing) -> scenes.Thing:
        other = scenes.sample_thing(rng)
        fields = ("size", "texture", "colour", "shape")
        return replace(thing, **{f: getattr(other, f) for f in fields if rng.random() < rate})

    while True:
        words = tuple(scenes.POSITIONS if scene.second is None else scenes.RELATIONS)
        place = words[rng.integers(len(words))] if rng.random() < rate else scene.place
        second = None if scene.second is None else corrupt(scene.second)
        caption = scenes.Scene(corrupt(scene.first), second, place).caption()
        if not scenes.is_held_out(caption):
            return caption


@torch.no_grad()
def more_scenes(vae: AutoencoderKL, rng: np.random.Generator, n: int):
    """n training scenes with their latents (n, 4, 8, 8)."""
    drawn, latents = [], []
    for _ in range(0, n, 100):
        images = []
        for _ in range(100):
            scene = scenes.sample_scene(rng)
            while scenes.is_held_out(scene.caption()):
                scene = scenes.sample_scene(rng)
            drawn.append(scene)
            images.append(scenes.render(scene, rng))
        x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) * 2 - 1
        latents.append(vae.encode(x).latent_dist.mean)
    return drawn, torch.cat(latents)


def export(folder: Path, vae, text, tokenizer, unet, scheduler) -> None:
    """Write the pipeline in half precision: it ships in the repository."""
    pipe = StableDiffusionPipeline(
        vae=copy.deepcopy(vae),
        text_encoder=copy.deepcopy(text),
        tokenizer=tokenizer,
        unet=copy.deepcopy(unet),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.to(dtype=torch.float16)
    # transformers loads weights in the dtype they were stored in, diffusers in float32: rounded
    # to half all the same, but stored so that both agree.
    pipe.text_encoder.float()
    pipe.save_pretrained(folder, safe_serialization=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=9000)
    parser.add_argument("--minutes", type=float, default=1e9, help="end the schedule early at this")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--bad-captions", type=float, default=0.3)
    parser.add_argument(
        "--garble", type=float, default=0.6, help="attribute swaps in a bad caption"
    )
    parser.add_argument("--stop-at", type=int, default=10**9, help="stop here, mid-schedule")
    parser.add_argument("--scenes", type=int, default=80_000)
    parser.add_argument("--export-every", type=int, default=1000)
    parser.add_argument("--init", type=Path, help="go on from an exported pipeline's weights")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/tiny"))
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed + 1)
    vae = AutoencoderKL.from_pretrained(args.output / "vae").eval()
    tokenizer = build_tokenizer(args.output / "tokenizer")
    text, unet = build_models(tokenizer)
    if args.init:
        text = CLIPTextModel.from_pretrained(args.init / "text_encoder", dtype=torch.float32)
        unet = UNet2DConditionModel.from_pretrained(args.init / "unet", torch_dtype=torch.float32)
        text.train(), unet.train()
    scheduler = build_scheduler()
    parameters = [*text.parameters(), *unet.parameters()]
    ema_text, ema_unet = (copy.deepcopy(m).eval().requires_grad_(False) for m in (text, unet))
    averaged = [*ema_text.parameters(), *ema_unet.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=args.lr, weight_decay=1e-2, betas=(0.9, 0.98))
    empty = tokenizer("", padding="max_length", max_length=MAX_TOKENS).input_ids
    drawn, latents = more_scenes(vae, rng, min(12_000, args.scenes))
    start = time.time()
    log = (args.output / "unet.csv").open("w")
    print("step,loss,seconds,scenes", file=log, flush=True)
    running = 0.0
    for step in range(1, args.steps + 1):
        if step % 60 == 0 and len(drawn) < args.scenes:
            scenes_, latents_ = more_scenes(vae, rng, 1000)
            drawn += scenes_
            latents = torch.cat([latents, latents_])
        progress = max(step / args.steps, (time.time() - start) / (60 * args.minutes))
        warm = min(1.0, step / 200)
        lr = args.lr * warm * (0.5 * (1 + np.cos(np.pi * min(progress, 1.0))) * 0.98 + 0.02)
        for group in optimiser.param_groups:
            group["lr"] = lr
        picked = rng.integers(len(drawn), size=args.batch)
        captions = [noisy_caption(drawn[i], rng, args.bad_captions, args.garble) for i in picked]
        ids = tokenizer(captions, padding="max_length", max_length=MAX_TOKENS).input_ids
        ids = torch.tensor([empty if rng.random() < 0.1 else row for row in ids])
        x0 = latents[torch.from_numpy(picked)]
        noise = torch.randn_like(x0)
        t = torch.randint(0, 1000, (args.batch,))
        x_t = scheduler.add_noise(x0, noise, t)
        target = scheduler.get_velocity(x0, noise, t)
        out = unet(x_t, t, text(ids)[0]).sample
        loss = F.mse_loss(out, target)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        decay = min(0.9985, (1 + step) / (10 + step))
        torch._foreach_lerp_(averaged, [p.detach() for p in parameters], 1 - decay)
        running = loss.item() if step == 1 else 0.98 * running + 0.02 * loss.item()
        if step % 50 == 0:
            seconds = time.time() - start
            print(f"{step},{running:.5f},{seconds:.0f},{len(drawn)}", file=log, flush=True)
        last = step in (args.steps, args.stop_at) or progress >= 1
        if step % args.export_every == 0 or last:
            folder = args.output / ("pipeline" if last else f"pipeline-{step}")
            export(folder, vae, ema_text, tokenizer, ema_unet, scheduler)
        if last:
            break
    report = {
        "steps": step,
        "batch": args.batch,
        "minutes": round((time.time() - start) / 60, 1),
        "final_loss": round(running, 4),
        "bad_captions": args.bad_captions,
        "unet_parameters": sum(p.numel() for p in unet.parameters()),
        "text_parameters": sum(p.numel() for p in text.parameters()),
    }
    (args.output / "unet.json").write_text(json.dumps(report, indent=2) + "\n")
    print(report)


if __name__ == "__main__":
    main()
