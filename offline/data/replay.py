"""`Replay`: environment steps as they come, in a ring; chunk transitions drawn from them.

Parallel environments have a lane each, a ring of its own. Lanes are interleaved,

    slot = position * lanes + lane,

so that what is filled is a prefix of every array, and what follows slot s in its episode lies
in slot s + lanes. A slot holds an observation and what was done there. The observation after an
episode's last step has a slot too, in which nothing starts. Slots are overwritten in the order
they were written in, so a chunk's first slot is always the first to go, and the start with it.

Shape legend: B batch, H action chunk, A action dimension.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from offline.data.batch import Batch
from offline.data.replay_storage import OBS, SlotSet, allocate, replay_layout
from offline.data.returns import discounted_sum
from offline.data.tables import Table
from offline.errors import InputError, SpecError, did_you_mean
from offline.spec import ActionSpec


@dataclass(frozen=True)
class ReplaySnapshot:
    """What `Replay.snapshot` returns and `Replay.restore` takes."""

    settings: dict[str, Any]
    """Sizes and meanings that a replay must share to take this on."""
    lanes: list[list[int]]
    """Of each lane: where the newest observation is, and the steps of the episode in progress."""
    filled: int
    """Slots that may have been filled: the first ones."""
    drawable: int
    """Slots in which a transition starts that can be drawn."""
    arrays: dict[str, Tensor] | None
    """What is known of each slot that was ever filled, by the names of `replay_layout`; None where
    the rows of `Replay.tables` are saved apart."""
    starts: Tensor | None
    """Slots in which a transition starts that can be drawn, in the order that draws go by; None
    where the rows of `Replay.tables` are saved apart."""

    def tree(self) -> dict[str, Any]:
        """As tensors, numbers, lists and dicts with string keys."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def of(cls, tree: Mapping[str, Any]) -> ReplaySnapshot:
        """What `tree` returned; older runs have no `filled` and no `drawable`, but the rows."""
        arrays, starts = tree["arrays"], tree["starts"]
        return cls(
            settings=tree["settings"],
            lanes=tree["lanes"],
            filled=tree["filled"] if arrays is None else len(arrays["key"]),
            drawable=tree["drawable"] if starts is None else len(starts),
            arrays=arrays,
            starts=starts,
        )


