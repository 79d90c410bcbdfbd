"""Train the shipped pipeline's autoencoder on drawn scenes; `train_tiny_unet.py` comes next.

Latents are normalised per channel while training and decoded with noise added, so that the decoder
forgives an imperfect sampler; the final whitening is folded into `quant_conv`/`post_quant_conv`.

    python scripts/train_tiny_vae.py --steps 2600 --output runs/tiny
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from diffusion.world.scenes import IMAGE_SIZE, render, sample_scene

LATENTS = 4


def build() -> AutoencoderKL:
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 64),
        layers_per_block=1,
        latent_channels=LATENTS,
        norm_num_groups=8,
        sample_size=IMAGE_SIZE,
        scaling_factor=1.0,
    )


def batch(rng: np.random.Generator, n: int) -> torch.Tensor:
    images = np.stack([render(sample_scene(rng, two_objects=0.7), rng) for _ in range(n)])
    return torch.from_numpy(images).permute(0, 3, 1, 2) * 2 - 1


def whiten(vae: AutoencoderKL, mean: torch.Tensor, cov: torch.Tensor) -> None:
    """Fold z -> cov^-1/2 (z - mean) into quant_conv and its inverse into post_quant_conv."""
    values, vectors = torch.linalg.eigh(cov)
    forward = vectors @ torch.diag(values.rsqrt()) @ vectors.T
    inverse = vectors @ torch.diag(values.sqrt()) @ vectors.T
    with torch.no_grad():
        old_w = vae.quant_conv.weight[:LATENTS, :, 0, 0].double()
        old_b = vae.quant_conv.bias[:LATENTS].double()
        vae.quant_conv.weight.zero_()
        vae.quant_conv.weight[:LATENTS, :, 0, 0] = (forward @ old_w).float()
        vae.quant_conv.bias[:LATENTS] = (forward @ (old_b - mean)).float()
        vae.quant_conv.bias[LATENTS:] = -8.0  # the encoder is deterministic: e^-4 is its std
        w = vae.post_quant_conv.weight[:, :, 0, 0].double()
        vae.post_quant_conv.bias += (w @ mean).float()
        vae.post_quant_conv.weight[:, :, 0, 0] = (w @ inverse).float()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2600)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument(
        "--noise", type=float, default=0.12, help="std of decoder noise, latent stds"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/tiny"))
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    vae = build()
    norm = torch.nn.BatchNorm2d(LATENTS, affine=False, momentum=0.02)
    optimiser = torch.optim.AdamW(vae.parameters(), lr=2e-3, weight_decay=1e-4, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, 2.5e-3, args.steps, pct_start=0.06, div_factor=10, final_div_factor=50
    )
    start, log = time.time(), (args.output / "vae.csv").open("w")
    print("step,loss,l1,seconds", file=log, flush=True)
    for step in range(1, args.steps + 1):
        x = batch(rng, args.batch)
        exact = step > 0.9 * args.steps  # the last tenth in fp32 with frozen statistics
        norm.train(not exact)
        with torch.autocast("cpu", torch.bfloat16, enabled=not exact):
            z = norm(vae.quant_conv(vae.encoder(x))[:, :LATENTS].float())
            noisy = z + args.noise * torch.randn_like(z) * torch.rand(len(z), 1, 1, 1) * 2
            y = vae.decoder(vae.post_quant_conv(noisy)).float()
        l1 = F.l1_loss(y, x)
        dy, dx = y.diff(dim=-1), x.diff(dim=-1)
        ey, ex = y.diff(dim=-2), x.diff(dim=-2)
        edges = F.l1_loss(dy, dx) + F.l1_loss(ey, ex)
        loss = l1 + F.mse_loss(y, x) + edges
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 25 == 0:
            print(
                f"{step},{loss.item():.5f},{l1.item():.5f},{time.time() - start:.0f}",
                file=log,
                flush=True,
            )
    # BatchNorm's running statistics are what the decoder saw; fold them, then whiten fully.
    with torch.no_grad():
        scale = (norm.running_var + norm.eps).rsqrt()
        vae.post_quant_conv.bias -= (
            vae.post_quant_conv.weight[:, :, 0, 0] * scale
        ) @ norm.running_mean
        vae.post_quant_conv.weight *= scale.view(1, -1, 1, 1)
        vae.eval()
        z = torch.cat(
            [vae.quant_conv(vae.encoder(batch(rng, 128)))[:, :LATENTS].double() for _ in range(16)]
        )
        flat = z.transpose(0, 1).flatten(1)
        whiten(vae, flat.mean(1), torch.cov(flat))
        x = batch(rng, 256)
        z = vae.encode(x).latent_dist.mean
        error = (vae.decode(z).sample.clamp(-1, 1) - x).pow(2).mean().item() / 4
    report = {
        "psnr_db": round(-10 * float(np.log10(error)), 2),
        "latent_std": [round(v, 3) for v in z.std(dim=(0, 2, 3)).tolist()],
        "steps": args.steps,
        "batch": args.batch,
        "seconds": round(time.time() - start),
        "parameters": sum(p.numel() for p in vae.parameters()),
    }
    vae.save_pretrained(args.output / "vae")
    (args.output / "vae.json").write_text(json.dumps(report, indent=2) + "\n")
    print(report)


if __name__ == "__main__":
    main()
