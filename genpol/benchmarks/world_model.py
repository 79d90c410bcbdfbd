"""The work that `genpol bench world-model` measures: MBPO on Hopper, ours and mbrl-lib's.

Both start from the same number of exploration steps, and their clock with the step in which the
models are trained first; from then on every environment step makes `sac_updates` updates of critic,
actor and temperature, and every `model_every` a training of the models and a batch of rollouts.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import time
from pathlib import Path
from typing import Any

from genpol.runs.measure import PartClock
from offline.errors import InputError
from offline.learning.loop import Loop
from offline.models.imagination import Imagination

PEER = Path(__file__).parents[2] / "scripts" / "mbrl_peer.py"
ENV = "Hopper-v5"
HELD_OUT = 0.2
BATCH = 256  # of models and of SAC
# Sizes of both sides, as the peer's script calls them; those that no option changes.
SIZES = {
    "--ensemble": 7,
    "--elites": 5,
    "--model-layers": 4,
    "--model-width": 200,
    "--model-batch": BATCH,
    "--rollout-length": 1,
    "--sac-batch": BATCH,
    "--sac-width": 256,
    "--holdout": HELD_OUT,
    "--real": 0.05,
    "--patience": 0,  # what a training takes is known beforehand
}


def model_updates(explore: int, model_every: int, epochs: int) -> int:
    """Updates of the first training, which sees so many steps: whole epochs of minibatches."""
    steps = explore + model_every
    return epochs * math.ceil((steps - int(steps * HELD_OUT)) / BATCH)


def measure(loop: Loop, steps: int) -> dict[str, float]:
    """Go on with a loop from the step before its first update; returns sums and counts.

    Returns:
        Counts, and CPU-seconds: "cpu" in all, "sac", "critic", "actor", "model_updates_cpu",
        "model" (trainings, what is held out included), "rollout", "environment", "draw".
    """
    imagination, agent = loop.imagination, loop.agent
    assert isinstance(imagination, Imagination)
    training = imagination.parts["fitter"].training  # type: ignore[attr-defined]
    before = loop.step
    clock = PartClock(
        [
            (loop.envs, "step", "environment"),
            (imagination, "fit", "model"),
            (training, "update", "model_updates"),
            (imagination, "imagine", "rollout"),
            (loop.mixture, "sample", "draw"),
            (agent, "update_critic", "critic"),
            (agent, "update_policy", "actor"),
        ]
    )
    cpu, wall = time.process_time(), time.perf_counter()
    with clock:
        loop.run(before + steps)
    seconds = {part: clock.cpu.get(part, 0.0) for part in ("environment", "model", "rollout")}
    return {
        "cpu": time.process_time() - cpu,
        "wall": time.perf_counter() - wall,
        "env_steps": float(loop.step - before),
        "sac_updates": float(clock.calls["actor"]),
        "critic_updates": float(clock.calls["critic"]),
        "model_trainings": float(clock.calls["model"]),
        "model_updates": float(clock.calls["model_updates"]),
        "imagined": float(len(imagination)),
        "critic": clock.cpu["critic"],
        "actor": clock.cpu["actor"],
        "draw": clock.cpu["draw"],
        # the peer draws its batches within the update
        "sac": clock.cpu["critic"] + clock.cpu["actor"] + clock.cpu["draw"],
        "model_updates_cpu": clock.cpu["model_updates"],
    } | seconds


def measure_peer(python: str, options: dict[str, Any], steps: int) -> dict[str, float]:
    """mbrl-lib's run of the same, in an interpreter of its own; as `measure`.

    Raises:
        InputError: the interpreter or the script is missing, or it fails.
    """
    if not PEER.is_file():
        raise InputError(f"{PEER} is missing: --peer needs a checkout of the repository")
    words = [python, str(PEER), "--env", ENV, "--steps", str(steps)]
    for name, value in (SIZES | options).items():
        words += [name, str(value)]
    count = str(options.get("--threads", 1))
    threads = {"OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count}
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, env=os.environ | threads, check=False
        )
    except OSError as error:
        raise InputError(
            f"--peer is the Python of an environment with mbrl, and {python} cannot be run "
            f"({error.strerror}): {PEER.name} says how to make one"
        ) from None
    try:
        found = json.loads(done.stdout.splitlines()[-1])
        seconds, parts = found["seconds"], found["of_which"]
        return {
            "cpu": found["cpu_seconds"],
            "wall": found["wall_seconds"],
            "env_steps": float(found["env_steps"]),
            "sac_updates": float(found["sac_updates"]),
            "model_trainings": float(found["model_trainings"]),
            "model_updates": float(found["model_updates"]),
            "imagined": float(found["imagined"]),
            "sac": seconds["sac"],
            "model_updates_cpu": parts["model_updates"],
            "model": seconds["model"],
            "rollout": seconds["rollout"],
            "environment": seconds["environment"],
        }
    except (ValueError, IndexError, KeyError, TypeError):
        last = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        raise InputError(
            f"{PEER.name} gave no result under {python} (exit code {done.returncode}): {last}. Is "
            "mbrl installed there? The script says how"
        ) from None


def total(pieces: list[dict[str, float]]) -> dict[str, float]:
    """Sums over pieces."""
    return {name: sum(piece[name] for piece in pieces) for name in pieces[0]}


def results(sums: dict[str, float], prefix: str = "bench/") -> dict[str, float]:
    """Metrics of one side; see docs/metrics.md."""
    counts = ("env_steps", "sac_updates", "model_trainings", "model_updates", "imagined")
    out = {
        "env_steps_per_cpu_s": sums["env_steps"] / sums["cpu"],
        "env_step_cpu_s": sums["cpu"] / sums["env_steps"],
        "sac_update_cpu_s": sums["sac"] / sums["sac_updates"],
        "model_update_cpu_s": sums["model_updates_cpu"] / sums["model_updates"],
        "model_training_cpu_s": sums["model"] / sums["model_trainings"],
        "rollout_cpu_s": sums["rollout"] / sums["imagined"],
        "simulator_cpu_s": sums["environment"] / sums["env_steps"],
        **{name: sums[name] for name in counts},
    }
    if "critic" in sums:
        out["critic_update_cpu_s"] = sums["critic"] / sums["critic_updates"]
        out["actor_update_cpu_s"] = sums["actor"] / sums["sac_updates"]
        out["draw_cpu_s"] = sums["draw"] / sums["critic_updates"]
    return {prefix + name: value for name, value in out.items()}


def compared(ours: list[dict[str, float]], peers: list[dict[str, float]]) -> dict[str, float]:
    """Metrics of both sides and how many times faster ours is, in all and piece by piece."""
    out = results(total(ours))
    if not peers:
        return out
    out |= results(total(peers), "bench/peer_")
    for name in ("env_step", "sac_update", "model_update", "model_training", "rollout"):
        out[f"bench/ratio_{name}"] = out[f"bench/peer_{name}_cpu_s"] / out[f"bench/{name}_cpu_s"]
    each = [peer["cpu"] / our["cpu"] for our, peer in zip(ours, peers, strict=True)]
    return out | {"bench/ratio_lowest": min(each), "bench/ratio_highest": max(each)}
