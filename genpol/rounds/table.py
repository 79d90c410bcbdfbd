"""An episode as one row of a table: what an objective sees of a round.

    columns     decision 0, steps 0 .. T-1 | decision 1, steps 0 .. T-1 | ...
    row m       episode m; 0, with weight 0, past its last decision

Networks see decisions: column c of row m is step c mod T of the decision `place[m, c div T]`. So
`EpisodeScores` stands between the two-pass gradient, which asks for rows and columns, and the
scores of single chains (`diffusion.scores`), and nothing else knows of episodes.

Shape legend: M episodes, J decisions of the longest, N decisions of all, T steps of a chain (or
draws of the forward process), C numbers for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diffusion.fitting import Fitting
from diffusion.forward import Draws, ForwardProcess, draw_times
from diffusion.objective import Rollouts
from diffusion.ranks import Share
from diffusion.scores import ChainScores, ForwardScores
from diffusion.streams import DRAWS, generators


@dataclass(frozen=True)
class EpisodeScores:
    """Scores of decisions, by episode. `width` is T."""

    decisions: ChainScores | ForwardScores
    place: Tensor
    width: int
    share: Share | None = None
    """One process holds all episodes."""

    def score(self, rows: Tensor, columns: Tensor) -> Tensor:
        """(m,) or (m, C) numbers of m steps of episodes; differentiable."""
        return self.decisions.score(*self._of(rows, columns))

    def ahead(self, rows: Tensor, columns: Tensor, batch: Fitting) -> AbstractContextManager[None]:
        """Within this context these steps will be scored in their order."""
        return self.decisions.ahead(*self._of(rows, columns), batch)

    def at_rollout(self, rollouts: Rollouts) -> Tensor | None:
        """The objective's table before the first update, where it is known."""
        if isinstance(self.decisions, ForwardScores):
            known = self.decisions.rollout_table
        else:
            own = replace(rollouts, log_prob_old=self.decisions.chain.log_prob.cpu())
            known = self.decisions.at_rollout(own)
        return None if known is None else by_episode(known, self.place)

    def _of(self, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Decisions, and steps of them."""
        step = columns % self.width
        return self.place[rows, torch.div(columns, self.width, rounding_mode="floor")], step


def by_episode(values: Tensor, place: Tensor) -> Tensor:
    """Numbers of decisions (N, T, ...) as rows of episodes (M, J T, ...), 0 past the end."""
    table = values[place.clamp_min(0)]
    past = (place < 0).reshape(*place.shape, *[1] * (values.ndim - 1))
    return table.masked_fill(past, 0).flatten(1, 2)


def episode_weights(place: Tensor, step_weight: Tensor) -> Tensor:
    """(M, J T): each decision's steps weigh `step_weight` (T,); 0 past the end."""
    return by_episode(step_weight.expand(int(place.max()) + 1, -1), place)


def shared_draws(
    process: ForwardProcess,
    place: Tensor,
    group: Tensor,
    draws: int,
    shape: Sequence[int],
    seed: int,
    round_: int,
    device: torch.device | str = "cpu",
) -> Draws:
    """(t, eps) of every decision, for objectives on finished chunks: (N, S).

    Decision j of all episodes of a layout has the same draws. At j = 0 these episodes see the same
    observation, as the images of a prompt have the same prompt. Later they have come apart. Then
    the draws are common random numbers: each episode's own estimate stays as it is, without bias,
    and the difference of two episodes has less noise, as whatever (t, eps) adds to both drops out.

    Args:
        process: whose times.
        place: (M, J) decisions of each episode.
        group: (M,) layout of each episode, from 0 on.
        draws: S.
        shape: of one chunk.
        seed, round_: of the streams.
        device: of the noise.
    """
    layouts, longest = int(group.max()) + 1, place.shape[1]
    count = layouts * longest
    streams = generators(seed, DRAWS, round_, range(count * draws))
    each = [streams[i * draws : (i + 1) * draws] for i in range(count)]
    made = draw_times(process, shape, each, device)
    which = group[:, None] * longest + torch.arange(longest)
    going = place >= 0
    at = torch.empty(int(going.sum()), dtype=torch.long)
    at[place[going]] = which[going]
    return Draws(made.at[at], made.noise[at.to(made.noise.device)])
