"""Frozen weights that wait in host memory and change places with the trained ones when asked for.

Full fine-tuning compares with the network as it was before. A second network on the device would
cost as much memory as the first, so the old weights wait on the host, in the type of number they
were loaded in. While they are in place, the trained weights wait there, too, and come back bit for
bit. Where weights are split over processes, each holds its own parts.

Nothing that is to be back-propagated may have been computed when weights change places, since the
backward pass needs the weights of the forward pass. PyTorch raises where that happens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from diffusion.parts import here


class HeldWeights:
    """Copies of a network's weights as they are now.

    Args:
        parameters: by name; each is copied, in parts where it is split.
        dtypes: the types of number of the copies by name, which hold the weights exactly.
        on: "host", or "device" for beside the network.
    """

    def __init__(
        self,
        parameters: Mapping[str, torch.nn.Parameter],
        dtypes: Mapping[str, torch.dtype],
        on: str = "host",
    ) -> None:
        self._parameters = dict(parameters)
        self._on = on
        self._held = {n: self._like(p, dtypes[n]).copy_(here(p)) for n, p in parameters.items()}
        self._trained: dict[str, Tensor] = {}  # room for those that are out of place
        self.in_place = False
        """Whether the network has the held weights now."""

    def _like(self, parameter: Tensor, dtype: torch.dtype) -> Tensor:
        """An empty copy. On the host it is pinned for a GPU, so that copies need not wait."""
        part = here(parameter)
        if self._on == "device":
            return torch.empty_like(part, dtype=dtype)
        pinned = part.device.type == "cuda"
        return torch.empty(part.shape, dtype=dtype, device="cpu", pin_memory=pinned)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Within this context the held weights are in place; within another such, nothing moves."""
        if self.in_place:
            yield
            return
        if not self._trained:
            self._trained = {n: self._like(p, p.dtype) for n, p in self._parameters.items()}
        for name, parameter in self._parameters.items():
            self._trained[name].copy_(here(parameter), non_blocking=True)
        try:
            self._put(self._held)
            self.in_place = True
            yield
        finally:
            self._put(self._trained)
            self.in_place = False

    def _put(self, values: Mapping[str, Tensor]) -> None:
        # Copies to and from pinned memory follow one another on one stream of the device.
        for name, parameter in self._parameters.items():
            here(parameter).copy_(values[name], non_blocking=True)
