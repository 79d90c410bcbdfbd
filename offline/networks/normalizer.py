"""Observations to network inputs: concatenate the one-dimensional keys, each standardised.

    x = limit((obs - mean) / max(std, 0.01)),    limit(z) = z where |z| <= 10,
                                                            sign(z) (10 + log(1 + |z| - 10)) beyond

The floor keeps near-constant dimensions from being blown up, the limit what was never seen. The
limit goes on growing: with a clip all states beyond ten deviations would look alike, and a value's
gradient there would be exactly 0.

Statistics may be replaced while networks learn. Every network that the inputs reach first stays
the function that it is, wherever no limit is at work, as its first layer absorbs the change:

    x = r x' + d,    r = s' / s,  d = (m' - m) / s    =>    W x + b = (W r) x' + (b + W d)

Shape legend: D dimensions of x, the first of a network's F inputs; N units.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from offline.draws import moved
from offline.errors import SpecError
from offline.types import Obs

LANGUAGE = "language"
STD_FLOOR = 0.01
CLIP = 10.0

Shapes = Mapping[str, tuple[int, ...]]
ObsStats = Mapping[str, tuple[np.ndarray, np.ndarray]]  # key -> mean (D,), std (D,)


def limit(x: Tensor) -> Tensor:
    """x within +-CLIP; beyond, sign(x) (CLIP + log(1 + |x| - CLIP)). Smooth, and never flat."""
    within = x.clamp(-CLIP, CLIP)
    if x.device.type == "cpu" and torch.equal(within, x):
        return x  # the usual case, in a tenth of the time
    beyond = x - within
    return within + torch.copysign(beyond.abs().log1p(), beyond)


@dataclass(frozen=True)
class Change:
    """From inputs x' by new statistics to x by the old ones: x = ratio x' + shift."""

    ratio: Tensor
    """(D,) float64, on the CPU as not every device has that."""
    shift: Tensor
    """(D,) likewise."""

    @torch.no_grad()
    def absorb(self, weight: Tensor, bias: Tensor) -> None:
        """Have a first layer (N, F), (N,) compute of x' what it computed of x."""
        ours = weight[:, : len(self.ratio)].cpu().double()
        bias.add_((ours @ self.shift).to(bias))
        weight[:, : len(self.ratio)] = (ours * self.ratio).to(weight)


def low_dim_keys(obs_shapes: Shapes) -> list[str]:
    """The one-dimensional keys except "language", sorted: the order of the network's input."""
    return sorted(k for k, shape in obs_shapes.items() if len(shape) == 1 and k != LANGUAGE)


def image_keys(obs_shapes: Shapes) -> list[str]:
    """The keys of images (height, width, 3), sorted."""
    return sorted(k for k, shape in obs_shapes.items() if len(shape) == 3)


def check_obs(obs: Obs, obs_shapes: Shapes, *, who: str = "this model") -> None:
    """Check that `obs` has every key of `obs_shapes`, with a batch axis in front of its shape.

    Raises:
        SpecError: names the key, what was expected and what was received.
    """
    for key, shape in obs_shapes.items():
        if key not in obs:
            raise SpecError(
                f'{who} needs the observation "{key}" {_text(shape)}, received '
                f"{_keys(obs)}: did you train on another dataset?"
            )
        if tuple(obs[key].shape[1:]) != tuple(shape):
            raise SpecError(
                f'the observation "{key}" has shape {_text(obs[key].shape[1:])}, {who} was '
                f"trained with {_text(shape)}: did you train on another dataset?"
            )


class ObsNormalizer(nn.Module):
    """Obs -> (B, D) float32, the standardised one-dimensional keys in sorted order.

    The statistics are buffers, so they are saved and loaded with the weights. Before `fit` they
    are mean 0, std 1.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, obs_shapes: Shapes) -> None:
        super().__init__()
        self.keys = low_dim_keys(obs_shapes)
        self.shapes = {key: tuple(obs_shapes[key]) for key in self.keys}
        self.dim = sum(shape[0] for shape in self.shapes.values())
        self.register_buffer("mean", torch.zeros(self.dim))
        self.register_buffer("std", torch.ones(self.dim))

    @classmethod
    def from_shapes(cls, obs_shapes: Shapes) -> ObsNormalizer:
        """For observations of these shapes, to be `fit` or loaded."""
        return cls(obs_shapes)

    def fit(self, stats: ObsStats) -> ObsNormalizer:
        """Take on statistics, such as `Transitions.obs_stats`; returns itself.

        Raises:
            SpecError: a key's statistics are missing or of another size.
        """
        for key, shape in self.shapes.items():
            if key not in stats or np.shape(stats[key][0]) != shape:
                received = _text(np.shape(stats[key][0])) if key in stats else "none"
                raise SpecError(
                    f'statistics of the observation "{key}" should be {_text(shape)}, '
                    f"received {received}"
                )
        if self.keys:
            mean = np.concatenate([np.asarray(stats[k][0], np.float32) for k in self.keys])
            std = np.concatenate([np.asarray(stats[k][1], np.float32) for k in self.keys])
            with torch.no_grad():
                self.mean.copy_(torch.from_numpy(mean))
                self.std.copy_(torch.from_numpy(std).clamp(min=STD_FLOOR))
        return self

    def refit(self, stats: ObsStats) -> Change:
        """Take on other statistics; what first layers have to absorb then.

        Raises:
            SpecError: a key's statistics are missing or of another size.
        """
        mean, std = self.mean.cpu().double(), self.std.cpu().double()
        self.fit(stats)
        return Change(self.std.cpu() / std, (self.mean.cpu() - mean) / std)

    def forward(self, obs: Obs) -> Tensor:
        """(B, D).

        Raises:
            SpecError: a key is missing or has another shape.
        """
        check_obs(obs, self.shapes)
        if not self.keys:
            size = len(next(iter(obs.values())))
            return self.mean.new_zeros((size, 0))
        x = torch.cat(
            [moved(obs[key], self.mean.device).to(self.mean) for key in self.keys], dim=-1
        )
        return limit((x - self.mean) / self.std)


def _text(shape: tuple[int, ...] | torch.Size) -> str:
    return "(" + ", ".join(str(int(n)) for n in shape) + ("," if len(shape) == 1 else "") + ")"


def _keys(obs: Obs) -> str:
    return ", ".join(f'"{key}"' for key in sorted(obs)) or "no observations"
