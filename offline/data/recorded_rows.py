"""Transitions of an episode that was recorded where a policy was asked now and then.

Only some observations were made (`Episode.observed`): those at which the policy was asked. So a
transition starts where one was made, and its target bootstraps at the first one that was made n or
more steps later:

    R = sum_{i<m} gamma^i r_i,   discount = gamma^m,   m = min {m >= n : observed at t + m}

With a robot that executes H actions of each answer and a critic of the same H, m is H, and nothing
differs from other data. Where the episode truly ends before, m ends with it and the discount is 0.

What a human did after the chunk is not credited to it: a transition whose m steps go on under
other hands than they began in is left out, and steps of the policy before a takeover have no known
return and no known outcome (NaN).

Where the policy's proposals were recorded, too, `Rows.proposed` has those of each decision, so that
a target chooses among what the policy really proposed at the next state.

Shape legend: T steps, N transitions, D decisions, K proposals, H action chunk, A action dimension.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from offline.data.batch import Rows
from offline.data.episodes import Episode, Episodes
from offline.data.returns import ChunkRewards, RewardKind, step_rewards
from offline.errors import InputError
from offline.spec import ActionSpec

LEARNT = "learnt_from"
"""In a value's meta: ids of the recorded episodes that it has learnt from."""


def recorded_split(episodes: Episodes) -> tuple[np.ndarray, np.ndarray]:
    """The episodes of a recording to train on and to hold out: every tenth, by its own number.

    A recording grows. The episodes held out stay held out, so that an older and a newer value can
    be compared on them. Of fewer than ten episodes all are in both.
    """
    places = np.asarray(getattr(episodes, "rows", np.arange(len(episodes))), np.int64)
    out = places % 10 == 9
    if not out.any() or out.all():
        return np.arange(len(places)), np.arange(len(places))
    return np.flatnonzero(~out), np.flatnonzero(out)


def own_split(episodes: Episodes) -> tuple[np.ndarray, np.ndarray]:
    """`recorded_split` of a recording; all of another dataset's "train", and nothing held out."""
    if hasattr(episodes, "decisions"):
        return recorded_split(episodes)
    everything = np.asarray(episodes.splits.get("train", np.arange(len(episodes))), np.int64)
    return everything, np.zeros(0, np.int64)


def recorded_rows(
    episode: Episode,
    spec: ActionSpec,
    obs_keys: Sequence[str],
    *,
    n_step: int,
    discount: float,
    reward: RewardKind,
    reward_scale: float = 1.0,
    language: Tensor | None = None,
) -> Rows:
    """The transitions of an episode; see the top of the file.

    Args:
        episode: of T steps; `meta["intervention"]` may say (T,) which a human executed.
        spec: of the chunks.
        obs_keys: observations to keep.
        n_step: n, at least H.
        discount: gamma per environment step.
        reward: see `offline.data.returns`.
        reward_scale: multiplies rewards and returns.
        language: (D,) its instruction, embedded.
    """
    total = len(episode)
    steps = step_rewards(episode, discount, reward)
    made = np.ones(total + 1, bool) if episode.observed is None else episode.observed
    starts = np.flatnonzero(made[:total])
    after = _next_made(made)  # (T + 2,): the first observation at or after each step; T + 1: none
    ends = after[np.minimum(starts + n_step, total + 1)]
    if steps.ended:
        terminal = ends >= total
        ends = np.minimum(ends, total)
    else:
        terminal = np.zeros(len(starts), bool)
    by_hand = interventions(episode)
    kept = (ends <= total) & ~_changes_hands(starts, ends, spec.chunk, by_hand)
    starts, ends, terminal = starts[kept], ends[kept], terminal[kept]
    powers, paid = discount ** np.arange(total), steps.rewards.astype(np.float64)
    rewards = np.array(
        [paid[s:e] @ powers[: e - s] for s, e in zip(starts, ends, strict=True)], np.float64
    )
    returns = steps.returns[starts].astype(np.float64)
    taken_over = _taken_over_later(by_hand)[starts]
    returns[taken_over] = np.nan
    rows = Rows.of(
        episode,
        ChunkRewards(
            np.asarray(reward_scale * rewards, np.float32),
            np.where(terminal, 0.0, discount ** (ends - starts)).astype(np.float32),
            np.asarray(reward_scale * returns, np.float32),
        ),
        spec,
        obs_keys,
        language,
    )
    rows.start = torch.from_numpy(starts)
    rows.first = rows.start.clone()
    rows.following = torch.from_numpy(ends)
    rows.success = torch.where(torch.from_numpy(taken_over), torch.nan, rows.success)
    return rows


