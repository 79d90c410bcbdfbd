"""The processes of a run, and which of them holds which rows.

A run may consist of several processes ("ranks"), each with a copy of the policy. M rows (images)
are dealt out to them as a `Share`. Every rank draws and scores the rows that it holds; tables of
numbers, such as log-probs (M, T) and rewards (M,), are gathered, so that every rank computes the
same loss of all rows. Each then back-propagates its own rows, and the gradients are summed.

`Ranks` is a run of one process, in which nothing is sent and no process group is needed.
`processes.Processes` is one of several. Code that is written for the second needs no case for the
first.

Every rank holds equally many rows: where M cannot be divided, some hold a row twice. A network that
is itself spread over the ranks needs every rank to call it equally often, which `Share.passes` sees
to for any set of rows. What padding computes counts for nothing.

Shapes: M rows, H rows held by each rank, R ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")


class Ranks:
    """One process. The methods say what they do in a run of several."""

    count = 1
    """R."""
    index = 0
    """Of this process, from 0."""
    local: int | None = None
    """Of this process on its machine, in a run of several."""

    @property
    def main(self) -> bool:
        """Whether this is the process that prints, logs and writes."""
        return self.index == 0

    def share(self, rows: int, each: int = 1) -> Share:
        """Deal out `rows` rows, in order and evenly; `each` neighbours stay together."""
        units = rows // each
        start = [units * r // self.count for r in range(self.count + 1)]
        most = max(b - a for a, b in zip(start, start[1:], strict=False))
        owner = torch.zeros(units, dtype=torch.long)
        for r in range(self.count):
            owner[start[r] : start[r + 1]] = r
        place = torch.arange(units) - torch.tensor(start)[owner]
        first, last = start[self.index], max(start[self.index + 1], 1)
        held = torch.arange(first, first + most).clamp_max(last - 1)
        if each > 1:
            inside = torch.arange(each)
            owner = owner.repeat_interleave(each)
            place = (place[:, None] * each + inside).flatten()
            held = (held[:, None] * each + inside).flatten()
        return Share(self, owner, place, held)

    def all_gather(self, values: Tensor) -> Tensor:
        """(R, ...) what every rank passes, of one shape and type, on the values' device."""
        return values[None]

    def all_gather_objects(self, value: Result) -> list[Result]:
        """What every rank passes: R objects."""
        return [value]

    def exchange(self, values: Tensor, send: Sequence[int], receive: Sequence[int]) -> Tensor:
        """Rows for rank r are the next `send[r]` of `values`; of rank r come `receive[r]` rows.

        Returns:
            (sum(receive), ...) by sender, on the CPU.
        """
        return values

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace every `.grad` by its sum over the ranks, which have the same ones."""

    def broadcast(self, value: Result) -> Result:
        """The object that the main rank passes; what others pass is not looked at."""
        return value

    def broadcast_tensors(
        self,
        tensors: Mapping[str, Tensor],
        take: Callable[[str, Tensor], Tensor] = lambda name, values: values,
    ) -> dict[str, Tensor]:
        """The tensors that the main rank passes, on the CPU; others pass anything. Each rank keeps
        what `take` makes of a name and a tensor, one after the other."""
        return {name: take(name, values) for name, values in tensors.items()}

    def by_main(self, work: Callable[[], Result]) -> Result:
        """What `work` returns in the main rank, which alone calls it; all raise what it raises."""
        return work()

    def together(self, work: Callable[[], Result]) -> Result:
        """What `work` returns in this rank. Where it raises InputError in any, all raise that."""
        return work()

    def any(self, flag: bool) -> bool:
        """Whether any rank passes True."""
        return flag

    def most(self, number: float) -> float:
        """The largest number that a rank passes."""
        return number

    def require_alike(self, what: str, remedy: str, facts: Mapping[str, object]) -> None:
        """Raise InputError on every rank where `facts` differ between ranks; names the first."""


@dataclass(frozen=True)
class Pass:
    """A few items of a share for one call of a network.

    Attributes:
        items: (n,) which items of the share.
        held: (n,) which rows of those that this rank holds.
        padding: whether the call is for the sake of other ranks alone: it counts for nothing.
    """

    items: Tensor
    held: Tensor
    padding: bool = False


@dataclass(frozen=True)
class Share:
    """Which rank holds which of M items.

    Attributes:
        ranks: whose rows they are.
        owner: (M,) rank that holds an item.
        place: (M,) where the item is among what its owner holds.
        held: (H,) rows that this rank holds, by their number when they were dealt out. A row
            that pads is a repetition.
    """

    ranks: Ranks
    owner: Tensor
    place: Tensor
    held: Tensor

    def __len__(self) -> int:
        """M."""
        return len(self.owner)

    @cached_property
    def mine(self) -> Tensor:
        """(m,) items that this rank owns, in order."""
        return (self.owner == self.ranks.index).nonzero().flatten()

    def items(self, rows: Tensor) -> Share:
        """A share of other items: item i is one of row `rows[i]`, which stays where it is."""
        return Share(self.ranks, self.owner[rows], self.place[rows], self.held)

    def kept(self, rows: Tensor) -> tuple[Share, Tensor]:
        """A share in which ranks hold only `rows` (ascending), and which (H',) of the rows that
        this rank holds stay."""
        owner, place = self.owner[rows], torch.zeros_like(rows)
        counts = torch.bincount(owner, minlength=self.ranks.count)
        for r in range(self.ranks.count):
            mine = owner == r
            place[mine] = torch.arange(int(mine.sum()))
        own = self.place[rows][owner == self.ranks.index]
        padding = int(counts.max()) - len(own)
        stay = torch.cat([own, torch.zeros(padding, dtype=torch.long)])
        return Share(self.ranks, owner, place, self.held[stay]), stay

    def gather(self, values: Tensor) -> Tensor:
        """(M, ...) of all items, from what every rank has of the rows that it holds, (H, ...)."""
        everyone = self.ranks.all_gather(values)
        return everyone[self.owner.to(values.device), self.place.to(values.device)]

    def spread(self, values: Tensor) -> Tensor:
        """(H, ...) of the held rows, from what every rank knows of the rows dealt out (M, ...)."""
        return values[self.held.to(values.device)]

    @property
    def most(self) -> int:
        """Items of the rank that has the most; the same on every rank."""
        counts = torch.bincount(self.owner, minlength=self.ranks.count)
        return int(counts.max()) if len(self) else 0

    def part(self, first: int, last: int) -> Pass:
        """This rank's items [first, last)."""
        mine = self.mine[first:last]
        if len(mine):
            return Pass(mine, self.place[mine])
        nothing = torch.zeros(1, dtype=torch.long)
        return Pass(nothing, nothing, padding=True)

    def passes(self, size: int) -> Iterator[Pass]:
        """This rank's items, `size` at a time, in as many passes on every rank."""
        for first in range(0, self.most, size):
            yield self.part(first, first + size)

    def own(self, values: Tensor) -> Tensor:
        """(m, ...) of the items that this rank owns, of the held rows (H, ...)."""
        place = self.place[self.mine]
        if torch.equal(place, torch.arange(len(values))):
            return values
        return values[place.to(values.device)]

    def first(self, values: Tensor, count: int) -> Tensor:
        """The first `count` items, (count, ...), in the main rank; none, (0, ...), in others. One
        process has all of them.

        Args:
            values: (H, ...) of the held rows, on the CPU.
            count: items to send.
        """
        if self.ranks.count == 1:
            return self.own(values)
        to = torch.full((len(self),), -1)
        to[:count] = 0
        return self.send(values, to)

    def send(self, values: Tensor, to: Tensor) -> Tensor:
        """(k, ...) the items that go to this rank, in order, where item i goes to rank `to[i]`.

        Args:
            values: (H, ...) of the held rows, on the CPU.
            to: (M,). An item for rank -1 goes nowhere.
        """
        ranks, mine = self.ranks, self.mine
        mine = mine[to[mine] >= 0]
        order = mine[to[mine].argsort(stable=True)]
        sizes = range(ranks.count)
        coming = to == ranks.index
        came = ranks.exchange(
            values[self.place[order]],
            [int((to[mine] == r).sum()) for r in sizes],
            [int((self.owner[coming] == r).sum()) for r in sizes],
        )
        # By sender, and then by item.
        items = coming.nonzero().flatten()
        sent = items[self.owner[items].argsort(stable=True)]
        return came[sent.argsort()]


def whole(rows: int) -> Share:
    """All of `rows` rows, held by the one process."""
    return Ranks().share(rows)
