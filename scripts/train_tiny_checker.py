"""Train the learned attribute checker on freshly drawn, blended and degraded scenes.

Targets are soft where the picture is: a blend of two scenes (or of a scene and a featureless
picture, whose every answer is "none") is labelled with the blend's weights, so that the probability
the checker gives grows with the evidence. Captions of the held-out split are never trained on.

    OMP_NUM_THREADS=1 PYTHONPATH=. python scripts/train_tiny_checker.py --steps 3800
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from diffusion.world import checker as world_checker
from diffusion.world.checker import CLASSES, QUESTIONS, SLOT_ATTRIBUTES, Checker, answers
from diffusion.world.scenes import (
    IMAGE_SIZE,
    Scene,
    parse_caption,
    render,
    sample_caption,
    sample_thing,
)
from offline.threads import use_threads

BLENDED, FEATURELESS, SMOOTHING = 0.30, 0.06, 0.05


def vary(scene: Scene, rng: np.random.Generator) -> Scene:
    """The same layout with each object's size, texture and shape redrawn with probability 0.4.

    Not its colour: half red and half yellow is orange, not half of each.
    """

    def redraw(thing):
        fresh = sample_thing(rng)
        names = ("size", "texture", "shape")
        kept = {name: getattr(thing, name) for name in names if rng.random() >= 0.4}
        return replace(fresh, colour=thing.colour, **kept)

    second = None if scene.second is None else redraw(scene.second)
    return Scene(redraw(scene.first), second, scene.place)


def train_scene(rng: np.random.Generator) -> Scene:
    scene = parse_caption(sample_caption(rng, held_out=False))
    assert scene is not None
    return scene


def featureless(rng: np.random.Generator) -> np.ndarray:
    """A picture without objects: a flat or softly mottled one, (64, 64, 3)."""
    cells = int(rng.choice([1, 3, 6, 12]))
    low = rng.uniform(0.2, 0.95) if rng.random() < 0.4 else 0.86
    field = torch.from_numpy(rng.uniform(low, 0.98, (1, 3, cells, cells)).astype(np.float32))
    if cells == 1:
        field = field.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    size = (IMAGE_SIZE, IMAGE_SIZE)
    return F.interpolate(field, size, mode="bilinear")[0].permute(1, 2, 0).numpy()


def one_hot(scene: Scene | None) -> list[np.ndarray]:
    """Target distributions of the M questions; "none" (the last class) where nothing is to see."""
    found = [None] * len(CLASSES) if scene is None else answers(scene)
    return [np.eye(n)[n - 1 if a is None else a] for n, a in zip(CLASSES, found, strict=True)]


def clean_batch(rng: np.random.Generator, n: int, held_out: bool) -> tuple[Tensor, list[Scene]]:
    """Clean renders (n, 3, 64, 64) of one split's captions."""
    scenes = [parse_caption(sample_caption(rng, held_out)) for _ in range(n)]
    known = [scene for scene in scenes if scene is not None]
    images = np.stack([render(scene, rng) for scene in known])
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), known


def blended_batch(rng: np.random.Generator, n: int) -> tuple[Tensor, list[Tensor]]:
    """Images (n, 3, 64, 64) and M soft targets, each (n, C_m)."""
    images, targets = [], []
    for _ in range(n):
        scene = None if rng.random() < FEATURELESS else train_scene(rng)
        image = featureless(rng) if scene is None else render(scene, rng)
        target = one_hot(scene)
        if scene is not None and rng.random() < BLENDED:
            draw = rng.random()
            other = vary(scene, rng) if draw < 0.6 else train_scene(rng) if draw < 0.7 else None
            overlay = featureless(rng) if other is None else render(other, rng)
            weight = rng.uniform(0.5, 1.0) if other else rng.uniform(0.05, 1.0)
            image = (weight * image + (1 - weight) * overlay).astype(np.float32)
            # Half-faded is still readable: only below a third does an object begin to vanish.
            trust = weight if other else min(1.0, 3 * weight)
            pairs = zip(target, one_hot(other), strict=True)
            target = [trust * a + (1 - trust) * b for a, b in pairs]
        images.append(image)
        targets.append(target)
    stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    columns = [torch.from_numpy(np.stack(column)).float() for column in zip(*targets, strict=True)]
    return stacked, columns


