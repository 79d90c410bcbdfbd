"""One run of the tables that compare steered pictures: a value is trained, pictures are drawn by
every arm, and a gold checker that neither the value nor the reward shares code with judges them.

Network evaluations are counted at the network. Candidate k of a picture has the same seed in every
arm, so that arms differ in nothing but what they choose.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffusion.config import FinetuneConfig, policy_settings
from diffusion.evaluations import Evaluations
from diffusion.finetune import Finetuner
from diffusion.loading import load_pipeline
from diffusion.pipelines import ImagePolicy
from diffusion.process import ReverseProcess
from diffusion.prompts.sources import load_prompts
from diffusion.recommended import recommended
from diffusion.rewards import load_reward
from diffusion.values.image_value import ImageValue, load_value
from genpol.steering.picture_arms import drawn
from genpol.steering.picture_chains import PictureChains, selection
from genpol.steering.picture_values import PictureValues, PredictedReward

Floats = NDArray[np.float64]
BATCH = 64


@dataclass(frozen=True)
class Arm:
    """One way to spend evaluations.

    Attributes:
        candidates: K.
        prune_at: shares at which a value selects chains; () for finished pictures, of which the
            reward chooses, or nobody where K is 1.
        temperature: of resampling; None prunes.
        guidance: scale, where it is not the pipeline's.
        steps: denoising steps, where they are not the recommended ones.
        sampler: of flow models.
    """

    candidates: int = 1
    prune_at: tuple[float, ...] = ()
    temperature: float | None = None
    guidance: float | None = None
    steps: int | None = None
    sampler: str = "ode"


@dataclass(frozen=True)
class Drawn:
    """Pictures of one arm: `scores` are name -> (n,), the rest is of one picture."""

    scores: dict[str, Floats]
    evaluations: float
    reward_calls: int
    cpu_seconds: float


def trained_value(
    model: str, reward: str, seed: int, work: Path, options: Mapping[str, Any]
) -> ImageValue:
    """The value that `genpol value` leaves with its defaults; goes on with what is there."""
    from genpol.commands.value import command
    from genpol.commands.value.options import Value, defaults

    folder = work / f"value-{model}-{reward}-{seed}"
    if not (folder / "summary.json").exists():
        if (folder / "config.json").exists():
            command.run(Value(resume=folder, wandb="disabled"))
        else:
            common = {"prompts": "world", "threads": 1, "wandb": "disabled", "output": folder}
            usual = replace(defaults(Value(model=model)), model=model, reward=reward)
            command.run(replace(usual, seed=seed, **common, **options))
    return load_value(folder)


@cache
def policy_of(model: str) -> ImagePolicy:
    """The shipped pipeline, for drawing alone."""
    usual = recommended(model, "prdp")
    return ImagePolicy(
        load_pipeline(model),
        guidance_scale=usual["guidance_scale"],
        train="nothing",
        max_sequence_length=usual.get("max_sequence_length"),
    )


def held_out(count: int, seed: int) -> list[str]:
    """Prompts of the shipped world that no value and no checker learnt from."""
    return load_prompts("world").held_out(count, seed)


def process_of(model: str, arm: Arm) -> ReverseProcess:
    steps = arm.steps or recommended(model, "prdp")["num_inference_steps"]
    return policy_of(model).process(steps, eta=1.0, sampler=arm.sampler)


def steer(model: str, arm: Arm, values: PictureValues, prompts: list[str], seed: int,
          judges: Sequence[str]) -> Drawn:  # fmt: skip
    """Pictures whose chains a value selects."""
    policy, process = policy_of(model), process_of(model, arm)
    how = selection(process, arm.candidates, arm.prune_at, temperature=arm.temperature)
    chains = PictureChains(policy, process, values, arm.candidates, how, batch=BATCH)
    start = process_time()
    found = chains.draw_all(prompts, first_seed(seed))
    spent = (process_time() - start) / len(prompts)
    scores = {name: scored(name, found.images, prompts) for name in judges}
    calls = round(found.chains.value_calls / len(prompts)) if values.asks_reward else 0
    return Drawn(scores, found.evaluations / len(prompts), calls, spent)


def predicted(model: str, reward: str) -> PictureValues:
    """The reward of what each chain is heading for."""
    return PictureValues([PredictedReward(policy_of(model), judge(reward))])


def finished(model: str, arm: Arm, prompts: list[str], seed: int, judges: Sequence[str],
             counts: Sequence[int], width: int) -> dict[int, Drawn]:  # fmt: skip
    """The best of each of `counts` finished pictures by the first of `judges`; 1 is plain drawing.

    Args:
        width: candidates that a picture's seeds leave room for, as in the steered arms.
    """
    policy, process, n = policy_of(model), process_of(model, arm), len(prompts)
    images, each, seen_at, spent_at, start = [], [], {}, {}, process_time()
    scale = policy.guidance_scale if arm.guidance is None else arm.guidance
    with policy.at_guidance(scale), Evaluations(policy.denoiser) as seen:
        for k in range(max(counts)):
            seeds = [first_seed(seed) + i * width + k for i in range(n)]
            images.append(drawn(policy, process, prompts, seeds, BATCH))
            each.append(scored(judges[0], images[-1], prompts))
            seen_at[k + 1], spent_at[k + 1] = seen.count / n, (process_time() - start) / n
    found = {}
    for k in counts:
        best = np.stack(each[:k]).argmax(0)
        chosen = torch.stack([images[b][i] for i, b in enumerate(best.tolist())])
        scores = {name: scored(name, chosen, prompts) for name in judges}
        found[k] = Drawn(scores, seen_at[k], k if k > 1 else 0, spent_at[k])
    return found


def first_seed(seed: int) -> int:
    """Pictures of one table seed share none with another's."""
    return 1_000_000 * (seed + 1)


@cache
def judge(name: str) -> Callable[[Tensor, list[str]], Tensor]:
    return load_reward(name)


def scored(name: str, images: Tensor, prompts: list[str]) -> Floats:
    return np.asarray(judge(name)(images, prompts), np.float64)


def fine_tuned(model: str, reward: str, seed: int, epochs: int, prompts: list[str],
               judges: Sequence[str]) -> tuple[Drawn, int]:  # fmt: skip
    """One picture of each prompt after fine-tuning by a reward, and the images it was trained on.

    PRDP with the recommended settings, on training prompts.
    """
    config = FinetuneConfig(seed=seed, epochs=epochs)
    config = config.resolved(recommended(model, "prdp"))
    policy = ImagePolicy(load_pipeline(model), **policy_settings(config), seed=seed)
    tuner = Finetuner(policy, load_reward(reward), load_prompts("world"), config)
    for _ in range(epochs):
        tuner.run_epoch()
    process = policy.process(int(config.num_inference_steps or 0), eta=1.0, sampler="ode")
    seeds, start = [first_seed(seed) + i for i in range(len(prompts))], process_time()
    with Evaluations(policy.denoiser) as seen:
        images = drawn(policy, process, prompts, seeds, BATCH)
    spent = (process_time() - start) / len(prompts)
    scores = {name: scored(name, images, prompts) for name in judges}
    each = int(config.prompts_per_epoch or 0) * int(config.images_per_prompt or 0)
    return Drawn(scores, seen.count / len(prompts), 0, spent), epochs * each
