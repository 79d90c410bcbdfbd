"""The trained weights of a run: optimiser, averages, and the state that a resumed run needs.

The learning rate of update u (from 0) is the configured one times

    min(1, (u + 1) / W) f(p)     p = (u - W) / (H - W), at least 0 and at most 1
    f: 1 (constant), 1 - p (linear), (1 + cos(pi p)) / 2 (cosine)

with W --lr-warmup-steps and H all updates of the run, epochs times inner steps. It is a function of
the number of updates, so a resumed run needs no state of a schedule. Where --epochs is raised on
resuming, H is the new one: the rate goes on from where a run of that length would be.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from diffusion.config import FinetuneConfig
from diffusion.errors import InputError
from diffusion.optimisers import (
    KEYS,
    make_optimiser,
    optimiser_name,
    plain,
    restored,
    set_rate,
    shapes_of,
)
from diffusion.parts import added, clip, fill, here, in_parts, share, total_norm

Parameters = dict[str, torch.nn.Parameter]


def learning_rate(config: FinetuneConfig, update: int) -> float:
    """The learning rate of update number `update`, counted from 0, of a resolved configuration."""
    resolved: Any = config
    warmup, last = config.lr_warmup_steps, (resolved.epochs or 1) * (resolved.inner_steps or 1)
    rise = min(1.0, (update + 1) / warmup) if warmup else 1.0
    progress = min(max((update - warmup) / max(last - warmup, 1), 0.0), 1.0)
    fall = {
        "constant": 1.0,
        "linear": 1 - progress,
        "cosine": (1 + math.cos(math.pi * progress)) / 2,
    }[config.lr_schedule]
    return float(resolved.learning_rate * rise * fall)


class TrainedWeights:
    """Parameters by name, stepped by AdamW, with up to two averages of them.

    Args:
        parameters: what is trained; averages and moments are split as they are (`parts.py`).
        config: a resolved configuration.
        anchor_decay: update -> decay of the average that an objective asks for; None keeps none.
        require_finite: called with what a number is and the number, before it does harm.

    Attributes:
        average: the average of --ema, which is saved and evaluated. Empty without.
        anchor: the average that the objective asks for. Empty without.
        updates: steps taken.
        rate: learning rate of the last step; before the first, that of the first.
        kind: the optimiser's name, as of --optimizer.
    """

    def __init__(
        self,
        parameters: Parameters,
        config: FinetuneConfig,
        anchor_decay: Callable[[int], float] | None,
        require_finite: Callable[[str, float], None],
    ) -> None:
        self.parameters, self.config = parameters, config
        self.anchor_decay, self.require_finite = anchor_decay, require_finite
        resolved: Any = config
        values = list(parameters.values())
        self.kind = optimiser_name(config.optimizer, values[0].device if values else "cpu")
        self.optimiser = make_optimiser(
            self.kind, values, resolved.learning_rate, config.weight_decay
        )
        self.average = self._copies() if config.ema else {}
        self.anchor = self._copies() if anchor_decay is not None else {}
        self.updates = 0
        self.rate = learning_rate(config, 0)

    def _copies(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self.parameters.items()}

    def step(self) -> float:
        """Clip, step, average; returns the gradient norm before clipping."""
        grads = [p.grad for p in self.parameters.values() if p.grad is not None]
        total = total_norm(grads)
        clip(grads, self.config.max_grad_norm, total)
        norm = float(total)
        self.require_finite("the gradient", norm)
        self.rate = learning_rate(self.config, self.updates)
        set_rate(self.optimiser, self.rate)
        self.optimiser.step()
        current = [here(p) for p in self.parameters.values()]
        size = torch.stack(torch._foreach_norm(current)).sum()
        size = added(size, list(self.parameters.values()))
        self.require_finite("the norm of the weights", float(size))
        self.updates += 1
        if self.average:
            torch._foreach_lerp_(
                [here(t) for t in self.average.values()], current, 1 - self.config.ema
            )
        if self.anchor_decay is not None:
            decay = self.anchor_decay(self.updates)
            torch._foreach_lerp_([here(t) for t in self.anchor.values()], current, 1 - decay)
        return norm

    def averaged(self) -> SwapWeights:
        """Within this context the EMA weights are in place, where there are any."""
        return SwapWeights(self.parameters, self.average)

    def anchored(self) -> SwapWeights:
        """Within this context the objective's average is in place, where there is one."""
        return SwapWeights(self.parameters, self.anchor)

    # -- state ------------------------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        """Weights, averages and moments by name, split where the weights are."""
        tensors = {f"weights.{n}": p.detach() for n, p in self.parameters.items()}
        tensors |= {f"ema.{n}": t for n, t in self.average.items()}
        tensors |= {f"anchor.{n}": t for n, t in self.anchor.items()}
        for name, parameter in self.parameters.items():
            for key, value in plain(self.optimiser.state.get(parameter, {})).items():
                tensors[f"optimiser.{key}.{name}"] = value
        return tensors

    def load_state(self, tensors: dict[str, Tensor], updates: int) -> None:
        """Restore `state()`, gathered where it was split, whether or not the weights are split now.

        Raises InputError when it belongs to other weights.
        """
        self._check(tensors)
        for name, parameter in self.parameters.items():
            fill(parameter, tensors[f"weights.{name}"])
            if self.average:
                fill(self.average[name], tensors[f"ema.{name}"])
            if self.anchor:
                fill(self.anchor[name], tensors[f"anchor.{name}"])
            if state := _moments(tensors, name):
                self.optimiser.state[parameter] = restored(state, parameter, self.kind)
        self.updates = updates

    def part_of(self, name: str, values: Tensor) -> Tensor:
        """What this process needs of a tensor of a checkpoint: where weights are split, its part.

        Args:
            name: as in `state`, or of another copy of a weight; it ends with the weight's name.
            values: whole.
        """
        for start, _ in ((m.end(), m) for m in re.finditer(r"\.", name)):
            parameter = self.parameters.get(name[start:])
            if parameter is not None and parameter.shape == values.shape:
                return share(values, parameter) if in_parts(parameter) else values
        return values

    def _check(self, tensors: dict[str, Tensor]) -> None:
        mine = {f"weights.{n}": tuple(p.shape) for n, p in self.parameters.items()}
        theirs = {n: tuple(t.shape) for n, t in tensors.items() if n.startswith("weights.")}
        if mine != theirs:
            odd = sorted(set(mine.items()) ^ set(theirs.items()))[0][0].removeprefix("weights.")
            raise InputError(f'the checkpoint is of another model: "{odd}" does not match')
        for name, parameter in self.parameters.items():
            expected = {f"ema.{name}": parameter.shape} if self.average else {}
            if self.anchor:
                expected[f"anchor.{name}"] = parameter.shape
            shapes = shapes_of(_moments(tensors, name), parameter.shape)
            expected |= {f"optimiser.{key}.{name}": shape for key, shape in shapes.items()}
            for key, shape in expected.items():
                if key not in tensors or tensors[key].shape != shape:
                    raise InputError(f'the checkpoint has no "{key}" of shape {tuple(shape)}')


