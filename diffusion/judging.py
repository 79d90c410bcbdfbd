"""Asks rewards about images that several processes hold.

Rewards run in the processes that --reward-ranks names. What sees the images of a prompt together
gets them together, whoever drew them: a reward that is called once for each prompt, and a sum of
rewards that are normalised within a prompt's images. Others get images singly, from the process
that drew them where that one has rewards. All processes get all results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.errors import InputError, shown
from diffusion.ranks import Ranks, Share
from diffusion.rewards.reward import Judgement, Reward, RewardFn, judge


def parse_ranks(text: str | None, count: int) -> tuple[int, ...]:
    """The processes that --reward-ranks names, ascending; all of `count` where it is None.

    Raises:
        InputError: not numbers of processes that there are, separated by commas.
    """
    if text is None:
        return tuple(range(count))
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdigit() and len(word) < 10 for word in words):
        raise InputError(
            "--reward-ranks: expected numbers of processes, separated by commas, such as 0,3; "
            f'received "{shown(text)}"'
        )
    found = sorted({int(word) for word in words})
    if found[-1] >= count:
        last = f"the last of {count} processes is {count - 1}" if count > 1 else "there is one, 0"
        raise InputError(f"--reward-ranks names process {found[-1]}, and {last}")
    return tuple(found)


def not_here(images: Tensor, prompts: list[str]) -> Tensor:
    """Stands for every reward in a process that has none. It is never called."""
    raise AssertionError("this process has no rewards")


@dataclass(frozen=True)
class Judges:
    """The processes that have rewards.

    Attributes:
        ranks: all processes.
        at: those that have rewards, ascending.
    """

    ranks: Ranks
    at: tuple[int, ...]

    def whole(self, rewards: Mapping[str, Reward]) -> dict[str, bool]:
        """By name, whether a reward sees the images of a prompt together: as the processes say
        that have rewards. All call this at once."""
        own = {name: reward.whole for name, reward in rewards.items()}
        return self.ranks.all_gather_objects(own)[self.at[0]]

    def __call__(
        self,
        reward: RewardFn,
        images: Tensor,
        share: Share,
        prompts: list[str],
        group: Tensor,
        *,
        whole: bool,
    ) -> Judgement:
        """What a reward says of M images; on every process the same.

        Args:
            reward: as this process has it; one without rewards does not ask it.
            images: (H, 3, H, W) those that this process holds.
            share: who holds which.
            prompts, group: M each; the images of a group stand next to one another.
            whole: whether a group's images are judged together.

        Raises:
            RewardError: of whichever process, on all of them.
        """
        to = self._where(share, group, whole)
        mine = (to == self.ranks.index).nonzero().flatten()
        stays = torch.equal(to, share.owner)
        sent = share.own(images) if stays else share.send(images, to)

        def ask() -> Judgement | None:
            asked = [prompts[i] for i in mine.tolist()]
            return judge(reward, sent, asked, group[mine]) if len(mine) else None

        found = self.ranks.all_gather_objects((mine, self.ranks.together(ask)))
        return _joined([(rows, said) for rows, said in found if said is not None], len(prompts))

    def _where(self, share: Share, group: Tensor, whole: bool) -> Tensor:
        """(M,) the process that judges each image."""
        at = torch.tensor(self.at)
        if not whole and len(at) == self.ranks.count:
            return share.owner
        units = group.unique_consecutive(return_inverse=True)[1] if whole else None
        if units is None:
            units = torch.arange(len(group))
        count = int(units.max()) + 1 if len(units) else 0
        # The same split as that of rows among processes.
        starts = torch.tensor([count * i // len(at) for i in range(1, len(at) + 1)])
        return at[torch.searchsorted(starts, units, right=True)]


def _joined(found: Sequence[tuple[Tensor, Judgement]], count: int) -> Judgement:
    """One judgement of `count` images from those of some rows each."""
    first = found[0][1]
    total, raw = first.total.new_empty(count), first.raw.new_empty(count)
    parts: dict[str, Tensor] = {}
    for rows, said in found:
        total[rows], raw[rows] = said.total, said.raw
        for name, values in said.parts.items():
            if name not in parts:
                parts[name] = values.new_full((count,), torch.nan)
            parts[name][rows] = values
    return Judgement(total, raw, parts)
