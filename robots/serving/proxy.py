"""A proxy between a robot and its policy server: requests K answers, returns the best.

The robot sends and receives what it always did; only which of the server's answers it gets changes,
and of a longer answer it gets what was scored. A message may have "reset", "executed" and
"running", as in `robots/serving/plans.py`. While one robot waits for the other server, everybody
else is served.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, Protocol

import numpy as np
import torch
from torch import Generator, Tensor

from offline.errors import InputError
from offline.spec import ActionSpec
from offline.types import Obs, Policy
from robots.serving.client import RemotePolicy
from robots.serving.connection import Answers
from robots.serving.observations import Observations
from robots.serving.plans import Plans, take_running
from robots.serving.sessions import considered, decide
from robots.serving.told import Listener, take_told
from robots.serving.turns import Steps
from robots.serving.versions import Newest, Version

logger = logging.getLogger(__name__)


class Chooser(Protocol):
    """What a proxy needs of `genpol.steering.steered.Steered`."""

    num_candidates: int
    spec: ActionSpec

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
        spec: of the actions, in the environment's units.
        listener: is told what the robot says and is answered.
        newest: what chooses from an episode's beginning on, in the place of `steer` and
            `observations`; None where that never changes.
    """

    def __init__(
        self,
        connect: Callable[[], RemotePolicy],
        steer: Callable[[Policy], Chooser],
        num_candidates: int,
        observations: Observations,
        generator: Generator,
        spec: ActionSpec,
        listener: Listener | None = None,
        newest: Newest | None = None,
    ) -> None:
        self._connect, self._steer, self._num_candidates = connect, steer, num_candidates
        self._observations, self._generator = observations, generator
        self._made: tuple[_Forward, Chooser, Plans] | None = None
        # Connects and asks, where waiting takes nobody's turn.
        self._asking = ThreadPoolExecutor(1, thread_name_prefix="upstream")
        self._remote: RemotePolicy | None = None
        self._closed = False
        self._spec, self._listener, self._over = spec, listener, False
        self._newest, self._version = newest, Version("", steer, observations)
        self._begins = True  # whether the next observation begins an episode

    @torch.no_grad()
    def infer(self, request: dict[str, Any], arrived: float) -> Steps:
        """The chosen answer, with "steer" added: how it was chosen."""
        running = take_running(request, 0 if self._made is None else self._made[2].lookahead)
        told = take_told(request, self._spec.dim, None)
        self._begins |= told.reset or self._over
        obs: Obs = {}
        if not (told.reset or told.alone):  # nothing is taken in of a message that cannot be used
            self._begin()
            obs = self._observations(request)
        if self._made is not None:
            _, chooser, plans = self._made
            if told.reset or self._over:
                chooser.reset()
                plans.forget()
            else:
                told = plans.heard(told, running)
        if self._listener is not None and told.anything:
            self._listener.told(told, request)
        self._over = told.ends and not told.reset
        if told.alone:
            return told.echo()
        if told.reset:
            self._begin()
            obs = self._observations(request)
        if self._made is not None:
            self._made[2].tell(running, self._listener)
        asked = self._asking.submit(self._ask, request, arrived)
        yield asked
        remote, proposals = asked.result()
        if self._made is None:
            forward = _Forward(remote)
            chooser = self._steer(forward)
            self._made = forward, chooser, Plans(chooser)
        forward, chooser, plans = self._made
        forward.arrived, chooser.num_candidates = proposals, proposals.shape[1]
        answers = remote.answers[0]
        act, steer, decision = decide(chooser, obs, self._generator, arrived)
        plans.answered(act)
        if self._version.name:
            steer["version"] = self._version.name
        answer = {**chosen_answer(answers, decision, forward.spec), "steer": steer}
        if plans.overlapping is None:  # the other server's own numbers
            _cut(answer, chooser.spec.chunk)
        else:
            raw = chooser.spec.clip(chooser.spec.unnormalize(act.float().cpu()))
            answer["actions"] = raw[: plans.length].numpy()
        if self._listener is not None and not self._over:
            sent = np.asarray(answer.get("actions", answer.get("action")), np.float32)
            sent = sent[None] if sent.ndim == 1 else sent
            self._listener.decided(
                request, considered(decision, forward.spec, sent, arrived, steer)
            )
        return answer

    def _begin(self) -> None:
        """Where an episode begins: by the newest version from now on."""
        if not self._begins:
            return
        self._begins = False
        if self._newest is None or (version := self._newest()) is self._version:
            return
        self._version, self._steer = version, version.steer
        self._observations = version.observations
        if self._made is not None:
            forward = self._made[0]
            chooser = self._steer(forward)
            self._made = forward, chooser, Plans(chooser)

    def close(self) -> None:
        """Close the connections to the other server, without waiting for it."""
        self._closed = True
        if self._listener is not None:
            self._listener.close()
        if self._remote is not None:
            self._remote.interrupt()
        self._asking.submit(self._hang_up)
        self._asking.shutdown(wait=False)

    # In the thread that asks

    def _ask(self, request: dict[str, Any], arrived: float) -> tuple[RemotePolicy, Tensor]:
        """Connects if need be, and collects the proposals."""
        if self._remote is None:
            self._remote = self._connect()
        if self._closed:
            raise InputError("the robot has gone")
        proposals = self._remote.propose(
            [request], self._num_candidates, self._generator, since=arrived
        )
        return self._remote, proposals

    def _hang_up(self) -> None:
        if self._remote is not None:
            self._remote.close()