def digest(parameters: Parameters) -> str:
    """A few characters that differ where the bits of any weight do, whatever the device."""
    words = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    found = hashlib.sha256()
    values = dict(sorted(parameters.items()))
    bits = [here(p).view(words[p.element_size()]) for p in values.values()]
    sums = torch.stack([one.sum(dtype=torch.int64) for one in bits])
    for (name, parameter), number in zip(
        values.items(), added(sums, list(values.values())).tolist(), strict=True
    ):
        found.update(f"{name} {tuple(parameter.shape)} {number}".encode())
    return found.hexdigest()[:16]


def _moments(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The optimiser's state of one parameter."""
    places = {key: f"optimiser.{key}.{name}" for key in KEYS}
    return {key: tensors[place] for key, place in places.items() if place in tensors}


class SwapWeights:
    """Context: `values` stand in for parameters, which come back afterwards bit for bit.

    Whole values may stand in for split parameters.
    """

    def __init__(self, parameters: Parameters, values: dict[str, Tensor]) -> None:
        self.parameters, self.values = parameters, values

    def __enter__(self) -> None:
        self.kept = {n: here(self.parameters[n]).clone() for n in self.values}
        for name, value in self.values.items():
            fill(self.parameters[name], value)

    def __exit__(self, *exc: object) -> None:
        for name, value in self.kept.items():
            here(self.parameters[name]).copy_(value)
