"""`Agent`: the interface of whatever the offline-to-online loop trains."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

from torch import Generator, Tensor, nn
from torch.optim import Optimizer

from offline.data.batch import Batch
from offline.networks.normalizer import Change, ObsStats
from offline.networks.optimizers import load_optimizer
from offline.spec import ActionSpec
from offline.types import HasGenerators, Policy


class Agent(Protocol):
    """Learns from batches, acts through a `Policy`.

    For each environment step the loop makes `utd` calls of `update_critic`, each with a fresh
    batch, and then one of `update_policy` with the last of them (with utd < 1 both are made every
    1 / utd steps). Actions are chunks normalised by `spec`, each dimension in [-1, 1].
    """

    spec: ActionSpec

    def update_critic(self, batch: Batch, generator: Generator) -> dict[str, Tensor]:
        """One gradient step of the critic and its target; scalars to log, detached. The batch is on
        the agent's device, the generator on the CPU; see `offline.draws`."""

    def update_policy(self, batch: Batch, generator: Generator) -> dict[str, Tensor]:
        """One gradient step of everything else; scalars to log, detached."""

    def acting(self) -> Policy:
        """Collects experience, so it explores. The same object every time; it follows the
        agent's weights."""

    def evaluating(self) -> Policy:
        """What is evaluated and deployed. The same object every time."""

    def networks(self) -> list[nn.Module]:
        """Every network. While the agent is evaluated they are in eval mode."""

    def generators(self) -> list[Generator]:
        """The random streams of its own, beside those that it is handed. What an evaluation draws
        from them is put back."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that training goes on from: a tree of dictionaries and lists with tensors,
        numbers, strings, booleans and None at its leaves."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take on what `state_dict` returned; training then goes on bit for bit."""

    def save(self, folder: Path) -> None:
        """Write what a user deploys: `value/` (a `ValueFunction`) and, where there is a policy of
        our own, `policy/` (loadable by `genpol.policies.policy.load_policy`)."""


@runtime_checkable
class HasStateless(Protocol):
    """An agent whose acting policy may remember its episode."""

    def stateless(self, num_candidates: int | None = None) -> Policy:
        """What it would do in states of no episode, such as imagined ones.

        Args:
            num_candidates: to choose from; default as many as in acting.
        """


@runtime_checkable
class Restandardises(Protocol):
    """An agent that can standardise observations by other statistics while it learns."""

    def restandardise(self, stats: ObsStats) -> None:
        """Take on these statistics; every network stays the function that it is."""


@runtime_checkable
class OwnStatistics(Protocol):
    """A part of an agent whose networks standardise observations themselves."""

    def restandardise(self, stats: ObsStats) -> Change | None:
        """Take on these statistics; what networks on the same encoding have to absorb."""


@runtime_checkable
class OnEncoding(Protocol):
    """A part of an agent whose networks see the critic's encoding of observations."""

    def absorb(self, change: Change) -> None:
        """Stay the function that it is where the critic standardises otherwise."""


class Stateful(Protocol):
    """A part of an agent, such as a critic, a policy in training, a module or an optimiser."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Any) -> Any: ...


@runtime_checkable
class HasNetworks(Protocol):
    """A part of an agent that is made of networks."""

    def networks(self) -> list[nn.Module]: ...


Part: TypeAlias = "Stateful | Generator | list[Generator] | None"


class AgentOfParts:
    """An agent that is the sum of its parts: its networks, random streams and state are theirs."""

    def parts(self) -> Mapping[str, Part]:
        """Each part by the name that its state is saved under."""
        raise NotImplementedError

    def networks(self) -> list[nn.Module]:
        """Of all parts; see `Agent`."""
        found: list[nn.Module] = []
        for part in self.parts().values():
            if isinstance(part, nn.Module):
                found.append(part)
            elif isinstance(part, HasNetworks):
                found += part.networks()
        return found

    def generators(self) -> list[Generator]:
        """Of all parts; see `Agent`."""
        found: list[Generator] = []
        for part in self.parts().values():
            if isinstance(part, list):
                found += part
            elif isinstance(part, Generator):
                found.append(part)
            elif isinstance(part, HasGenerators):
                found += part.generators()
        return found

    def restandardise(self, stats: ObsStats) -> None:
        """Of all parts; see `Restandardises`. All of them had the same statistics before."""
        parts = list(self.parts().values())
        found = [part.restandardise(stats) for part in parts if isinstance(part, OwnStatistics)]
        change = next((change for change in found if change is not None), None)
        for part in parts:
            if change is not None and isinstance(part, OnEncoding):
                part.absorb(change)

    def state_dict(self) -> dict[str, Any]:
        """Of all parts by their names."""
        state: dict[str, Any] = {}
        for name, part in self.parts().items():
            if isinstance(part, list):
                state[name] = [stream.get_state() for stream in part]
            elif isinstance(part, Generator):
                state[name] = part.get_state()
            else:
                state[name] = None if part is None else part.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let each part take on its state, in order."""
        for name, part in self.parts().items():
            if isinstance(part, list):
                for stream, saved in zip(part, state[name], strict=True):
                    stream.set_state(saved)
            elif isinstance(part, Generator):
                part.set_state(state[name])
            elif isinstance(part, Optimizer):
                load_optimizer(part, state[name])
            elif part is not None:
                part.load_state_dict(state[name])
