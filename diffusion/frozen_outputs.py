"""What networks say that are not trained, for many micro-batches under one switch of weights.

Some objectives compare the trained network's output with that of the reference, or of an average of
the weights, at every pair of a row and a column that they score. To put other weights in place
takes longer than a small pass: all LoRA layers are switched, or all weights copied. So the outputs
of the next `AHEAD` pairs are made together, in the same micro-batches that will ask for them.

They are the same numbers. In memory are those of `AHEAD` pairs. Where several processes score pairs
of their own, all of them switch and call the network at the same places of their walks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor

from diffusion.fitting import Fitting

AHEAD = 256  # pairs; 67 MB of SDXL's outputs at 1,024 pixels


class FrozenOutputs:
    """Outputs (m, ...) for pairs of rows (m,) and columns (m,); no gradient.

    Args:
        make: the outputs of some pairs, once the weights are in place.
        weights: the context in which they are.
    """

    def __init__(
        self,
        make: Callable[[Tensor, Tensor], Tensor],
        weights: Callable[[], AbstractContextManager[object]],
    ) -> None:
        self.make, self.weights = make, weights
        self._forget()

    def _forget(self) -> None:
        self._rows = self._columns = torch.zeros(0, dtype=torch.long)  # pairs that are coming
        self._batch = Fitting(1)
        self._made: dict[int, Tensor] = {}  # by the place of a micro-batch's first pair
        self._last = self._next = 0  # places of the last micro-batch and of the next

    @contextmanager
    def coming(self, rows: Tensor, columns: Tensor, batch: Fitting) -> Iterator[None]:
        """Within this context these pairs (M,) will be asked for in their order, `batch.size` at a
        time, and the frozen weights stay what they are.

        A process that has fewer pairs than others pads them to as many. Of a micro-batch that is
        padding alone it asks for one pair.
        """
        self._rows, self._columns, self._batch = rows, columns, batch
        try:
            yield
        finally:
            self._forget()

    @torch.no_grad()
    def __call__(self, rows: Tensor, columns: Tensor) -> Tensor:
        place = self._place(rows, columns)
        if place is None:
            with self.weights():
                return self.make(rows, columns)
        if place not in self._made or len(self._made[place]) < len(rows):
            self._make(place)
        self._last, self._next = place, place + self._batch.size
        return self._made[place][: len(rows)]

    def _make(self, place: int) -> None:
        size = self._batch.size
        self._made = {}
        with self.weights():
            for first in range(place, place + max(1, AHEAD // size) * size, size):
                if first < len(self._rows):
                    some = slice(first, first + size)
                    self._made[first] = self.make(self._rows[some], self._columns[some])

    def _place(self, rows: Tensor, columns: Tensor) -> int | None:
        """Where these pairs stand among those that are coming: next, or again after memory ran out
        in a micro-batch, or at the start of a walk that begins again."""
        for place in (self._next, self._last, 0):
            some = slice(place, place + len(rows))
            same = torch.equal(self._rows[some], rows)
            if same and torch.equal(self._columns[some], columns):
                return place
        return None
