"""One fine-tuning run of a shipped pipeline for the tables that compare objectives.

Every run draws the same number of images, whatever its objective does with them. Gold scores are on
held-out prompts that no run trains on, with the same seeds before and after.
"""

from __future__ import annotations

import hashlib
import resource
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusion.config import FinetuneConfig, policy_settings
from diffusion.finetune import Finetuner
from diffusion.loading import load_pipeline
from diffusion.pipelines import ImagePolicy
from diffusion.prompts.sources import load_prompts
from diffusion.recommended import recommended
from diffusion.rewards import load_reward
from diffusion.streams import EVALUATION
from diffusion.world import scenes
from genpol.finetuning.controls import best_of_k

PROMPTS_PER_EPOCH, IMAGES_PER_PROMPT = 8, 8
EVERY = 2  # epochs between the points of a curve
OFFSET = 1.0  # standard deviation of the offsets; the reward's own, within a prompt, is about 0.15


@dataclass(frozen=True)
class Run:
    """What one row of a table is a run of.

    Attributes:
        model: "tiny" or "tiny-flow".
        arm: its name in tables.
        settings: fields of FinetuneConfig.
        prompts: number of distinct training prompts.
        offset: whether a number of each prompt's own is added to the training reward.
        seed: of the prompts, the run and the evaluation.
        epochs: of 64 images.
        images: held-out images of each evaluation.
        curve: whether gold scores are taken on the way, too.
    """

    model: str
    arm: str
    settings: dict[str, Any]
    prompts: int
    seed: int
    offset: bool = False
    epochs: int = 8
    images: int = 256
    curve: bool = False
    reward: str = "attributes"


@dataclass
class Outcome:
    """What a run gave: scores (n,) on held-out prompts before and after, and its cost."""

    before: dict[str, Tensor]
    after: dict[str, Tensor]
    kl_nats: float
    cpu_seconds: float
    images: int
    curve: list[dict[str, float]] = field(default_factory=list)


def training_captions(count: int, seed: int) -> list[str]:
    """`count` distinct captions of the shipped world, none of them held out."""
    rng, found = np.random.default_rng([seed, 7]), {}
    while len(found) < count:
        found.setdefault(scenes.sample_caption(rng, held_out=False))
    return list(found)


def offset_of(prompt: str) -> float:
    """A number of the prompt's own, about normal, with standard deviation OFFSET."""
    digest = hashlib.sha256(prompt.encode()).digest()
    uniform = np.frombuffer(digest[:24], ">u2").astype(float) / 65_536
    return OFFSET * float(uniform.sum() - 6.0)


def tuner_of(run: Run) -> Finetuner:
    """A tuner at its start."""
    config = FinetuneConfig(
        seed=run.seed,
        epochs=run.epochs,
        prompts_per_epoch=PROMPTS_PER_EPOCH,
        images_per_prompt=IMAGES_PER_PROMPT,
        **run.settings,
    )
    config = config.resolved(recommended(run.model, config.algorithm))
    pipe = load_pipeline(run.model)
    policy = ImagePolicy(pipe, **policy_settings(config), seed=run.seed)
    if hasattr(pipe, "unet"):
        pipe.unet.to(memory_format=torch.channels_last)  # faster in large batches on a CPU
    plain = load_reward(run.reward)

    def shifted(images: Tensor, prompts: list[str]) -> Tensor:
        return plain(images, prompts) + torch.tensor([offset_of(p) for p in prompts])

    captions = training_captions(run.prompts, run.seed)
    prompts = load_prompts(captions, held_out_fraction=0.0, eval_spec="world")
    reward = shifted if run.offset else plain
    return Finetuner(policy, reward, prompts, config, {"gold": load_reward("gold")})


def carry_out(run: Run) -> Outcome:
    """Train and evaluate."""
    tuner = tuner_of(run)
    before, curve, spent = untrained(tuner, run), [], 0.0
    for epoch in range(1, run.epochs + 1):
        start = cpu_seconds()
        tuner.run_epoch()
        spent += cpu_seconds() - start
        if run.curve and epoch % EVERY == 0 and epoch < run.epochs:
            gold = float(tuner.evaluate(run.images).rewards["gold"].mean())
            curve.append({"epoch": epoch, "cpu_seconds": spent, "gold": gold})
    after = tuner.evaluate(run.images).rewards
    if run.curve:
        gold = float(after["gold"].mean())
        curve.append({"epoch": run.epochs, "cpu_seconds": spent, "gold": gold})
    drawn = run.epochs * PROMPTS_PER_EPOCH * IMAGES_PER_PROMPT
    return Outcome(before, after, kl_nats(tuner, 64), spent, drawn, curve)


_UNTRAINED: dict[tuple[Any, ...], dict[str, Tensor]] = {}


def untrained(tuner: Finetuner, run: Run) -> dict[str, Tensor]:
    """Scores before training: the same for all arms of a seed, so a process takes them once."""
    key = (run.model, run.seed, run.reward, run.offset, run.images)
    if key not in _UNTRAINED:
        _UNTRAINED[key] = tuner.evaluate(run.images).rewards
    return _UNTRAINED[key]


def kl_nats(tuner: Finetuner, count: int) -> float:
    """KL of the tuned policy's denoising steps from the untuned one's, in nats an image.

    It is the same for every objective: of chains of the stochastic sampler on held-out prompts.
    """
    prompts, config = tuner.prompts.held_out(count, tuner.config.seed), tuner.config
    process = tuner.policy.process(
        config.num_inference_steps, eta=1.0, sampler="cps", noise_level=0.7
    )
    chain = tuner.draw(prompts, 1, EVALUATION, 1, reference=True, process=process).chain
    assert chain.kl is not None
    return float(chain.kl[:, process.stochastic].double().sum(1).mean() * chain.dimensions)


def best_of(run: Run, candidates: int) -> Outcome:
    """No training: the best of K images of each held-out prompt, by the training reward."""
    tuner = tuner_of(replace(run, settings={"algorithm": "prdp"}))
    before, start = untrained(tuner, run), cpu_seconds()
    found = best_of_k(tuner, candidates, run.images).chosen(candidates)
    after = {name: torch.from_numpy(found[name]) for name in ("reward", "gold")}
    return Outcome(before, after, 0.0, cpu_seconds() - start, candidates * run.images)


def cpu_seconds() -> float:
    """Of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
