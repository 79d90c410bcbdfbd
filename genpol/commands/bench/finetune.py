"""`genpol bench finetune`: the speed of fine-tuning, beside the same loop as usually written."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from diffusion.config import check
from diffusion.recommended import recommended_texts
from genpol.commands.wandb_options import WANDB, WandbOptions
from genpol.runs.machine import on_this_machine
from offline.ranges import Count, NotNegative, Seed, Threads

if TYPE_CHECKING:
    from torch import Tensor

    from diffusion.finetune import Finetuner
    from genpol.commands.finetune.options import Finetune
    from genpol.runs.measure import Cost
    from offline.threads import Typical

TOLERANCE = 1e-4  # relative difference of the two loops' gradients, in fp32
# The order of help: subject -> fields.
GROUPS: dict[str, tuple[str, ...]] = {
    "what most people need": ("model", "reward", "prompts", "epochs", "device", "output"),
    "size of the work": (
        "prompts_per_epoch", "images_per_prompt", "inner_steps", "num_inference_steps",
        "guidance_scale", "rollout_batch", "micro_batch", "height", "width",
    ),
    "memory and precision": ("gradient_checkpointing", "dtype", "autocast", "compile"),
    "run": ("threads", "seed", *WANDB),
}  # fmt: skip
# What help shows for settings that the model decides.
DEFAULT_TEXTS = recommended_texts()


@dataclass(frozen=True)
class BenchFinetune(WandbOptions):
    """Measure fine-tuning: share of time in the model, images per second, memory.

    Ours and the comparison loop (`genpol/benchmarks/ddpo.py`) take turns, epoch by epoch, from the
    same weights with the same prompts and noise, so that a busy machine disturbs both. The plain
    loops of diffusers (`genpol/benchmarks/plain.py`) come third.
    """

    model: str = "tiny"
    """Pipeline: "tiny" (shipped), a diffusers folder, or a hub id."""
    reward: str = "attributes"
    """Reward, as in `genpol finetune`."""
    prompts: str = "world"
    """Prompts, as in `genpol finetune`."""
    epochs: Count = 3
    """Epochs of each loop that are measured, at least 1. One more warms up."""
    prompts_per_epoch: Count = 16
    """Prompts of each epoch (N), above 0."""
    images_per_prompt: Count | None = None
    """Images drawn for each prompt (B), at least 2."""
    inner_steps: Count | None = None
    """Optimiser steps on each epoch's images (K), above 0."""
    num_inference_steps: Count | None = None
    """Denoising steps (T), above 0."""
    guidance_scale: NotNegative | None = None
    """Classifier-free guidance. 1 is none."""
    rollout_batch: Count | None = None
    """Images drawn at a time in both loops, above 0."""
    micro_batch: Count | None = None
    """Denoising steps of one forward and backward pass, above 0. In the comparison loop it counts
    images."""
    height: Count | None = None
    """Height of the images in pixels. Default: the pipeline's."""
    width: Count | None = None
    """Width of the images in pixels. Default: the pipeline's."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass, for less memory and more time."""
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of the frozen weights."""
    autocast: Literal["bf16", "fp16"] | None = None
    """Mixed precision of the UNet. Default: none, the precision of --dtype."""
    compile: bool = False
    """Compile the denoiser, for all loops. The first epoch, which warms up, takes minutes."""
    device: str | None = None
    """Device of the networks: cpu, cuda, cuda:1 or mps. Default: cuda where there is one, else
    cpu."""
    threads: Threads | None = None
    """Threads of PyTorch on the CPU, at least 1. Default: $OMP_NUM_THREADS, else one for small
    networks, and for images or wide layers as many as a measurement at the start finds faster."""
    seed: Seed = 0
    """Seed of everything random."""
    output: Path = Path("runs/bench")
    """Run folder."""
    wandb: Literal["online", "offline", "disabled"] = "disabled"
    """Where wandb logs."""


def work(config: BenchFinetune) -> list[Typical]:
    """Typical operations, as those of `genpol finetune`."""
    from genpol.commands.finetune import command as finetune

    return finetune.work(finetune.complete(options(config)), {})


def options(config: BenchFinetune) -> Finetune:
    """Those of the run that is measured."""
    from genpol.commands.finetune.options import Finetune

    return Finetune(**asdict(config), gold_reward="")


@on_this_machine(work)
def run(config: BenchFinetune) -> None:
    """Check that both loops have the same gradient, time them in turns, write the run folder."""
    from genpol.benchmarks.ddpo import ddpo_epoch
    from genpol.benchmarks.plain import plain_rollout, plain_training
    from genpol.commands.finetune.command import build, complete
    from genpol.runs.measure import Cost, count_flop
    from genpol.runs.processor import measure_speed
    from genpol.runs.quiet import hush
    from genpol.runs.run import Run
    from offline.option_check import check_numbers

    hush()
    check_numbers(config)
    settings = complete(options(config))
    check(settings)
    tuner, identity = build(settings)
    document = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(settings).items()}
    begin, speed = time.perf_counter(), measure_speed()
    with Run(
        config.output, document | identity, command="bench finetune", wandb=config.wandb
    ) as folder:
        error = gradient_error(tuner)
        start = snapshot(tuner)
        flop = count_flop(tuner.run_epoch)
        rewind(tuner, start)
        ours, usual, plain = Cost(), Cost(), (Cost(), Cost())
        for epoch in range(config.epochs):
            start = snapshot(tuner)
            measure(tuner, tuner.run_epoch, ours)
            rewind(tuner, start)
            measure(tuner, lambda: ddpo_epoch(tuner), usual)
            after = snapshot(tuner)
            rewind(tuner, start)
            measure(tuner, lambda: plain_rollout(tuner, tuner.rollout_batch.size), plain[0])
            measure(tuner, lambda: plain_training(tuner, tuner.micro_batch.size), plain[1])
            rewind(tuner, after)
            folder.log(epoch + 1, results(ours, usual) | beside_plain(ours, *plain))
        final = (
            results(ours, usual)
            | beside_plain(ours, *plain)
            | {
                "bench/gradient_error": error,
                "time/seconds": time.perf_counter() - begin,
                "bench/epoch_gflop": flop / 1e9,
                **speed.metrics(),
            }
        )
        if str(tuner.policy.device) == "cpu" and not settings.autocast and settings.dtype == "fp32":
            final["bench/speed_share"] = speed.share(flop, ours.cpu_seconds / config.epochs)
        folder.summary(final)
    print(as_table(final))
    print(speed)


def gradient_error(tuner: Finetuner) -> float:
    """Relative difference of the two loops' gradients over one epoch, which also warms up.

    Raises InputError when there is no gradient, RuntimeError when fp32 gradients on the CPU differ
    by more than TOLERANCE. (A GPU may round convolutions to TF32: reported, not enforced.)
    """
    import torch

    from diffusion.errors import InputError
    from genpol.benchmarks.ddpo import ddpo_epoch

    config, reward = tuner.config, tuner.reward
    known: list[Tensor] = []

    def recorded(images: Tensor, prompts: list[str]) -> Tensor:
        known.extend(reward(images, prompts))
        return torch.stack(known[-len(images) :])

    def replayed(images: Tensor, prompts: list[str]) -> Tensor:
        # Images differ in the last bit with the batch size, which a stepwise reward magnifies.
        values = torch.stack(known[: len(images)])
        del known[: len(images)]
        return values

    start = snapshot(tuner)
    tuner.config = replace(config, inner_steps=1)
    try:
        tuner.reward = recorded
        tuner.run_epoch()
        ours = gradient(tuner)
        rewind(tuner, start)
        tuner.reward = replayed
        ddpo_epoch(tuner)
        usual = gradient(tuner)
    finally:
        tuner.config, tuner.reward = config, reward
    if not usual.any():
        raise InputError(
            "the reward is equal for all images of every prompt, so there is no gradient to "
            "measure; choose another --reward"
        )
    error = float((ours - usual).norm() / usual.norm())
    exact = config.autocast is None and tuner.policy.denoiser.dtype == torch.float32
    if exact and tuner.policy.device.type == "cpu" and not error <= TOLERANCE:
        raise RuntimeError(f"the two loops' gradients differ by {error:.1e}, relative")
    return error


def gradient(tuner: Finetuner) -> Tensor:
    """All gradients as one vector, float64."""
    import torch

    grads = [
        torch.zeros_like(p) if p.grad is None else p.grad for p in tuner.trained.parameters.values()
    ]
    return torch.cat([g.flatten().double().cpu() for g in grads])


def snapshot(tuner: Finetuner) -> tuple[dict[str, Tensor], dict]:
    """A copy of the tuner's state."""
    tensors, values = tuner.state()
    return {name: tensor.clone() for name, tensor in tensors.items()}, values