# ---------------------------------------------------------------------------------------------
# Degradations: what an imperfect generator or a codec does to a picture. Each (n, 3, 64, 64).


def blur(x: Tensor, rng: np.random.Generator) -> Tensor:
    sigma = rng.uniform(0.4, 1.6)
    taps = torch.exp(-((torch.arange(-4.0, 5.0) / sigma) ** 2) / 2)
    kernel = (taps / taps.sum()).view(1, 1, 1, 9).repeat(3, 1, 1, 1)
    x = F.conv2d(F.pad(x, (4, 4, 0, 0), mode="replicate"), kernel, groups=3)
    return F.conv2d(F.pad(x, (0, 0, 4, 4), mode="replicate"), kernel.mT, groups=3)


def noise(x: Tensor, rng: np.random.Generator) -> Tensor:
    cells = int(rng.choice([16, 32, 64, 64]))  # coarse noise: mottled decodings
    grain = torch.from_numpy(rng.standard_normal((len(x), 3, cells, cells), dtype=np.float32))
    return x + rng.uniform(0.02, 0.14) * F.interpolate(grain, x.shape[-2:], mode="bilinear")


def rescale(x: Tensor, rng: np.random.Generator) -> Tensor:
    small = int(rng.integers(24, 49))
    down = F.interpolate(x, (small, small), mode="bilinear", antialias=True)
    return F.interpolate(down, x.shape[-2:], mode=str(rng.choice(["bilinear", "nearest"])))