class Replay:
    """The newest `capacity` environment steps, each equally likely to be drawn.

    Transitions: obs and the H actions of its chunk; R = sum_{i<n} gamma^i r_i; the observation n
    steps on, with discount gamma^n. Where the episode terminated within these n steps, R stops
    there, the discount is 0, the next observation is the last one, and missing actions repeat the
    last (they change nothing any more). Where it was truncated or given up within them, there is
    no transition.

    Args:
        capacity: environment steps (and final observations) kept, over all lanes.
        chunk: H.
        spec: of the actions, which are given and kept normalised by it.
        obs_shapes: of one observation, per key; (height, width, 3) is kept as uint8, all else as
            float32. Other keys are not kept.
        discount: gamma per environment step.
        n_step: n >= H; default H.
        lanes: environments side by side.
        folder: for what is larger than `memory_limit`; None keeps everything in memory.
        memory_limit: bytes.

    Raises:
        InputError: a capacity too small for one transition, n < H, or a disk too small.
    """

    def __init__(
        self,
        capacity: int,
        chunk: int,
        spec: ActionSpec,
        obs_shapes: Mapping[str, tuple[int, ...]],
        discount: float,
        n_step: int | None = None,
        lanes: int = 1,
        folder: Path | None = None,
        memory_limit: int = 2 << 30,
    ) -> None:
        self.chunk, self.discount, self.lanes = chunk, discount, lanes
        self.n_step = chunk if n_step is None else n_step
        if self.n_step < chunk:
            raise InputError(
                f"--n-step must be at least the action chunk ({chunk}), received {n_step}"
            )
        self._size = -(-capacity // lanes)  # of one lane
        if self._size <= self.n_step:
            raise InputError(
                f"--replay-capacity must be at least {lanes * self.n_step + 1} to hold a "
                f"transition of {self.n_step} steps in each of {lanes} environments, received "
                f"{capacity}"
            )
        self.slots = self._size * lanes
        """A transition's key is slot + slots * (how often the slot was overwritten)."""
        self.spec = spec.with_chunk(chunk)
        self.obs_shapes = {key: tuple(shape) for key, shape in obs_shapes.items()}

        self._arrays = allocate(
            replay_layout(self.slots, spec.dim, self.obs_shapes), folder, memory_limit
        )
        self.held = {name: torch.from_numpy(array) for name, array in self._arrays.items()}
        """What is known of each slot, by the names of `replay_layout`; to read, not to keep."""
        self._arrays["key"][:] = np.arange(self.slots) - self.slots  # negative: never written
        self._starts = SlotSet(self.slots)  # where transitions start that can be drawn
        # Of each slot, whether something was written there since it was last saved.
        self._observed, self._stepped = np.ones(self.slots, bool), np.ones(self.slots, bool)
        # Per lane: position of the newest observation or of the next episode's first, and the
        # steps of the episode in progress.
        self._head, self._steps = [0] * lanes, [0] * lanes
        self._ahead = torch.arange(chunk)
        self._powers = discount ** np.arange(self.n_step)

    def __len__(self) -> int:
        """How many transitions could be drawn now."""
        return len(self._starts)

    # -- adding

    def add(
        self,
        lane: int,
        obs: Mapping[str, np.ndarray],
        action: np.ndarray,
        reward: float,
        next_obs: Mapping[str, np.ndarray],
        terminated: bool,
        truncated: bool,
        success: bool | None = None,
    ) -> None:
        """Add one step of one environment; it follows the lane's previous one.

        Args:
            lane: which environment.
            obs: before the step, per key of `obs_shapes`; the previous step's `next_obs` unless an
                episode begins.
            action: (A,) normalised.
            reward: of the step, in the units to learn in.
            next_obs: after the step; of an episode's last step, its final observation.
            terminated: the episode truly ended.
            truncated: it was cut off, and its value may be bootstrapped.
            success: of the episode, at its end, where known.

        Raises:
            SpecError: the action or an observation has another shape, or one is missing.
            ValueError: `obs` is not what the previous step led to.
        """
        if np.shape(action) != (self.spec.dim,):
            raise SpecError(
                f"a step's action has shape ({self.spec.dim},), received {np.shape(action)}"
            )
        slot = self._head[lane] * self.lanes + lane
        if self._steps[lane]:
            self._require_continued(lane, slot, obs)
        else:
            self._open(slot, obs)
        self._arrays["action"][slot], self._arrays["reward"][slot] = action, reward
        self._arrays["outcome"][slot] = 1 + terminated
        self._stepped[slot] = True
        self._steps[lane] += 1
        self._head[lane] = (self._head[lane] + 1) % self._size
        self._open(self._head[lane] * self.lanes + lane, next_obs)

        steps, n = self._steps[lane], self.n_step
        if steps >= n:
            self._start(lane, n, 0.0 if terminated else self.discount**n)
        if terminated:
            for span in range(min(steps, n - 1), 0, -1):
                self._start(lane, span, 0.0)
        if terminated or truncated:
            self._finish(lane, terminated, success)

    def cut(self, lane: int) -> None:
        """Give up the lane's episode, as if truncated: what comes next begins another."""
        if self._steps[lane]:
            self._finish(lane, False, None)

    def _open(self, slot: int, obs: Mapping[str, np.ndarray]) -> None:
        """Write an observation into the slot, forgetting what was there."""
        if slot in self._starts:
            self._starts.remove(slot)
        for key, shape in self.obs_shapes.items():
            if key not in obs:
                raise SpecError(
                    f'a step has no observation "{key}".{did_you_mean(key, sorted(obs))}'
                )
            if np.shape(obs[key]) != shape:
                raise SpecError(
                    f'the observation "{key}" has shape {np.shape(obs[key])} in this environment, '
                    f"the replay was made for {shape}"
                )
            self._arrays[OBS + key][slot] = obs[key]
        self._arrays["key"][slot] += self.slots
        self._arrays["outcome"][slot] = 0
        self._arrays["mc_return"][slot] = self._arrays["success"][slot] = np.nan
        self._observed[slot] = self._stepped[slot] = True

    def _require_continued(self, lane: int, slot: int, obs: Mapping[str, np.ndarray]) -> None:
        for key in self.obs_shapes:
            held = self._arrays[OBS + key][slot]
            if not np.array_equal(held, np.asarray(obs[key], held.dtype), equal_nan=True):
                raise ValueError(
                    f'lane {lane}: "{key}" is not what the previous step led to: did an episode '
                    "end without terminated or truncated? cut() gives it up"
                )

    def _start(self, lane: int, span: int, discount: float) -> None:
        """Make drawable the transition of the `span` steps before the newest observation."""
        slots = self._last(lane, span)
        slot = int(slots[0])
        rewards = self._arrays["reward"][slots].astype(np.float64)
        self._arrays["chunk_reward"][slot] = rewards @ self._powers[:span]
        self._arrays["discount"][slot] = discount
        self._arrays["span"][slot] = span
        self._stepped[slot] = True
        self._starts.add(slot)

    def _finish(self, lane: int, terminated: bool, success: bool | None) -> None:
        """Tell the episode's steps how it ended; the next one begins after its final slot."""
        steps = min(self._steps[lane], self._size - 1)  # its beginning may be overwritten
        slots = self._last(lane, steps)
        if terminated:
            rewards = self._arrays["reward"][slots]
            self._arrays["mc_return"][slots] = discounted_sum(rewards, self.discount)
        if success is not None:
            self._arrays["success"][slots] = float(success)
        self._stepped[slots] = True
        self._head[lane] = (self._head[lane] + 1) % self._size
        self._steps[lane] = 0

    def _last(self, lane: int, count: int) -> np.ndarray:
        """The slots of the lane before the newest observation's, in order."""
        positions = np.arange(self._head[lane] - count, self._head[lane]) % self._size
        return positions * self.lanes + lane

    # -- drawing

    def sample(self, batch_size: int, generator: Generator | None = None) -> Batch:
        """Draw transitions uniformly with replacement.

        `mc_return` is the discounted sum to the episode's end where it has terminated, else NaN;
        `success` is NaN until the episode has ended.

        Raises:
            InputError: nothing can be drawn yet.
        """
        if not self._starts:
            raise InputError(
                f"the replay holds no transition of {self.n_step} steps yet: are all episodes "
                "shorter than --action-chunk or --n-step?"
            )
        return self._take(self._starts.draw(batch_size, generator))

    def recent(self, count: int) -> Batch:
        """The newest transitions of terminated episodes, the newest first; `count` or fewer."""
        starts = self._starts.members()
        starts = starts[self.held["mc_return"][starts].isfinite()]
        newest = self.held["key"][starts].topk(min(count, len(starts))).indices
        return self._take(starts[newest])

    def _take(self, slot: Tensor) -> Batch:
        """The transitions that start in these slots (B,)."""
        held, span = self.held, self.held["span"].index_select(0, slot)
        steps = torch.minimum(self._ahead, span[:, None] - 1)  # (B, H)
        following = (slot + span * self.lanes) % self.slots
        return Batch(
            obs={key: held[OBS + key].index_select(0, slot) for key in self.obs_shapes},
            act=held["action"][(slot[:, None] + steps * self.lanes) % self.slots],
            reward=held["chunk_reward"].index_select(0, slot),
            next_obs={key: held[OBS + key].index_select(0, following) for key in self.obs_shapes},
            discount=held["discount"].index_select(0, slot),
            mc_return=held["mc_return"].index_select(0, slot),
            success=held["success"].index_select(0, slot),
            key=held["key"].index_select(0, slot),
        )

    # -- going on later

    def tables(self) -> dict[str, Table]:
        """All that is held, by rows; for saving what has changed, and for reading it back.

        observations: written once in each round of the ring, and large; steps: the rest of a slot,
        which is known bit by bit to the end of the episode; starts: the order that draws go by.
        """
        observed = {name: a for name, a in self._arrays.items() if name.startswith(OBS)}
        stepped = {name: a for name, a in self._arrays.items() if name not in observed}
        filled = self._filled()
        return {
            "observations": Table(observed, self._observed, filled),
            "steps": Table(stepped, self._stepped, filled),
            "starts": self._starts.table(),
        }

    def snapshot(self, rows: bool = True) -> ReplaySnapshot:
        """Everything held. The tensors are views: write them, or copy them, before adding.

        Args:
            rows: False leaves out the rows of `tables`, for whoever saves those apart.
        """
        filled = self._filled()
        return ReplaySnapshot(
            settings=self._settings(),
            lanes=[list(self._head), list(self._steps)],
            filled=filled,
            drawable=len(self._starts),
            arrays={name: tensor[:filled] for name, tensor in self.held.items()} if rows else None,
            starts=self._starts.members() if rows else None,
        )

    def restore(self, saved: ReplaySnapshot) -> None:
        """Take on what `snapshot` returned; drawing and adding then go on bit for bit.

        Where it has no rows, those of `tables` have been put back before.

        Raises:
            InputError: it is the state of a replay with other settings, or of none.
        """
        for name, here in self._settings().items():
            if (there := saved.settings.get(name)) != here:
                raise InputError(
                    f"the replay was saved with {name} {there}, this one has {here}: resume with "
                    "the settings of the run that saved it"
                )
        if saved.arrays is not None and saved.starts is not None:
            for name, tensor in saved.arrays.items():
                self.held[name][: len(tensor)] = tensor
            self._observed.fill(True)
            self._stepped.fill(True)
            self._starts.replace(saved.starts)
        else:
            self._starts.take_on(saved.drawable)
        self._arrays["key"][saved.filled :] = np.arange(saved.filled, self.slots) - self.slots
        self._head, self._steps = (list(numbers) for numbers in saved.lanes)
        self._check()

    def _filled(self) -> int:
        written = np.flatnonzero(self._arrays["key"] >= 0)
        return int(written[-1]) + 1 if len(written) else 0

    def _check(self) -> None:
        """Check that what was put back can be drawn from and added to.

        Raises:
            ValueError: it cannot.
        """
        heads, steps = self._head, self._steps
        if len(heads) != self.lanes or len(steps) != self.lanes:
            raise ValueError(f"{len(heads)} lanes, expected {self.lanes}")
        if not all(0 <= head < self._size for head in heads) or min(steps) < 0:
            raise ValueError("a lane that stands outside the replay")
        starts = self._starts.members()
        key, span = self.held["key"][starts], self.held["span"][starts]
        if (key < 0).any() or (key % self.slots != starts).any():
            raise ValueError("a transition that starts where nothing was written")
        if len(span) and not 1 <= int(span.min()) <= int(span.max()) <= self.n_step:
            raise ValueError(f"a transition of 0 or more than {self.n_step} steps")

    def _settings(self) -> dict[str, Any]:
        return {
            "slots": self.slots,
            "lanes": self.lanes,
            "action_chunk": self.chunk,
            "n_step": self.n_step,
            "discount": self.discount,
            "action_dim": self.spec.dim,
            "observations": {key: list(s) for key, s in sorted(self.obs_shapes.items())},
        }
