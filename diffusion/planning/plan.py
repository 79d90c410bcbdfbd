"""A plan of memory: what lies where, and when. All numbers are bytes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any

HOST, DEVICE = "host", "device"
# What a run does, in the order of its first epoch; pieces of it are never alive together.
PHASES = {
    "load": "while weights are read",
    "encode": "while prompts are encoded",
    "draw": "while images are drawn",
    "decode": "while latents become images",
    "train": "in a forward and backward pass",
    "step": "in a step of the optimiser",
    "evaluate": "while an evaluation draws",
    "show": "while an evaluation's latents become images",
    "save": "while a checkpoint is written",
}
RUNNING = tuple(PHASES)[1:]  # after loading


@dataclass(frozen=True)
class Item:
    """Something that takes memory.

    name: what it is. group: weights, training, data or passes. size: bytes. place: "device" or
    "host". phases: when it is alive.
    """

    name: str
    group: str
    size: int
    place: str = DEVICE
    phases: tuple[str, ...] = RUNNING


@dataclass(frozen=True)
class Plan:
    """All items of a run, of one process.

    Attributes:
        items: what takes memory.
        on_cpu: whether the device is the CPU, so that both places are one memory.
        facts: numbers beside the bytes, by name: parameters, sizes of batches.
        unknown: what takes memory that nobody can say, one line each.
        per_row: bytes of a row of the training pass and of the drawing pass, by phase.
        checkpointed: bytes of the training pass with the other choice of gradient checkpointing.
    """

    items: tuple[Item, ...]
    on_cpu: bool
    facts: dict[str, Any] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()
    per_row: dict[str, float] = field(default_factory=dict)
    checkpointed: int | None = None

    def places(self) -> tuple[str, ...]:
        return (HOST,) if self.on_cpu else (DEVICE, HOST)

    def at(self, phase: str, place: str) -> int:
        """Bytes alive in a phase."""
        return sum(
            item.size
            for item in self.items
            if phase in item.phases and (self.on_cpu or item.place == place)
        )

    def peak(self, place: str) -> tuple[str, int]:
        """The phase that takes the most of a place, and how much."""
        sizes = {phase: self.at(phase, place) for phase in PHASES}
        worst = max(sizes, key=lambda phase: sizes[phase])
        return worst, sizes[worst]

    def without(self, names: Collection[str]) -> Plan:
        """The same without some items."""
        return replace(self, items=tuple(i for i in self.items if i.name not in names))

    def resized(self, name: str, size: int) -> Plan:
        """The same with another size of one item."""
        items = (replace(i, size=size) if i.name == name else i for i in self.items)
        return replace(self, items=tuple(items))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "items": [
                {
                    "name": i.name,
                    "group": i.group,
                    "bytes": i.size,
                    "place": HOST if self.on_cpu else i.place,
                    "phases": list(i.phases),
                }
                for i in self.items
            ],
            "phases": {p: {place: self.at(p, place) for place in self.places()} for p in PHASES},
            "peak": {
                place: dict(zip(("phase", "bytes"), self.peak(place), strict=True))
                for place in self.places()
            },
            "facts": self.facts,
            "unknown": list(self.unknown),
        }
