"""Runs of the tiny pipelines in one process or in several, which must agree.

The processes are forked, so that nothing is imported again. Each leaves the numbers of each of
CASES in FOLDER/NAME.INDEX.safetensors.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from forked import forked, free_port, place
from safetensors.torch import load_file, save_file
from torch import Tensor

PROMPTS = ["a cat", "two owls", "a big brown dog", "a red fox", "a hen", "a cow"]
OPTIONS: dict[str, Any] = {
    "reward": "tiny_rewards:brightness",
    "prompts_per_epoch": 3,
    "images_per_prompt": 5,
    "num_inference_steps": 2,
    "inner_steps": 1,
    "epochs": 2,
    "micro_batch": 4,
    "rollout_batch": 4,
    "eval_images": 1,
    "learning_rate": 1e-4,
}
FULL = {"train": "full", "learning_rate": 1e-5}
AWM = {"algorithm": "awm", "draws": 2, "clip": 1e-2, "kl_weight": 1.0}
CASES: dict[str, dict[str, Any]] = {
    "prdp": {"inner_steps": 2, "eval_images": 3},
    "prdp full": {**FULL},
    "awm": {**AWM},
    "awm full": {**AWM, **FULL},
}
COMMON = {"draws": 2, "kl_weight": 0.0}
LONG_CASES: dict[str, dict[str, Any]] = {
    "ddpo": {"algorithm": "ddpo", **COMMON, "clip": 1e-2},
    "grpo": {"algorithm": "grpo", "clip": 1e-2, "kl_weight": 0.01, "normalise_ratio": True},
    "rtb": {"algorithm": "rtb", **COMMON},
    "prdp-forward": {"algorithm": "prdp-forward", **COMMON},
    "nft": {"algorithm": "nft", **COMMON, "kl_weight": 0.01},
    "pairs": {"algorithm": "dpo", **COMMON, "prompts_per_epoch": 5, "beta": 500.0, "reward": None},
    "filter": {"filter": "best-worst", "filter_keep": 1},
    "filter of one": {"filter": "best-worst", "filter_keep": 1, "prompts_per_epoch": 1},
    "forward filter": {**AWM, "filter": "best-worst", "filter_keep": 1},
    "one prompt, two images": {"prompts_per_epoch": 1, "images_per_prompt": 2},
    "dropout": {"lora_dropout": 0.3},
    "average": {"ema": 0.5, "inner_steps": 2},
    "target": {"algorithm": "grpo", "kl_weight": 0.1, "kl_target": 1e-3},
    "groups": {"reward": "1000*tiny_rewards:brightness+tiny_rewards:ranked"},
    "normalised": {
        "reward": "1000*tiny_rewards:brightness+tiny_rewards:ranked",
        "combine": "normalised",
        "reward_ranks": "1",
    },
    "evaluation": {
        "eval_images": 16,
        "reward_ranks": "0,2",
        "gold_reward": "jpeg_compressibility,tiny_rewards:brightness",
    },
}


def tuner_of(ranks: Any = None, **options: Any):
    """A tuner of the tiny Stable Diffusion, with CASES' usual options."""
    from small_runs import small_config
    from tiny_models import tiny_sd

    from genpol.commands.finetune.command import Given, build

    config = small_config(**{k: v for k, v in (OPTIONS | options).items() if v is not None})
    if options.get("reward", "") is None:
        config = replace(config, reward=None)
    if config.reward_ranks is not None and ranks is None:
        config = replace(config, reward_ranks=None)
    if config.pairs is not None:
        return build(config, Given(pipeline=tiny_sd()), ranks)[0]
    return build(config, Given(pipeline=tiny_sd(), prompts=PROMPTS), ranks)[0]


