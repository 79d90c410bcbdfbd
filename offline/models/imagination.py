"""`Imagination`: transitions that a world model predicts, as a source of batches.

    every `model_every` steps:  fit the model  ->  branch from real states  ->  ring of transitions

Branches are short rollouts of the present policy that begin in states of the real data (Janner et
al. 2019, "When to Trust Your Model", Algorithm 2). One decision of a branch is one transition: a
chunk of H actions, each a step of the model,

    R = sum_{i<H} gamma^i r_i,    discount = gamma^H,

and where the model predicts that step k terminates, R stops at r_k, the discount is 0 and the
branch ends.

Every branch of the newest trainings of the model is kept whole, and older ones are forgotten. MBPO
sizes its pool so, and resizes it as branches grow. A fixed capacity counts transitions instead.

Shape legend: N branches, D state dimensions, H action chunk, A action dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Generator, Tensor

from offline.data.batch import IMAGINED, Batch
from offline.data.mixture import Source
from offline.draws import moved
from offline.errors import InputError
from offline.models.world_model import StateLayout, WorldModel
from offline.models.world_model_config import WorldModelConfig
from offline.types import Policy, clips

Fit = Callable[[int], dict[str, float]]
"""Trains the world model at a step on all real data there is; numbers to log."""


class Stateful(Protocol):
    """Something that is resumed with the imagination: the model, its training, its data."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> Any: ...


@dataclass(frozen=True)
class ImaginedChunk:
    """What N chunks of actions lead to."""

    reward: Tensor
    """(N,) sum of gamma^i r_i, to the end of the chunk or the step that terminates."""
    next_state: Tensor
    """(N, D) after the chunk, or after the step that terminates."""
    discount: Tensor
    """(N,) gamma^H; 0 where a step terminates."""
    terminated: Tensor
    """(N,) bool, whether one does."""


@torch.no_grad()
def imagine_chunk(
    model: WorldModel, state: Tensor, act: Tensor, discount: float, generator: Generator | None
) -> ImaginedChunk:
    """What a world model says of chunks of actions.

    Args:
        model: predicts single steps.
        state: (N, D).
        act: (N, H, A), normalised; those after a termination do not matter.
        discount: gamma per environment step.
        generator: for a model that samples.
    """
    alive = torch.ones(len(state), dtype=torch.bool, device=state.device)
    reward = torch.zeros(len(state), device=state.device)
    for i in range(act.shape[1]):
        predicted = model.predict(state, act[:, i], generator)
        reward += torch.where(alive, discount**i * predicted.reward, 0.0)
        state = torch.where(alive[:, None], predicted.next_state, state)
        alive = alive & ~predicted.terminated
    discounts = torch.where(alive, discount ** act.shape[1], 0.0)
    return ImaginedChunk(reward, state, discounts, ~alive)


