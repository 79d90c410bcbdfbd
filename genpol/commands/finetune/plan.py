"""`genpol finetune --plan`: what a run will need, before anything is loaded."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from genpol.commands.finetune.memory import planned_device

if TYPE_CHECKING:
    from diffusion.planning.plan import Plan
    from genpol.commands.finetune.options import Finetune

GROUPS = {
    "weights": "weights",
    "training": "trained weights' own",
    "data": "data of an epoch and of an evaluation",
    "passes": "passes, one at a time",
}
CONTEXT = 500_000_000  # about what CUDA keeps for itself on a card


def show_plan(config: Finetune) -> None:
    """Print the plan of a resolved configuration, as a table or as JSON.

    Raises:
        InputError: the model, the prompts or the rewards cannot be read.
    """
    from genpol.runs.quiet import hide_loading_bars

    hide_loading_bars()
    if os.environ.get("RANK", "0") != "0":
        return  # one process says it for all
    found = plan_of(config)
    device = planned_device(config)
    memory = memory_of(config, device)
    if config.json:
        print(json.dumps(found.as_dict() | {"device": device, "memory": memory}, indent=2))
    else:
        print("\n".join(lines(found, config, device, memory)))


def plan_of(config: Finetune) -> Plan:
    """The plan; see `show_plan`."""
    from diffusion.planning.make import Machine, Work, make_plan
    from diffusion.planning.rewards import reward_bytes
    from diffusion.planning.skeleton import skeleton
    from diffusion.prompts.sources import load_prompts
    from genpol.commands.finetune.family import family_of

    drawn: list[str] = []
    held_out: list[str] = []
    if config.pairs is None:
        prompts: Any = load_prompts(
            config.prompts or "",
            column=config.prompt_column,
            held_out_fraction=config.held_out,
            eval_spec=config.eval_prompts,
        )
        drawn = prompts.train(0, config.prompts_per_epoch, config.seed)
        count = max(config.eval_images, config.final_eval_images or 0)
        held_out = prompts.held_out(count, config.seed)
    else:
        from diffusion.preferences.source import load_pairs

        columns = {"columns": config.pair_columns, "held_out_fraction": config.held_out}
        own = {"eval_spec": config.eval_prompts, "eval_column": config.prompt_column}
        pairs: Any = load_pairs(config.pairs, **columns, **own)  # type: ignore[arg-type]
        drawn = pairs.train(0, config.prompts_per_epoch, config.seed)
        held_out = pairs.held_out(config.eval_images, config.seed) if config.reward else []
    rewards: dict[str, int | None] = {}
    for text in (config.reward, config.gold_reward):
        for one in (text or "").split(",") if text is config.gold_reward else [text]:
            rewards |= reward_bytes(one) if one else {}
    family = family_of(config)
    found = skeleton(
        str(config.model),
        dtype=config.dtype,
        scheduler=config.scheduler,
        model_config=config.model_config,
        family=family,
    )
    work = Work(drawn, held_out, config.lora, rewards, config.pairs is not None)
    sharded = os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true")
    device = planned_device(config)
    memory = memory_of(config, device)
    room = None if memory is None or device == "cpu" else memory - CONTEXT
    machine = Machine(device, processes_of(config), sharded, room)
    return make_plan(found, config, work, machine, family)


def processes_of(config: Finetune) -> int:
    """Those of --processes, else as many as the launcher started."""
    launched = os.environ.get("WORLD_SIZE", "1")
    return config.processes or (int(launched) if launched.isdigit() else 1)


def memory_of(config: Finetune, device: str) -> int | None:
    """Bytes of the device: those of --device-memory, else of the one that is here."""
    import torch

    if config.device_memory is not None:
        return int(config.device_memory * 1e9)
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(device)[1] if torch.cuda.is_available() else None
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None


def libraries() -> int:
    """Bytes of this process, which has loaded what a run loads and no weights; 0 where unknown."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def lines(found: Plan, config: Finetune, device: str, memory: int | None) -> list[str]:
    """The plan as text."""
    from diffusion.planning.plan import PHASES

    facts, places = found.facts, found.places()
    heads = {"device": device, "host": "host" if not found.on_cpu else "memory"}
    ranks = f", each of {facts['processes']} processes" if facts["processes"] > 1 else ""
    text = [
        f"{config.model} on {device}{ranks}: {_count(facts['denoiser_parameters'])} parameters in "
        f"the denoiser, {_count(facts['trained_parameters'])} trained; nothing was loaded",
        f"{'':46}" + "".join(f"{heads[place]:>12}" for place in places),
    ]
    for group, words in GROUPS.items():
        items = [i for i in found.items if i.group == group and i.name not in LOADING]
        if items:
            text.append(words)
        for item in items:
            cells = [
                f"{gb(item.size):>12}" if found.on_cpu or item.place == place else f"{'':12}"
                for place in places
            ]
            text.append(f"  {item.name[:43]:44}{''.join(cells)}".rstrip())
    text.append("together")
    for phase, words in PHASES.items():
        sizes = [f"{gb(found.at(phase, place)):>12}" for place in places]
        text.append(f"  {words:44}{''.join(sizes)}")
    text += _besides(found, config)
    return text + _verdict(found, config, device, memory)


LOADING = ("weights in the files", "sums that know the weights")


def _besides(found: Plan, config: Finetune) -> list[str]:
    """What stands beside the table."""
    text = []
    if found.checkpointed is not None:
        word = "without" if config.gradient_checkpointing else "with"
        text.append(
            f"{word} --gradient-checkpointing the forward and backward pass would take "
            f"{gb(found.checkpointed)}"
        )
    for name in ("rollout_batch", "micro_batch"):
        if getattr(config, name) == "auto":
            text.append(f"--{name.replace('_', '-')} auto is planned with {found.facts[name]} rows")
    text += [f"not counted: {line}" for line in found.unknown]
    if size := libraries():
        text.append(f"Python and its libraries take another {gb(size)} of the host's memory")
    if not found.on_cpu:
        text.append(
            f"CUDA keeps about {gb(CONTEXT)} of a card for itself, and some for workspaces of its "
            "kernels"
        )
    return text


def _verdict(found: Plan, config: Finetune, device: str, memory: int | None) -> list[str]:
    from diffusion.planning.advice import advice
    from diffusion.planning.plan import PHASES

    place = found.places()[0]
    phase, size = found.peak(place)
    said = f"the most at a time: {gb(size)} {PHASES[phase]}"
    own = libraries() if found.on_cpu else CONTEXT
    if memory is None:
        return [f"{said}; pass --device-memory GB to compare it with a device's"]
    left = memory - own
    if size <= left:
        return [f"{said}, of {gb(memory)}: it fits"]
    text = [f"{said}, of {gb(memory)}: it does not fit. In this order, try"]
    for one in advice(found, config, left):
        fits = "" if one.size is None else f": {gb(one.size)}"
        more = ", which fits" if one.size is not None and one.size <= left else ""
        text.append(f"  {one.what}{fits}{more}")
    return text


def gb(size: float) -> str:
    """Bytes in GB (1e9), or in MB where that is more legible."""
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def _count(number: int) -> str:
    return f"{number / 1e9:.2f} billion" if number >= 1e9 else f"{number / 1e6:.2f} million"