def relight(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Contrast, brightness, and a little of each per channel."""
    n = len(x)
    gain = rng.uniform(0.78, 1.15, (n, 1, 1, 1)) * rng.uniform(0.93, 1.07, (n, 3, 1, 1))
    shift = rng.uniform(-0.08, 0.08, (n, 1, 1, 1)) + rng.uniform(-0.03, 0.03, (n, 3, 1, 1))
    return (x - 0.5) * torch.from_numpy(gain).float() + 0.5 + torch.from_numpy(shift).float()


def blocks(x: Tensor, rng: np.random.Generator) -> Tensor:
    """JPEG's loss: quantise the cosine transform of 8x8 blocks, coarser at high frequencies."""
    k = torch.arange(8.0)
    basis = torch.cos((2 * k[None] + 1) * k[:, None] * torch.pi / 16) / 2
    basis[0] /= 2**0.5
    quantum = rng.uniform(0.02, 0.10) * (1 + k[:, None] + k[None])
    tiles = x.unflatten(3, (8, 8)).unflatten(2, (8, 8)).transpose(3, 4)  # (n, 3, 8, 8, 8, 8)
    coded = torch.round(basis @ tiles @ basis.T / quantum) * quantum
    return (basis.T @ coded @ basis).transpose(3, 4).flatten(4, 5).flatten(2, 3)


def cutout(x: Tensor, rng: np.random.Generator) -> Tensor:
    x = x.clone()
    for image in x:
        for _ in range(int(rng.integers(1, 4))):
            side = int(rng.integers(4, 10))
            top, left = rng.integers(0, IMAGE_SIZE - side, 2)
            image[:, top : top + side, left : left + side] = float(rng.uniform(0.3, 1.0))
    return x


def warp(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Shift up to 3 px and bend by about 1.5 px: generators' outlines are not exact."""
    n = len(x)
    bend = torch.from_numpy(rng.standard_normal((n, 2, 6, 6), dtype=np.float32))
    field = rng.uniform(0.5, 2.0) * F.interpolate(bend, x.shape[-2:], mode="bicubic")
    field += torch.from_numpy(rng.uniform(-3, 3, (n, 2, 1, 1)).astype(np.float32))
    grid = F.affine_grid(torch.eye(2, 3).expand(n, 2, 3), list(x.shape), align_corners=False)
    grid = grid + field.permute(0, 2, 3, 1) * (2 / IMAGE_SIZE)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


DEGRADATIONS = (warp, relight, blur, rescale, cutout, noise, blocks)  # in the order applied


def degrade(x: Tensor, rng: np.random.Generator, chance: float = 0.35, group: int = 16) -> Tensor:
    """Each group of images meets each degradation with probability `chance`; clipped to [0, 1]."""
    parts = []
    for part in x.split(group):
        for apply in DEGRADATIONS:
            if rng.random() < chance:
                part = apply(part, rng)
        parts.append(part.clamp(0, 1))
    return torch.cat(parts)


def accuracy(model: Checker, images: Tensor, scenes: list[Scene]) -> dict[str, float]:
    """Share right per attribute (both slots together), over all, and of scenes wholly right; and
    the expected calibration error (15 bins) of the most likely class.
    """
    model.eval()
    with torch.no_grad():
        parts = [model(part) for part in images.split(128)]
    probabilities = [torch.cat(column).softmax(-1) for column in zip(*parts, strict=True)]
    wanted = torch.tensor([[-1 if a is None else a for a in answers(s)] for s in scenes])
    asked = wanted >= 0
    best = torch.stack([p.max(-1).values for p in probabilities], 1)
    right = torch.stack([p.argmax(-1) for p in probabilities], 1) == wanted
    names = np.array([question.split()[0] for question in QUESTIONS])
    report = {}
    for name in (*SLOT_ATTRIBUTES, "layout"):
        columns = torch.from_numpy(names == name)
        report[name] = right[:, columns][asked[:, columns]].float().mean().item()
    report["attributes"] = right[asked].float().mean().item()
    report["wholly"] = (right | ~asked).all(1).float().mean().item()
    confidence, hit = best[asked], right[asked].float()
    bins = (confidence * 15).long().clamp(max=14)
    gaps = [(confidence - hit)[bins == b].sum().abs().item() for b in range(15)]
    report["calibration_error"] = sum(gaps) / len(hit)
    return {key: round(value, 4) for key, value in report.items()}


def save(model: Checker, path: Path) -> None:
    """fp16 safetensors, written beside and renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {k: v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    beside = path.with_suffix(".tmp")
    save_file({k: v.half().contiguous() for k, v in weights.items()}, beside)
    os.replace(beside, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3800)
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=world_checker.WEIGHTS)
    parser.add_argument("--log", type=Path, default=Path("runs/checker"))
    parser.add_argument("--evaluate", type=int, default=2048, help="held-out scenes")
    args = parser.parse_args()
    use_threads(1)
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    args.log.mkdir(parents=True, exist_ok=True)

    model = Checker().to(memory_format=torch.channels_last)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    optimiser = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.02}, {"params": others, "weight_decay": 0.0}]
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, args.learning_rate, args.steps, pct_start=0.05, final_div_factor=100
    )
    start = time.process_time()
    with (args.log / "train.csv").open("w", newline="") as file:
        log = csv.writer(file)
        log.writerow(["step", "loss", "cpu_seconds"])
        running = 0.0
        for step in range(1, args.steps + 1):
            images, targets = blended_batch(rng, args.batch)
            images = degrade(images, rng).contiguous(memory_format=torch.channels_last)
            model.train()
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(images)
            losses = [
                F.cross_entropy(each.float(), target, label_smoothing=SMOOTHING)
                for each, target in zip(logits, targets, strict=True)
            ]
            loss = torch.stack(losses).mean()
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            running += loss.item() / 50
            if step % 50 == 0:
                log.writerow([step, f"{running:.5f}", f"{time.process_time() - start:.1f}"])
                file.flush()
                running = 0.0
    save(model, args.output)
    seconds = time.process_time() - start

    # Judged as shipped: the rounded weights, on captions that were never trained on.
    shipped = Checker()
    weights = {k: v.half().float() for k, v in model.state_dict().items()}
    shipped.load_state_dict(weights)
    rng = np.random.default_rng(args.seed + 1)
    images, scenes = clean_batch(rng, args.evaluate, held_out=True)
    report = {
        "clean": accuracy(shipped, images, scenes),
        "degraded": accuracy(shipped, degrade(images, rng), scenes),
        "parameters": sum(p.numel() for p in model.parameters()),
        "bytes": args.output.stat().st_size,
        "steps": args.steps,
        "batch": args.batch,
        "seed": args.seed,
        "cpu_seconds": round(seconds),
    }
    (args.log / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