class Imagination:
    """A source of imagined transitions, which keeps itself up to date by `advance`.

    Args:
        model: predicts single steps.
        policy: acts in the branches. Rows it is asked for are unrelated states, so it must not
            remember its episode.
        real: where branches begin, in `obs` of what is drawn: the dataset and the replay, in the
            shares of the batches.
        config: how often, how many, how long.
        discount: gamma per environment step.
        fit: trains the model; None where there is nothing to train.
        seed: of all that is drawn here.
        parts: what is saved and resumed together with this, by name.
        rows_at_once: branches imagined at the same time, which bounds the memory taken.
        device: where the model predicts; what was imagined is kept on the CPU, as the replay is.
    """

    def __init__(
        self,
        model: WorldModel,
        policy: Policy,
        real: Source,
        config: WorldModelConfig,
        discount: float,
        *,
        fit: Fit | None = None,
        seed: int = 0,
        parts: Mapping[str, Stateful] | None = None,
        rows_at_once: int = 20_000,
        device: str = "cpu",
    ) -> None:
        self.model, self.policy, self.real = model, policy, real
        self.config, self.discount, self.fit = config, discount, fit
        self.parts, self.rows_at_once, self.device = dict(parts or {}), rows_at_once, device
        spec = policy.spec
        self._ring = ImaginedRing(config.imagined_capacity, model.layout, spec.chunk, spec.dim)
        self._kept: list[int] = []  # transitions of each training that is kept, the newest last
        self._generator = Generator().manual_seed(seed)
        self._due = 0  # the step from which on it is time to imagine again

    def __len__(self) -> int:
        """How many transitions could be drawn now."""
        return len(self._ring)

    def sample(self, batch_size: int, generator: Generator | None = None) -> Batch:
        """Draw transitions uniformly with replacement; see `ImaginedRing.sample`."""
        return self._ring.sample(batch_size, generator)

    def advance(self, step: int) -> dict[str, float]:
        """Fit and imagine if it is time to, which it is at once when the first data has come.

        Args:
            step: environment steps so far, and updates without any; never fewer than last time.

        Returns:
            Numbers to log: those of the fit, and `imagined/...`; empty if it was not time.
        """
        if step < self._due or not len(self.real):
            return {}
        self._due = step + self.config.model_every
        metrics = {} if self.fit is None else dict(self.fit(step))
        return metrics | self.imagine(
            self.config.rollouts_per_step * self.config.model_every,
            self.config.rollout_length(step),
        )

    def imagine(self, branches: int, length: int) -> dict[str, float]:
        """Add branches of so many decisions from real states, as those of a training of the model.

        Returns:
            imagined/length: decisions of a branch that nothing ends; imagined/terminated: share
            of branches that were predicted to terminate; imagined/reward: mean R;
            imagined/held: transitions that can be drawn.

        Raises:
            InputError: a prediction is not finite.
        """
        starts = self.model.layout.flat(self.real.sample(branches, self._generator).obs)
        ended, decisions, total = 0, 0, 0.0
        if self.config.imagined_capacity is None:
            self._forget(branches * length)
        for state in starts.split(self.rows_at_once):
            state = moved(state, self.device)
            for _ in range(length):
                act = self._decide(state)
                chunk = imagine_chunk(self.model, state, act, self.discount, self._generator)
                self._check(chunk)
                self._ring.add(state, act, chunk.reward, chunk.next_state, chunk.discount)
                state = chunk.next_state[~chunk.terminated]
                decisions, total = decisions + len(act), total + float(chunk.reward.sum())
                ended += len(act) - len(state)
                if not len(state):
                    break
        if self.config.imagined_capacity is None:
            self._kept.append(decisions)
        return {
            "imagined/length": float(length),
            "imagined/terminated": ended / branches,
            "imagined/reward": total / decisions,
            "imagined/held": float(len(self)),
        }

    def _forget(self, room: int) -> None:
        """Forget all trainings but the newest `imagined_keep` - 1; make room for one more."""
        earlier = self.config.imagined_keep - 1
        self._kept = self._kept[-earlier:] if earlier else []
        self._ring.resize(sum(self._kept), room)

    @torch.no_grad()
    def _decide(self, state: Tensor) -> Tensor:
        """(N, H, A), clipped where what is executed is."""
        obs = self.model.layout.split(state)
        act = moved(self.policy.sample(obs, 1, self._generator)[:, 0].float(), state.device)
        return act.clamp(-1, 1) if clips(self.policy) else act

    def _check(self, chunk: ImaginedChunk) -> None:
        if not (torch.isfinite(chunk.next_state).all() and torch.isfinite(chunk.reward).all()):
            raise InputError(
                "the world model predicts NaN or infinite numbers: try a smaller --model-lr or "
                "shorter --rollout-lengths"
            )

    def state_dict(self) -> dict[str, Any]:
        """Everything that `advance` and `sample` go on from, `parts` included."""
        return {
            "ring": self._ring.state_dict(),
            "kept": list(self._kept),
            "generator": self._generator.get_state(),
            "due": self._due,
            "parts": {name: part.state_dict() for name, part in self.parts.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take on what `state_dict` returned; all goes on bit for bit.

        Raises:
            InputError: it was saved with other settings.
        """
        self._ring.load_state_dict(state["ring"])
        self._kept = list(state.get("kept", ()))  # older states are of a fixed capacity
        self._generator.set_state(state["generator"])
        self._due = state["due"]
        for name, part in self.parts.items():
            part.load_state_dict(state["parts"][name])


class ImaginedRing:
    """The newest transitions, each equally likely to be drawn.

    No one knows how an imagined episode goes on, so `mc_return` and `success` are NaN, and nothing
    may be cached by `key`, which is `IMAGINED`.

    Args:
        capacity: transitions kept; the oldest are overwritten. None is as many as `resize` says.
        layout: of the flat states.
        chunk: H.
        action_dim: A.
    """

    def __init__(
        self, capacity: int | None, layout: StateLayout, chunk: int, action_dim: int
    ) -> None:
        self.fixed, self.layout = capacity, layout
        self._shapes: dict[str, tuple[int, ...]] = {
            "state": (layout.dim,),
            "act": (chunk, action_dim),
            "reward": (),
            "next_state": (layout.dim,),
            "discount": (),
        }
        self._rows = self._room(capacity or 0)
        self._head = self._count = 0

    @property
    def capacity(self) -> int:
        """Transitions that fit."""
        return len(self._rows["reward"])

    def __len__(self) -> int:
        return self._count

    def resize(self, newest: int, room: int) -> None:
        """Forget all but the `newest` transitions, and have room for so many more."""
        rows = self._room(newest + room)
        if newest:
            slots = torch.arange(self._head - newest, self._head) % self.capacity
            for name, values in rows.items():
                values[:newest] = self._rows[name][slots]
        self._rows, self._count, self._head = rows, newest, newest

    def _room(self, capacity: int) -> dict[str, Tensor]:
        # Zeros take no memory until they are written.
        return {name: torch.zeros(capacity, *shape) for name, shape in self._shapes.items()}

    def add(
        self, state: Tensor, act: Tensor, reward: Tensor, next_state: Tensor, discount: Tensor
    ) -> None:
        """Add (N, D), (N, H, A), (N,), (N, D), (N,); of more than fit, the last are kept."""
        added = {
            "state": state, "act": act, "reward": reward, "next_state": next_state,
            "discount": discount,
        }  # fmt: skip
        count = min(len(state), self.capacity)
        slots = (self._head + torch.arange(count)) % self.capacity
        for name, values in added.items():
            self._rows[name][slots] = values[len(state) - count :].to(self._rows[name])
        self._head = (self._head + count) % self.capacity
        self._count = min(self._count + count, self.capacity)

    def sample(self, batch_size: int, generator: Generator | None = None) -> Batch:
        """Draw uniformly with replacement.

        Raises:
            InputError: nothing has been imagined yet.
        """
        if not self._count:
            raise InputError("nothing has been imagined yet: has the world model seen any data?")
        slot = torch.randint(self._count, (batch_size,), generator=generator)
        drawn = {name: values[slot] for name, values in self._rows.items()}
        unknown = torch.full((batch_size,), float("nan"))
        return Batch(
            obs=self.layout.split(drawn["state"]),
            act=drawn["act"],
            reward=drawn["reward"],
            next_obs=self.layout.split(drawn["next_state"]),
            discount=drawn["discount"],
            mc_return=unknown,
            success=unknown.clone(),
            key=torch.full((batch_size,), IMAGINED),
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything held. The tensors are views: write them, or copy them, before adding."""
        return {
            "settings": self._settings(),
            "rows": {name: values[: self._count] for name, values in self._rows.items()},
            "head": self._head,
            "capacity": self.capacity,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take on what `state_dict` returned.

        Raises:
            InputError: it is the state of a ring with other settings.
        """
        for name, here in self._settings().items():
            if (saved := state["settings"].get(name)) != here:
                raise InputError(
                    f"what was imagined was saved with {name} {saved}, this run has {here}: resume "
                    "with the settings of the run that saved it"
                )
        if self.fixed is None:
            self.resize(0, state["capacity"])
        for name, values in state["rows"].items():
            self._rows[name][: len(values)] = values
        self._count, self._head = len(state["rows"]["reward"]), state["head"]

    def _settings(self) -> dict[str, Any]:
        return {
            "imagined_capacity": self.fixed,
            "action_chunk": list(self._shapes["act"]),
            "observations": dict(self.layout.sizes),
        }
