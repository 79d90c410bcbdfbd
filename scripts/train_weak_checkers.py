"""Train the three weak checkers of `scripts/weak_checkers.py`: few pictures, and wrong labels.

    OMP_NUM_THREADS=1 PYTHONPATH=. python -m scripts.train_weak_checkers     # about a CPU-minute

Checker i sees its own 400 clean pictures of training captions, with every label redrawn with
probability 0.2, for 250 steps. Writes scripts/assets/weak_checker_I.safetensors (fp16) and
scripts/assets/weak_checkers.json with their accuracy on clean and on degraded held-out pictures.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion.world.checker import CLASSES, Checker, answers
from diffusion.world.scenes import Scene
from offline.threads import use_threads
from scripts.train_tiny_checker import accuracy, clean_batch, degrade, save
from scripts.weak_checkers import COUNT, WEIGHTS, empty_checker

PICTURES, WRONG, STEPS, BATCH, LEARNING_RATE = 400, 0.2, 250, 48, 3e-3
FIRST_SEED = 50


def labels(scenes: list[Scene], rng: np.random.Generator) -> Tensor:
    """(n, M) classes, a share of them redrawn; -1 where a scene leaves the answer open."""
    right = np.array([[-1 if a is None else a for a in answers(s)] for s in scenes])
    # "None", the last class, is never a label: an empty slot is left out, not named.
    other = np.stack([rng.integers(n - 1, size=len(scenes)) for n in CLASSES], 1)
    redrawn = (rng.random(right.shape) < WRONG) & (right >= 0)
    return torch.from_numpy(np.where(redrawn, other, right))


def train(seed: int) -> Checker:
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    images, scenes = clean_batch(rng, PICTURES, held_out=False)
    wanted = labels(scenes, rng)
    model = empty_checker()
    optimiser = torch.optim.AdamW(model.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, STEPS)
    for _ in range(STEPS):
        rows = torch.from_numpy(rng.integers(PICTURES, size=BATCH))
        model.train()
        logits = model(images[rows])
        losses = [
            F.cross_entropy(each, wanted[rows, m], ignore_index=-1)
            for m, each in enumerate(logits)
            if (wanted[rows, m] >= 0).any()
        ]
        optimiser.zero_grad()
        torch.stack(losses).mean().backward()
        optimiser.step()
        schedule.step()
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=WEIGHTS)
    args = parser.parse_args()
    use_threads(1)
    report = {}
    for index in range(COUNT):
        model = train(FIRST_SEED + index)
        save(model, args.output / f"weak_checker_{index}.safetensors")
        rng = np.random.default_rng(0)
        images, scenes = clean_batch(rng, 256, held_out=True)
        clean, broken = (accuracy(model, x, scenes) for x in (images, degrade(images, rng)))
        report[f"weak{index}"] = {
            "clean": clean["attributes"],
            "degraded": broken["attributes"],
            "parameters": sum(p.numel() for p in model.parameters()),
        }
        print(index, report[f"weak{index}"], flush=True)
    (args.output / "weak_checkers.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
