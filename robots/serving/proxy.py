"""A proxy between a robot and its policy server: requests K answers, returns the best.

The robot sends and receives what it always did; only which of the server's answers it gets changes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Generator, Tensor

from offline.types import Obs, Policy
from robots.serving.client import RemotePolicy
from robots.serving.observations import Observations
from robots.serving.sessions import decide


class Chooser(Protocol):
    """What a proxy needs of `genpol.steering.steered.Steered`."""

    num_candidates: int

    def reset(self) -> None: ...

    def decide(self, obs: Obs, generator: Generator | None) -> Any:
        """Sample `num_candidates` proposals and choose: see `robots.serving.sessions.decide`."""


class ProxySession:
    """One robot's conversation with another server, for `robots.serving.serve.PolicyServer`.

    Args:
        connect: connects to the other server; called when first needed.
        steer: makes what chooses among a policy's proposals.
        num_candidates: answers to ask for; under a deadline, those that arrive are ranked.
        observations: what the choice is made by; the robot's message goes on as it is.
        generator: noise of the choice.
    """

    def __init__(
        self,
        connect: Callable[[], RemotePolicy],
        steer: Callable[[Policy], Chooser],
        num_candidates: int,
        observations: Observations,
        generator: Generator,
    ) -> None:
        self._connect, self._steer, self._num_candidates = connect, steer, num_candidates
        self._observations, self._generator = observations, generator
        self._made: tuple[_Forward, Chooser] | None = None

    @torch.no_grad()
    def infer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The chosen answer, with "steer" added: how it was chosen."""
        reset = bool(request.pop("reset", False))
        if reset and self._made is not None:
            self._made[1].reset()
        if reset and not request:
            return {"reset": True}
        obs = self._observations(request)  # before the other server is asked in vain
        if self._made is None:
            forward = _Forward(self._connect())
            try:
                self._made = forward, self._steer(forward)
            except BaseException:
                forward.remote.close()
                raise
        forward, chooser = self._made
        chooser.num_candidates = forward.ask(request, self._num_candidates, self._generator)
        answers = forward.remote.answers[0]
        act, steer = decide(chooser, obs, self._generator)
        forward.commit(act[None])
        return {**answers[steer["chosen"]], "steer": steer}

    def close(self) -> None:
        """Close the connections to the other server."""
        if self._made is not None:
            self._made[0].remote.close()


class _Forward:
    """A remote policy that is sent the robot's own message in place of the observation."""

    def __init__(self, remote: RemotePolicy) -> None:
        self.remote, self.spec = remote, remote.spec
        self._request: dict[str, Any] = {}
        self._arrived: Tensor | None = None

    def ask(self, request: dict[str, Any], n: int, generator: Generator) -> int:
        """Collect proposals for the next `sample`; says how many have arrived."""
        self._request = request
        self._arrived = self.remote.propose([request], n, generator)
        return self._arrived.shape[1]

    def reset(self) -> None:
        self.remote.reset()

    def sample(self, obs: Obs, n: int, generator: Generator | None) -> Tensor:
        arrived, self._arrived = self._arrived, None
        if arrived is not None and arrived.shape[1] == n:
            return arrived
        return self.remote.propose([self._request], n, generator)

    def commit(self, act: Tensor) -> None:
        self.remote.commit(act)

    def keep(self, rows: Tensor) -> None:
        self.remote.keep(rows)
