"""What to change where a plan does not fit, the cheapest in time and quality first."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from diffusion.planning.plan import DEVICE, HOST, Plan


@dataclass(frozen=True)
class Advice:
    """what: options to pass. size: the peak of the device with it, in bytes, all that stands before
    it in the list included; None where it has to be planned anew."""

    what: str
    size: int | None


def advice(plan: Plan, config: Any, memory: int) -> list[Advice]:
    """Changes in the order in which to try them, up to the first that fits.

    Args:
        plan: that does not fit.
        config: a resolved configuration.
        memory: bytes of the device.
    """
    place, found = HOST if plan.on_cpu else DEVICE, list[Advice]()
    for what, change in _changes(plan, config):
        smaller = None if change is None else change(plan)
        if smaller is None:
            found.append(Advice(what, None))
            continue
        size = smaller.peak(place)[1]
        if size < plan.peak(place)[1]:
            found.append(Advice(what, size))
            plan = smaller
            if size <= memory:
                break
    return found


def _changes(plan: Plan, config: Any) -> Iterator[tuple[str, Callable[[Plan], Plan] | None]]:
    def named(start: str) -> str | None:
        return next((i.name for i in plan.items if i.name.startswith(start)), None)

    training, drawing = named("forward and backward pass of"), named("drawing pass of")
    micro, batch = plan.facts["micro_batch"], plan.facts["rollout_batch"]
    if training and micro > 1:
        size = next(i.size for i in plan.items if i.name == training)
        one = size - plan.per_row["train"] * (micro - 1)
        yield "--micro-batch 1", lambda p: p.resized(training, math.ceil(one))
    if drawing and batch > 1:
        yield "--rollout-batch 1", lambda p: p.resized(drawing, math.ceil(p.per_row["draw"]))
    other = plan.checkpointed
    if training and not config.gradient_checkpointing and other is not None:
        one = math.ceil(other / micro)
        yield "--gradient-checkpointing", lambda p: p.resized(training, one)
    if not plan.on_cpu and config.offload == "none":
        yield "--offload all", _offloaded
    if getattr(config, "dtype", "bf16") == "fp32":
        yield "--dtype bf16, which halves the frozen weights and what they compute", None
    if config.train == "full":
        yield "--train lora, which needs no gradients and moments of the whole denoiser", None
    elif config.quantization == "none" and not plan.on_cpu:
        yield "--quantization 8bit or 4bit", None
    yield "--train-resolution with a smaller side", None
    if not plan.on_cpu:
        yield "more cards, with a sharded denoiser (docs/SCALE.md)", None


def _offloaded(plan: Plan) -> Plan:
    from dataclasses import replace

    def moved(item: Any) -> Any:
        encoder, vae = item.name.startswith("text_encoder"), item.name == "vae"
        if item.name.startswith("reward "):
            return replace(item, place=HOST)
        if encoder or vae:
            phases = ("encode", "evaluate") if encoder else ("decode", "show")
            return replace(item, phases=phases)
        return item

    return replace(plan, items=tuple(moved(item) for item in plan.items))
