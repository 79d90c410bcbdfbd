"""Small fine-tuning runs through the command line, in this process."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import torch

from genpol.cli import main

SMALL: dict[str, Any] = {
    "reward": "jpeg_compressibility",
    "held_out": 0.3,
    "epochs": 2,
    "prompts_per_epoch": 2,
    "images_per_prompt": 2,
    "num_inference_steps": 4,
    "inner_steps": 2,
    "guidance_scale": 3.0,
    "learning_rate": 1e-2,
    "eval_images": 2,
    "eval_every": 2,
    "checkpoint_every": 1,
    "best_of_k": 0,
    "guidance_control": "none",
    "wandb": "disabled",
}


def words(**options: Any) -> list[str]:
    """`epochs=2` as `--epochs 2`; True as a bare flag."""
    out = []
    for name, value in options.items():
        out.append(f"--{name.replace('_', '-')}")
        if value is not True:
            out.append(str(value))
    return out


def finetune(**options: Any) -> int:
    """`genpol finetune` with SMALL's options where not given; the exit code."""
    return main(["finetune", *words(**(SMALL | options))])


def resume(folder: Path, **options: Any) -> int:
    return main(["finetune", "--resume", str(folder), *words(**options)])


def small_config(**options: Any):
    """The same as a resolved `Finetune`, for tests that need the tuner itself."""
    from diffusion.recommended import PUBLISHED
    from genpol.commands.finetune.options import Finetune

    values = {k: str(v) if isinstance(v, Path) else v for k, v in (SMALL | options).items()}
    return Finetune(**values).resolved(PUBLISHED)


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def lasting(folder: Path) -> list[dict[str, str]]:
    """The rows without what depends on the clock and the process."""
    return [
        {k: v for k, v in row.items() if not k.startswith(("time/", "memory/"))}
        for row in rows(folder)
    ]


def checkpoint(folder: Path) -> tuple[int, dict[str, torch.Tensor], dict[str, Any]]:
    from genpol.runs import checkpoints

    found = checkpoints.latest(folder / "checkpoints")
    assert found is not None
    return found


def assert_same_checkpoint(one: Path, two: Path) -> None:
    """Weights, optimiser and average equal to the last bit."""
    (step, a, _), (other, b, _) = checkpoint(one), checkpoint(two)
    assert step == other and a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def error_line(err: str) -> str:
    """The one line that an error leaves on stderr; nothing else may be there."""
    lines = err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), err
    return lines[0]
