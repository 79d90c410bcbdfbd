"""Makes a plan of a run's memory from its configuration, without a weight."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from diffusion.config import FinetuneConfig, policy_settings
from diffusion.families.family import Family
from diffusion.fitting import LARGEST
from diffusion.loading import DTYPES
from diffusion.objectives.make import make_objective
from diffusion.pipelines import ImagePolicy
from diffusion.planning.passes import Passes
from diffusion.planning.plan import DEVICE, HOST, RUNNING, Item, Plan
from diffusion.planning.skeleton import bytes_of
from diffusion.recommended import PUBLISHED

DRAWN = ("draw", "decode", "train", "step")  # as long as an epoch's chains are needed
SHOWN = 64  # latents that are decoded in the plan; more take no more on the device
QUANTISED = {"8bit": 1.02, "4bit": 0.53}  # bytes of a weight, its scales included
PASSES = {"rollout_batch": "draw", "micro_batch": "train"}  # what is done by so many rows
MARGIN = 1.1  # what allocators and kernels take beyond the tensors


@dataclass(frozen=True)
class Machine:
    """device: cpu, cuda... processes: of the run. sharded: whether the denoiser is split over
    them. memory: bytes that the device has for tensors, where they are known."""

    device: str = "cpu"
    processes: int = 1
    sharded: bool = False
    memory: int | None = None

    @property
    def on_cpu(self) -> bool:
        return torch.device(self.device).type == "cpu"


@dataclass(frozen=True)
class Work:
    """What a run works on, beside its configuration.

    prompts: of one epoch. held_out: of an evaluation. start_lora: as in ImagePolicy. rewards: bytes
    by name, None where nobody knows. paired: whether pairs are read and nothing is drawn in
    training.
    """

    prompts: list[str]
    held_out: list[str]
    start_lora: str | None = None
    rewards: dict[str, int | None] | None = None
    paired: bool = False


def make_plan(
    pipe: Any,
    config: FinetuneConfig,
    work: Work,
    machine: Machine,
    family: type[Family] | None = None,
) -> Plan:
    """The plan of one process of a run.

    Args:
        pipe: without weights, of `skeleton`.
        config: a resolved configuration.
        work: prompts and rewards.
        machine: where the networks will be, and how many processes there are.
        family: replaces the one that the pipeline's class has.
    """
    base = {name: bytes_of(part) for name, part in _networks(pipe).items()}
    largest = max(p.numel() for part in _networks(pipe).values() for p in part.parameters())
    policy = _policy(pipe, config, work.start_lora, family)
    return _Maker(policy, config, work, machine, base, 8 * largest).plan()


class _Maker:
    def __init__(
        self,
        policy: ImagePolicy,
        config: Any,
        work: Work,
        machine: Machine,
        base: dict[str, int],
        checked: int,
    ) -> None:
        self.policy, self.config, self.work, self.machine = policy, config, work, machine
        self.base, self.checked = base, checked
        cast = DTYPES[config.autocast] if config.autocast else None
        self.passes = Passes(policy, cast, on_cpu=machine.on_cpu)
        self.items: list[Item] = []
        self.objective: Any = make_objective(config)
        self.forward = hasattr(self.objective, "terms")
        asked = config.offload
        parts = [word.strip() for word in asked.split(",")]
        self.offloaded = {"encoders", "vae", "rewards"} if "all" in parts else set(parts)
        if machine.on_cpu:
            self.offloaded = set()

    def add(self, name: str, group: str, size: float, *place: str, phases=RUNNING) -> None:
        if size > 0:
            where = place[0] if place else DEVICE
            self.items.append(Item(name, group, math.ceil(size), where, tuple(phases)))

    def plan(self) -> Plan:
        trained = sum(p.numel() for p in self.policy.trainable().values())
        self.weights(trained)
        self.training(trained)
        self.prompts = self.work.prompts or self.work.held_out or [""]
        self.cond, self.encoding = self.passes.encode(self.prompts)
        self.passes.checkpoint(self.config.gradient_checkpointing)
        rows = self.sizes = {name: self.size_of(name) for name in PASSES}
        self.data()
        per_row, other = self.run()
        unknown = tuple(
            f"reward {name}: its memory is not known before it is loaded"
            for name, size in (self.work.rewards or {}).items()
            if size is None
        )
        network = self.policy.denoiser
        facts = {
            "trained_parameters": trained,
            "denoiser_parameters": sum(p.numel() for p in network.parameters())
            - (trained if self.config.train == "lora" else 0),
            "images_per_epoch": self.images,
            "processes": self.machine.processes,
            "latent_shape": list(self.policy.latent_shape),
            **rows,
        }
        items = tuple(self.items)
        return Plan(items, self.machine.on_cpu, facts, unknown, per_row, other)

    # -- what lies there all the time -------------------------------------------------------------

    def weights(self, trained: int) -> None:
        config, name = self.config, self.policy.family.denoiser_name
        share = self.machine.processes if self.machine.sharded else 1
        self.add("weights in the files", "weights", sum(self.base.values()), HOST, phases=["load"])
        self.add("sums that know the weights", "weights", self.checked, HOST, phases=["load"])
        for part, size in self.base.items():
            if part == name:
                continue
            kind = "vae" if part == "vae" else "encoders"
            called = ("decode", "show") if kind == "vae" else ("encode", "evaluate")
            if kind in self.offloaded:
                self.add(part, "weights", size, phases=called)
                self.add(f"{part}, waiting", "weights", size, HOST)
            else:
                self.add(part, "weights", size)
        size = self.base[name]
        if config.train == "full":
            full = 4 * trained
            self.add(f"{name} in fp32", "weights", full / share)
            on = config.reference_on or ("device" if self.machine.on_cpu else "host")
            where = HOST if on == "host" else DEVICE
            if on == "device" and not self.machine.sharded:  # a second network
                self.add("reference weights", "weights", full, where)
            else:  # as they were loaded, with room for the trained ones that they replace
                self.add("reference weights", "weights", size / share, where)
                self.add("room for trained weights", "weights", full / share, where)
        else:
            bits = config.quantization
            if bits != "none":
                linear = [m for m in self.policy.denoiser.modules() if _linear(m)]
                count = sum(m.weight.numel() for m in linear)
                own = sum(m.weight.numel() * m.weight.element_size() for m in linear)
                size = size - own + count * QUANTISED[bits]
            self.add(name, "weights", size / share)
            self.add("LoRA", "weights", bytes_of(self.policy.denoiser) - self.base[name])
        for reward, size_or_none in (self.work.rewards or {}).items():
            where = HOST if "rewards" in self.offloaded else DEVICE
            self.add(f"reward {reward}", "weights", size_or_none or 0, where)

    def training(self, trained: int) -> None:
        config = self.config
        full = config.train == "full"
        share = self.machine.processes if self.machine.sharded and full else 1
        size = 4 * trained / share
        small = config.optimizer == "adamw-8bit"
        self.add("gradients", "training", size)
        self.add("moments of AdamW", "training", size * (0.52 if small else 2))
        anchored = getattr(self.objective, "anchor", False)
        copies = bool(config.ema) + bool(anchored)
        self.add("averages of the weights", "training", copies * size)
        if config.ema:
            self.add("weights put aside", "training", size, phases=["evaluate", "show", "save"])
        if anchored:
            kept = (
                ("draw", "train") if getattr(self.objective, "drawn_by_anchor", 0) else ("train",)
            )
            self.add("weights put aside for the average", "training", size, phases=kept)
        foreach = not self.machine.on_cpu and config.optimizer == "adamw"
        one = max(p.numel() for p in self.policy.trainable().values())
        self.add("the step's own", "training", size if foreach else 4 * one, phases=["step"])
        if not self.machine.on_cpu:
            state = size * (3 + copies)
            self.add("copy of the state", "training", state, HOST, phases=["save"])

    # -- what an epoch holds ----------------------------------------------------------------------

    @property
    def images(self) -> int:
        """Images of an epoch that this process draws; pairs where they come from files."""
        each = 1 if self.work.paired else self.config.images_per_prompt
        return math.ceil(self.config.prompts_per_epoch * each / self.machine.processes)

    def data(self) -> None:
        config, policy = self.config, self.policy
        numbers = math.prod(policy.latent_shape)
        width = torch.empty(0, dtype=DTYPES[config.storage_dtype]).element_size()
        where = DEVICE if config.chains_on == "device" else HOST
        height, across = policy.family.image_size
        picture = 3 * height * across * 4
        if self.work.paired:
            rows = 2 * self.images
            self.add("latents of the pairs", "data", rows * numbers * 4, phases=DRAWN)
            batch = min(self.sizes["rollout_batch"], rows)
            self.add("images of a batch", "data", 2 * batch * picture, HOST, phases=["decode"])
        else:
            steps = 1 if self.forward else config.num_inference_steps + 1
            chains = self.images * steps * numbers * width
            name = f"chains of {self.images} images"
            self.add(name, "data", chains, where, phases=DRAWN)
            batch = min(self.sizes["rollout_batch"], self.images)
            if not self.forward:  # until the reference has seen them
                means = batch * config.num_inference_steps * numbers * 4
                self.add("means of a batch", "data", means, phases=["draw"])
            self.add("samples in fp32", "data", self.images * numbers * 4, phases=["decode"])
            drawn = ("decode", "train", "step")
            self.add("images", "data", self.images * picture, HOST, phases=drawn)
            self.add("images joined", "data", self.images * picture, HOST, phases=["decode"])
        with policy.full_size():
            shown, numbers = len(self.work.held_out), math.prod(policy.latent_shape)
            height, across = policy.family.image_size
        self.add(
            "latents of an evaluation", "data", shown * numbers * 8, phases=["evaluate", "show"]
        )
        size = shown * 3 * height * across * 4
        self.add("images of an evaluation", "data", 2 * size, HOST, phases=["show"])

    # -- passes -----------------------------------------------------------------------------------

    def run(self) -> tuple[dict[str, float], int]:
        """Measure the passes; bytes per row, and the training pass under the other choice of
        gradient checkpointing."""
        config, passes, policy, rows = self.config, self.passes, self.policy, self.sizes
        prompts, cond, encoding = self.prompts, self.cond, self.encoding
        each = sum(v[0].numel() * v.element_size() for v in cond.values())
        told = ("encode", *DRAWN)
        size = each * len(prompts)
        self.add(f"conditioning of {len(prompts)} prompts", "data", size, phases=told)
        self.add("prompts' encoding", "passes", encoding, phases=["encode"])
        batch, micro = min(rows["rollout_batch"], self.images), rows["micro_batch"]
        references = self.references
        training = passes.train(micro, cond, references=references)
        name = f"forward and backward pass of {micro}"
        self.add(name, "passes", training, phases=["train"])
        per_row: dict[str, float] = {"train": training / micro}
        passes.checkpoint(not config.gradient_checkpointing)
        other = passes.train(micro, cond, references=references)
        passes.checkpoint(config.gradient_checkpointing)
        if self.work.paired:
            images = 2 * max(1, min(rows["rollout_batch"] // 2, self.images))
            size = passes.encode_images(images)
            self.add(f"encoding of {images} images", "passes", size, phases=["decode"])
        else:
            drawing = passes.predict(batch, cond)
            per_row["draw"] = drawing / batch
            self.add(f"drawing pass of {batch}", "passes", drawing, phases=["draw"])
            device, _ = passes.decode(min(SHOWN, self.images))
            self.add("decoding", "passes", device, phases=["decode"])
        shown = len(self.work.held_out)
        if shown:
            count, same = min(rows["rollout_batch"], shown), policy.family.image_size
            with policy.full_size():
                if "draw" in per_row and policy.family.image_size == same:
                    drawing = math.ceil(per_row["draw"] * count)
                else:
                    drawing = passes.predict(count, cond)
                device, _ = passes.decode(min(SHOWN, shown))
            more = max(drawing, encoding / len(prompts) * shown)
            self.add(f"evaluation of {shown} prompts", "passes", more, phases=["evaluate"])
            self.add(
                "conditioning of an evaluation", "data", each * shown, phases=["evaluate", "show"]
            )
            self.add("decoding of an evaluation", "passes", device, phases=["show"])
        return per_row, other

    @property
    def references(self) -> int:
        """Passes without a graph that the objective makes beside that of the policy."""
        if not self.forward:
            return int("kl" in getattr(self.objective, "channels", ()))
        asks = getattr(self.objective, "needs_reference", False)
        return bool(getattr(self.objective, "anchor", False)) + bool(asks)

    def size_of(self, name: str) -> int:
        """Rows of a batch. One that is found at run time starts high and is halved until it fits
        beside what is on the device already."""
        asked = getattr(self.config, name)
        if asked != "auto":
            return int(asked)
        usual, room = int(PUBLISHED[name]), self.machine.memory
        if room is None:
            return usual
        phase = PASSES[name]
        if phase == "train":
            one = self.passes.train(usual, self.cond, references=self.references) / usual
        else:
            one = self.passes.predict(usual, self.cond) / usual
        taken = sum(i.size for i in self.items if i.place == DEVICE and phase in i.phases)
        size = LARGEST
        while size > 1 and taken + size * one * MARGIN > room:
            size //= 2
        return size


def _networks(pipe: Any) -> dict[str, torch.nn.Module]:
    return {n: p for n, p in pipe.components.items() if isinstance(p, torch.nn.Module)}


def _linear(module: torch.nn.Module) -> bool:
    return type(module) is torch.nn.Linear


def _policy(
    pipe: Any, config: Any, start_lora: str | None, family: type[Family] | None
) -> ImagePolicy:
    with torch.device("meta"):
        policy = ImagePolicy(
            pipe,
            **policy_settings(config),
            start_lora=start_lora,
            device="meta",
            family=family,
        )
    policy.denoiser.to("meta")  # a LoRA that was read from a file
    return policy