def numbers(tuner: Any, epochs: int = 1) -> dict[str, Tensor]:
    """What a few epochs of a tuner come to: rewards, losses, gradients, weights, an evaluation."""
    from genpol.finetuning.controls import best_of_k

    found: dict[str, Tensor] = {}
    step = tuner.trained.step

    def seen() -> float:
        for name, parameter in tuner.trained.parameters.items():
            if parameter.grad is not None:
                found[f"gradient {tuner.trained.updates} {name}"] = parameter.grad.clone()
        return step()

    tuner.trained.step = seen
    prepared = tuner.prepared

    def rewards(rollouts: Any, prompts: Any) -> Any:
        found[f"reward {tuner.epoch}"] = rollouts.reward
        return prepared(rollouts, prompts)

    tuner.prepared = rewards
    for epoch in range(epochs):
        for name, value in tuner.run_epoch().items():
            if not name.startswith(("time/", "memory/")):
                found[f"{name} {epoch}"] = torch.tensor(value, dtype=torch.float64)
    if tuner.config.eval_images > 1:
        result = tuner.evaluate(tuner.config.eval_images)
        found |= {f"eval/{name}": values for name, values in result.rewards.items()}
        found |= {f"eval/{name}": torch.tensor(value) for name, value in result.measures.items()}
        best = best_of_k(tuner, 3, 5).scores
        found |= {f"best of 3/{name}": torch.from_numpy(scores) for name, scores in best.items()}
    found |= {f"weights {n}": p.detach().clone() for n, p in tuner.trained.parameters.items()}
    return found


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    """Equal names, and numbers within `tolerance` of their size: that of all gradients of a step
    together, of all weights, or of 1 where a number is smaller."""
    assert one.keys() == other.keys()
    apart: dict[str, float] = {}
    sizes: dict[str, float] = {}
    for name, value in one.items():
        kind = name.rsplit(" ", 1)[0] if name.startswith(("gradient", "weights")) else name
        assert torch.equal(value.isnan(), other[name].isnan()), name
        a, b = value.double().nan_to_num(), other[name].double().nan_to_num()
        apart[kind] = apart.get(kind, 0.0) + float((a - b).square().sum())
        sizes[kind] = sizes.get(kind, 0.0) + float(a.square().sum())
    for kind, gap in apart.items():
        size = sizes[kind] if kind.startswith("gradient") else max(1.0, sizes[kind])
        assert size > 0 or gap == 0, kind
        assert gap**0.5 <= tolerance * size**0.5, (kind, gap**0.5, size**0.5)


def start(work: Callable[[], object], count: int, folder: Path) -> list[multiprocessing.Process]:
    """`count` forked processes of a run, each of which prints into `folder`/INDEX.out and .err."""
    port = free_port()
    return [
        forked(work, folder / f"{index}.out", folder / f"{index}.err", place(index, count, port))
        for index in range(count)
    ]


def said(
    started: Sequence[multiprocessing.Process], folder: Path, seconds: float
) -> list[tuple[str, str]]:
    """What processes print until they end, on both streams; all are ended after `seconds`."""
    deadline = time.monotonic() + seconds
    try:
        for process in started:
            process.join(max(0.0, deadline - time.monotonic()))
    finally:
        for process in started:
            process.kill()
            process.join()
    names = [(f"{i}.out", f"{i}.err") for i in range(len(started))]
    return [((folder / out).read_text(), (folder / err).read_text()) for out, err in names]


def read(folder: Path, name: str, count: int) -> list[dict[str, Tensor]]:
    """The numbers that each process left of a case."""
    return [load_file(folder / f"{name}.{i}.safetensors") for i in range(count)]


def run(folder: Path, names: Iterable[str], cases: dict[str, dict[str, Any]]) -> None:
    """Some cases in this process of several."""
    from diffusion.processes import joined

    with joined("cpu") as ranks:
        for name in names:
            found = numbers(tuner_of(ranks, **cases[name]))
            whole = {key: value.contiguous() for key, value in found.items()}
            save_file(whole, folder / f"{name}.{ranks.index}.safetensors")


calls = 0


def deadly(images: Tensor, prompts: list[str]) -> Tensor:
    """`brightness`, until the second of several processes is killed while it judges epoch 2."""
    global calls
    calls += 1
    if os.environ.get("RANK") == "1" and calls == 4:  # after the check, an evaluation, an epoch
        os.kill(os.getpid(), signal.SIGKILL)
    return images.mean((1, 2, 3))


def cases_and_command(folder: Path, words: Sequence[str]) -> int:
    """CASES, then a command of `genpol`: the work of one process of several."""
    from genpol.cli import main

    global calls
    calls = 0
    run(folder, CASES, CASES)
    return main(list(words))


def long_cases(folder: Path) -> None:
    """LONG_CASES: the work of one process of several."""
    LONG_CASES["pairs"]["pairs"] = str(folder / "pairs.jsonl")
    run(folder, LONG_CASES, LONG_CASES)
