"""One cell of the table of families and objectives: two training steps of a tiny random pipeline.

A cell is a family, an objective, and what is trained. Its pipeline has the family's real classes, a
layer or two each, and random weights (tests/helpers/tiny_families.py). Its training has two epochs
of 2 prompts, 2 images each, 3 denoising steps and one optimiser step. Objectives on trajectories
draw with noise and with guidance (DDIM with eta 1, `cps` for flow models); those on finished images
draw without both, as they may. `dpo` makes pairs of the images that it draws.

Whatever fails becomes the cell's own words, so that one fault hides no other.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))

from family_images import drawn, own_images, policy_of  # noqa: E402
from tiny_families import FAMILIES, tiny  # noqa: E402

from diffusion.config import FinetuneConfig, check  # noqa: E402
from diffusion.finetune import Finetuner  # noqa: E402
from diffusion.loading import prepare_pipeline  # noqa: E402
from diffusion.lora import load_lora  # noqa: E402
from diffusion.objectives.make import OBJECTIVES  # noqa: E402
from diffusion.pipelines import ImagePolicy  # noqa: E402
from diffusion.prompts.sources import load_prompts  # noqa: E402
from diffusion.recommended import recommended  # noqa: E402

FORWARD = ("prdp-forward", "nft", "awm", "dpo")
COLUMNS = (
    "family", "algorithm", "train", "trains", "moved", "ratio_error", "resumes", "image_change",
    "reload_error", "reloads",
)  # fmt: skip
SAME = 1e-5  # most that arithmetic changes a log-prob per dimension, or a pixel in [0, 1]
YES = "yes"

__all__ = ["COLUMNS", "FAMILIES", "FORWARD", "OBJECTIVES", "SAME", "YES", "cell", "tuner"]


def brightness(images: Tensor, prompts: list[str]) -> Tensor:
    """A cheap reward that tells any two images apart."""
    return images.mean((1, 2, 3))


def tuner(family: str, algorithm: str, train: str) -> Finetuner:
    """A new training of a cell, the same every time."""
    forward = algorithm in FORWARD
    scale = 1.0 if forward else 3.0
    config = FinetuneConfig(
        algorithm=algorithm,
        train=train,  # type: ignore[arg-type]
        epochs=2,
        prompts_per_epoch=2,
        images_per_prompt=2,
        inner_steps=1,
        num_inference_steps=3,
        guidance_scale=scale,
        sampler="ode" if forward else "cps",
        learning_rate=1e-2 if train == "lora" else 1e-3,
        weight_decay=0.0,  # what has no gradient stays where it is
        lora_rank=2,
        draws=2,
        rollout_batch=4,
        micro_batch=4,
    ).resolved(recommended("a model", algorithm))
    check(config)
    policy = policy_of(family, scale, train=train, lora_rank=2)
    prompts = load_prompts(["a cat", "a dog!"], held_out_fraction=0.0)
    return Finetuner(policy, brightness, prompts, config)


def cell(family: str, algorithm: str, train: str) -> dict[str, Any]:
    """What the table says of a cell, by column."""
    row = dict.fromkeys(COLUMNS, "") | {"family": family, "algorithm": algorithm, "train": train}
    try:
        straight = tuner(family, algorithm, train)
        started = copies(straight)
        first = straight.run_epoch()
        kept, values = straight.state()
        kept = {name: value.clone() for name, value in kept.items()}
        straight.run_epoch()
    except Exception as error:  # whatever it is, it belongs into the table
        return row | {"trains": words(error)}
    moved = [not torch.equal(p, started[n]) for n, p in straight.trained.parameters.items()]
    row |= {"trains": YES if any(moved) else "no weight moved", "moved": sum(moved) / len(moved)}
    row["ratio_error"] = first.get("check/ratio_error", "")
    row["resumes"] = resumed(straight, tuner(family, algorithm, train), kept, values)
    return row | reloaded(family, straight.policy, straight.config.guidance_scale or 1.0)


def copies(tuner: Finetuner) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in tuner.trained.parameters.items()}


def resumed(straight: Finetuner, fresh: Finetuner, kept: dict[str, Tensor], values: dict) -> str:
    """Whether the second epoch from a stored state ends where the run without interruption did."""
    try:
        fresh.load_state(kept, json.loads(json.dumps(values)))
        fresh.run_epoch()
    except Exception as error:  # as above
        return words(error)
    (mine, said), (theirs, told) = fresh.state(), straight.state()
    if mine.keys() != theirs.keys() or said != told:
        return "another state"
    differ = [name for name, value in mine.items() if not torch.equal(value, theirs[name])]
    return f"{len(differ)} of {len(mine)} tensors differ" if differ else YES


def reloaded(family: str, policy: ImagePolicy, scale: float) -> dict[str, Any]:
    """Whether the saved weights give plain diffusers' own call the images of the trained policy."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            policy.save_weights(Path(folder))
            plain = prepare_pipeline(tiny(family))
            before = own_images(family, plain, scale)
            put_into(plain, Path(folder), policy)
            after = own_images(family, plain, scale)
    except Exception as error:  # as above
        return {"reloads": words(error)}
    change = float((after - before).abs().max())
    apart = float((after - drawn(policy)).abs().max())
    verdict = YES if apart <= SAME < change / 10 else "another image"
    return {"image_change": change, "reload_error": apart, "reloads": verdict}


def put_into(pipe: Any, folder: Path, policy: ImagePolicy) -> None:
    """Saved weights into an untrained pipeline: by diffusers, or by us where its class loads no
    LoRA."""
    part = policy.family.denoiser_name
    if policy.train == "full":
        kind = type(getattr(pipe, part))
        pipe.register_modules(**{part: kind.from_pretrained(folder).eval()})
    elif hasattr(pipe, "load_lora_weights"):
        pipe.load_lora_weights(folder)
    else:
        load_lora(pipe, str(folder))


def words(error: Exception) -> str:
    """An error in a cell: its kind, and the start of its message."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:60]}"