def chosen_answer(answers: Answers, decision: Any, spec: ActionSpec) -> dict[str, Any]:
    """The other server's answer that was chosen, as it came. Where an edit of it was chosen, its
    first actions are the edited ones, and those behind them stay.

    Args:
        answers: of the proposals, in their order.
        decision: of one row; its candidates are the proposals, then the edits of each.
        spec: of the decision's actions.
    """
    chosen, proposals = int(decision.chosen[0]), decision.num_base
    if chosen < proposals:
        return answers[chosen]
    edits = (decision.candidates.shape[1] - proposals) // proposals
    answer = dict(answers[(chosen - proposals) // edits])
    raw = spec.clip(spec.unnormalize(decision.action[0].detach().float().cpu())).numpy()
    key = "actions" if "actions" in answer else "action"
    sent = np.array(answer[key])  # a copy
    sent = sent if sent.dtype.kind == "f" else sent.astype(np.float32)
    if sent.ndim == 1:
        sent[:] = raw[0]
    else:
        sent[: len(raw)] = raw
    answer[key] = sent
    return answer


def _cut(answer: dict[str, Any], count: int) -> None:
    """Leaves the first actions in an answer of the other server: those that were scored."""
    key = "actions" if "actions" in answer else "action"
    actions = answer[key]
    if np.ndim(actions) == 2 and len(actions) > count:
        _say_once(
            f"the other server answers chunks of {len(actions)} actions, and robots get the first "
            f"{count}: those that the value scores. --score windows scores and passes on all"
        )
        answer[key] = actions[:count]


@cache
def _say_once(text: str) -> None:
    logger.warning("%s", text)


class _Forward:
    """A remote policy whose proposals have come already, in answer to the robot's own message."""

    def __init__(self, remote: RemotePolicy) -> None:
        self.remote, self.spec = remote, remote.spec
        self.arrived: Tensor | None = None

    def reset(self) -> None:
        self.remote.reset()

    def sample(self, obs: Obs, n: int, generator: Generator | None) -> Tensor:
        """What has come; whoever asks for more is given some of it again."""
        assert self.arrived is not None
        count = self.arrived.shape[1]
        if n == count:
            return self.arrived
        return self.arrived[:, torch.arange(n) % count]

    def commit(self, act: Tensor) -> None:
        self.remote.commit(act)

    def keep(self, rows: Tensor) -> None:
        self.remote.keep(rows)