def rewind(tuner: Finetuner, state: tuple[dict[str, Tensor], dict]) -> None:
    """Go back to a snapshot."""
    tuner.trained.optimiser.state.clear()
    tuner.load_state(*state)


def measure(tuner: Finetuner, epoch: Callable[[], Any], cost: Cost) -> None:
    """Run one epoch and add what it took."""
    from genpol.runs.measure import ModelClock, PartClock, read_peak, reset_peak, synchronise

    policy, cfg = tuner.policy, tuner.config
    device = str(policy.device)
    known = reset_peak(device)
    synchronise(device)
    parts = [(tuner, "draw", "rollout"), (policy, "decode", "rollout")]
    parts.append((tuner, "take_steps", "training"))
    with ModelClock(policy.networks(), device) as clock, PartClock(parts, device) as split:
        backward, tuner.backward = tuner.backward, clock.timed(tuner.backward)
        cpu, start = time.process_time(), time.perf_counter()
        epoch()
        synchronise(device)
        cost.seconds += time.perf_counter() - start
        cost.cpu_seconds += time.process_time() - cpu
        tuner.backward = backward
    cost.model_seconds += clock.seconds
    for part, seconds in split.wall.items():
        cost.parts[part] = cost.parts.get(part, 0.0) + seconds
    cost.images += cfg.prompts_per_epoch * cfg.images_per_prompt  # type: ignore[operator]
    if known:
        cost.peak_mb = max(cost.peak_mb or 0.0, read_peak(device))