def with_proposals(
    rows: Rows,
    frames: np.ndarray,
    candidates: Sequence[np.ndarray],
    spec: ActionSpec,
    count: int,
    *,
    ended: bool,
) -> Rows:
    """The transitions with what the policy proposed where they bootstrap.

    Where it was not asked, as in a demonstration, the data's own next chunk is the one proposal.
    Transitions that have neither are left out: those at the end of what was cut off.

    Args:
        rows: of one episode of T steps.
        frames: (D,) the step of each decision.
        candidates: D arrays (K, H', A) with H' >= H, in the environment's units; the policy's own
            proposals come first.
        spec: of the chunks.
        count: proposals for each. Of more the first are taken, fewer are repeated.
        ended: whether the episode truly ended.

    Raises:
        InputError: the proposals are shorter than the critic's chunks.
    """
    at: dict[int, int] = {}
    table: list[Tensor] = []
    for frame, proposals in zip(frames.tolist(), candidates, strict=True):
        if len(proposals):
            if proposals.shape[1] < spec.chunk:
                raise InputError(
                    f"the recorded proposals have H={proposals.shape[1]} actions, the critic "
                    f"H={spec.chunk}: pass --action-chunk {proposals.shape[1]} or less"
                )
            at[int(frame)] = len(table)
            raw = np.asarray(proposals[np.arange(count) % len(proposals), : spec.chunk], np.float32)
            table.append(spec.normalize(torch.from_numpy(spec.clip(raw))))
    rows.proposed = torch.stack(table) if table else torch.zeros(0, count, spec.chunk, spec.dim)
    following = rows.following.tolist()
    rows.proposal = torch.tensor([at.get(step, -1) for step in following], dtype=torch.long)
    if ended:
        return rows
    own = rows.following + spec.chunk <= rows.last + 1
    return rows.only((rows.proposal >= 0) | own | (rows.discount == 0))


def interventions(episode: Episode) -> np.ndarray:
    """(T,) bool: which steps a human executed."""
    said = np.asarray(episode.meta.get("intervention", ()), bool)[: len(episode)]
    return np.concatenate([said, np.zeros(len(episode) - len(said), bool)])


def _next_made(made: np.ndarray) -> np.ndarray:
    out = np.full(len(made) + 1, len(made), np.int64)
    for step in range(len(made) - 1, -1, -1):
        out[step] = step if made[step] else out[step + 1]
    return out


def _changes_hands(
    starts: np.ndarray, ends: np.ndarray, chunk: int, by_hand: np.ndarray
) -> np.ndarray:
    """(N,) whether a human acts after the chunk of a transition that the policy began."""
    hands = np.concatenate([[0], np.cumsum(by_hand)])
    stop = np.minimum(ends, len(by_hand))
    beyond = np.minimum(starts + chunk, stop)
    return ~by_hand[starts] & (hands[stop] > hands[beyond])


def _taken_over_later(by_hand: np.ndarray) -> np.ndarray:
    """(T,) whether a step is the policy's and a human acts at a later one."""
    later = np.cumsum(by_hand[::-1])[::-1] > 0
    return later & ~by_hand
