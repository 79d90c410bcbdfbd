"""What `genpol bench beside` times, in a process of its own: a decision, a step of EXPO, an epoch.

The parent writes lines of JSON and gets one back for each: first the settings, then which work is
to be done how often. The process ends with the parent, however that ended.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import torch

import genpol
from genpol.runs.machine import drawing
from offline.threads import choose, in_threads, typical_of

ASSETS = Path(genpol.__file__).parent / "assets"
CANDIDATES = 32  # of the decision (K)
LIMIT = 60.0  # seconds of one work in one turn; threads that spin beside others take any time


def main(own_threads: bool) -> None:
    """Serve the parent.

    Args:
        own_threads: follow the policy of `offline.threads`; else PyTorch's own number.
    """
    _end_with_the_parent(int(os.environ["LIFELINE"]))
    # What libraries print is not for the parent.
    answers, sys.stdout = os.fdopen(os.dup(1), "w", buffering=1), sys.stderr
    settings = json.loads(sys.stdin.readline())
    works = {
        "decision": _decision(),
        "expo_step": _expo_step(_tupled(settings["expo"])),
        "epoch": _epoch(_tupled(settings["finetune"])),
    }
    threads = {
        name: choose(settings["threads"], typical) if own_threads else torch.get_num_threads()
        for name, (_, typical) in works.items()
    }
    for name, (work, _) in works.items():
        with in_threads(threads[name]):
            work()  # the first makes what the others reuse
    print(json.dumps({"threads": threads}), file=answers)
    for line in sys.stdin:
        asked = json.loads(line)
        with in_threads(threads[asked["work"]]):
            found = timed(works[asked["work"]][0], asked["times"], asked["every"])
        print(json.dumps(found), file=answers)


def _end_with_the_parent(lifeline: int) -> None:
    """End this process, whatever it does, once the other end of a pipe is closed."""

    def wait() -> None:
        os.read(lifeline, 1)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def timed(work: Callable[[], Any], times: int, every: float) -> dict[str, Any]:
    """Wall-clock seconds of each call, and CPU-seconds of all threads per call.

    Args:
        work: called `times` times, but no longer than `LIMIT` seconds, and once at least.
        times: see `work`.
        every: seconds from one start to the next, which are slept; 0 for one after another.
    """
    wall: list[float] = []
    cpu, due = time.process_time(), time.perf_counter()
    end = due + LIMIT
    while len(wall) < times and (not wall or time.perf_counter() < end):
        if every:
            due = max(due + every, time.perf_counter())
            time.sleep(max(0.0, due - time.perf_counter()))
        start = time.perf_counter()
        work()
        wall.append(time.perf_counter() - start)
    return {"wall": wall, "cpu": (time.process_time() - cpu) / len(wall)}


Work = tuple[Callable[[], Any], list[Any]]  # and typical operations, for the number of threads


def _decision() -> Work:
    """One decision for one robot: the shipped flow policy, steered by the shipped value."""
    from genpol.policies.policy import load_policy
    from genpol.steering.select import softmax
    from genpol.steering.steered import Steered
    from offline.critics.value import ValueFunction

    policy = load_policy(ASSETS / "training" / "policy")
    value = ValueFunction.load(ASSETS / "steering" / "value")
    steered = Steered(policy, value, CANDIDATES, softmax(1.0), check=False)
    generator = torch.Generator().manual_seed(0)
    obs = {
        key: torch.randn(1, *shape, generator=generator) for key, shape in policy.obs_shapes.items()
    }
    weights = [*policy.parameters(), *value.parameters()]
    return partial(steered.decide, obs, generator), typical_of(weights, CANDIDATES)


def _expo_step(settings: dict[str, Any]) -> Work:
    """An environment step's learning, as in `genpol bench expo`."""
    from genpol.agents.config import TrainConfig
    from genpol.benchmarks import expo

    config = TrainConfig(**settings)
    agent = expo.make_bench_agent(config)
    task = expo.ToyTask(expo.OFFLINE_ROWS + expo.REPLAY_SLOTS)
    generator = torch.Generator().manual_seed(0)
    return partial(expo.env_step, agent, task, config, generator), []


def _epoch(settings: dict[str, Any]) -> Work:
    """An epoch of `genpol finetune` of the shipped pipeline, with fewer prompts."""
    from diffusion.config import FinetuneConfig
    from diffusion.finetune import Finetuner
    from diffusion.loading import denoiser_config, load_pipeline
    from diffusion.pipelines import ImagePolicy
    from diffusion.prompts.sources import load_prompts
    from diffusion.rewards import load_reward

    known = {f.name for f in fields(FinetuneConfig)}
    config: Any = FinetuneConfig(**{k: v for k, v in settings.items() if k in known})
    policy = ImagePolicy(
        load_pipeline("tiny"),
        guidance_scale=config.guidance_scale,
        lora_rank=config.lora_rank,
        lora_targets=config.lora_targets,
        lora_alpha=config.lora_alpha,
        lora_dora=config.lora_dora,
        seed=config.seed,
    )
    tuner = Finetuner(policy, load_reward("attributes"), load_prompts("world"), config)
    return tuner.run_epoch, drawing(config, denoiser_config("tiny"), config.micro_batch)


def _tupled(settings: dict[str, Any]) -> dict[str, Any]:
    """JSON has no tuples."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