def results(ours: Cost, usual: Cost) -> dict[str, float]:
    """Metrics of both loops; see docs/metrics.md."""
    out: dict[str, float] = {"bench/images": float(ours.images)}
    for cost, suffix in ((ours, ""), (usual, "_ddpo")):
        out |= {
            f"bench/model_share{suffix}": cost.model_seconds / cost.seconds,
            f"bench/images_per_second{suffix}": cost.images / cost.seconds,
            f"bench/cpu_seconds_per_image{suffix}": cost.cpu_seconds / cost.images,
        }
        if cost.peak_mb is not None:
            out[f"bench/peak_mb{suffix}"] = cost.peak_mb
    speeds = out["bench/images_per_second"], out["bench/images_per_second_ddpo"]
    return out | {"bench/ratio": speeds[0] / speeds[1]}


def beside_plain(ours: Cost, rollout: Cost, training: Cost) -> dict[str, float]:
    """Drawing and training apart, beside the plain loops; see docs/metrics.md."""
    out: dict[str, float] = {}
    for part, other in (("rollout", rollout), ("training", training)):
        mine, theirs = ours.images / ours.parts[part], other.images / other.seconds
        out |= {
            f"bench/{part}_images_per_second": mine,
            f"bench/{part}_images_per_second_plain": theirs,
            f"bench/{part}_ratio": mine / theirs,
        }
    seconds = rollout.seconds + training.seconds
    out["bench/model_share_plain"] = (rollout.model_seconds + training.model_seconds) / seconds
    if rollout.peak_mb is not None and training.peak_mb is not None:
        out["bench/peak_mb_plain"] = max(rollout.peak_mb, training.peak_mb)
    return out


def as_table(metrics: dict[str, float]) -> str:
    """The loops side by side."""
    rows = {
        "images per second": ("images_per_second", ".2f"),
        "  in drawing": ("rollout_images_per_second", ".2f"),
        "  in training": ("training_images_per_second", ".2f"),
        "CPU seconds per image": ("cpu_seconds_per_image", ".3f"),
        "share of time in the model": ("model_share", ".1%"),
        "peak memory, MB": ("peak_mb", ".0f"),
    }
    lines = [f"{'':28}{'genpol':>10}{'usual loop':>12}{'plain loops':>13}"]
    for label, (name, form) in rows.items():
        if f"bench/{name}" in metrics:
            cells = f"{metrics[f'bench/{name}']:>10{form}}"
            for suffix, width in (("_ddpo", 12), ("_plain", 13)):
                value = metrics.get(f"bench/{name}{suffix}")
                cells += " " * width if value is None else f"{value:>{width}{form}}"
            lines.append(f"{label:28}{cells}".rstrip())
    if (share := metrics.get("bench/speed_share")) is not None:
        gflop = metrics["bench/epoch_gflop"]
        lines.append(f"an epoch is {gflop:.3g} GFLOP: {share:.0%} of this machine's float32")
    lines.append(
        f"{metrics['bench/ratio']:.2f} times the speed on {metrics['bench/images']:.0f} images "
        f"each; gradients equal to {metrics['bench/gradient_error']:.0e}"
    )
    return "\n".join(lines)
