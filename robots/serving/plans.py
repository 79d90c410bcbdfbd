"""What a robot was answered last, and what became of it by its next message.

A policy is told what was executed with the next message, which may say that it was less or
something else. Where decisions overlap (`--lookahead`), a message also tells what runs on:

    executed   (H', A): done of the last answer so far. Default: all but what is running
               A human's (`intervention`) end the plan
    running    how many of the last answer's next actions the robot goes on to do while the answer
               to this message is computed. Default: the lookahead, or all that the robot has left.
               A robot that stopped says 0

The answer begins with the running actions, at the time of the message's observation. So `executed`
counts from the message of the last answer on, and a robot that has waited longer or shorter than
planned goes on with the answer at the action whose time it is. A message whose decision failed has
no answer: the next one says again what was executed, and what was done since.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offline.errors import InputError, shown
from robots.serving.told import Listener, Told


class Plans:
    """The plan that one robot follows.

    Args:
        policy: an `offline.types.Policy`, which is told what was executed. Plans overlap where it,
            or what it chooses among, has a `go_on` as `genpol.steering.overlap.Overlapping` has.
    """

    def __init__(self, policy: Any) -> None:
        self._policy, self.overlapping = policy, overlapping_of(policy)
        self._plan: Tensor | None = None  # (1, P, A), normalised
        # What was executed of it, as far as was told: (H', A) each, and whether a human did it. By
        # messages alone, and beside the observation.
        self._alone: list[tuple[Tensor, bool]] = []
        self._beside: list[tuple[Tensor, bool]] = []
        self._heard = 0  # actions told beside observations whose decision failed

    @property
    def length(self) -> int | None:
        """Actions of an answer, where it is less than the plan: those that the robot needs."""
        return None if self.overlapping is None else int(self.overlapping.overlap.answer)

    @property
    def lookahead(self) -> int:
        """Actions that may be running when a message comes."""
        return 0 if self.overlapping is None else int(self.overlapping.overlap.lookahead)

    def forget(self) -> None:
        """A new episode begins, or what was answered is no plan."""
        self._plan, self._alone, self._beside, self._heard = None, [], [], 0

    def answered(self, act: Tensor) -> None:
        """The robot is answered with this plan: (P, A), normalised."""
        self._plan, self._heard = act[None], 0

    def heard(self, told: Told, running: int | None) -> Told:
        """Takes in what a message says of the last answer; its observation, if any, is sound.

        Returns:
            what is news of it: what was executed only as far as no message has said so before
            whose decision failed; and as is assumed, where the episode ends and nothing is said.
        """
        if told.executed is not None:
            rows = told.executed[self._heard :]
            if told.alone:  # it has an answer
                self._heard = 0
            act = self._policy.spec.normalize(torch.from_numpy(rows))
            (self._alone if told.alone else self._beside).append((act, told.intervention))
            return replace(told, executed=rows)
        if told.ends and not told.alone and (assumed := self._assumed(running)) is not None:
            self._beside.append((assumed[0], False))
            return replace(told, executed=self._raw(assumed))
        return told

    def tell(self, running: int | None, listener: Listener | None = None) -> None:
        """A decision is due: tell the policy what became of the last answer.

        Args:
            running: actions; None where the message does not say.
            listener: is told what was executed where plans overlap and no message has said it.
        """
        executed = self._assumed(running)
        if executed is not None and listener is not None:
            listener.told(Told(executed=self._raw(executed)), {})
        parts, plan = [*self._alone, *self._beside], self._plan
        if parts:  # of more than a policy plans, it is told the latest
            executed = torch.cat([act for act, _ in parts])[None, -self._policy.spec.chunk :]
        if any(by_hand for _, by_hand in parts):
            plan = None
        heard = self._heard + sum(len(act) for act, _ in self._beside)
        self.forget()
        self._heard = heard  # until there is an answer
        if self.overlapping is None:
            done = plan if executed is None else executed
            if done is not None and done.shape[1]:
                self._policy.commit(done)
        elif executed is not None:
            self.overlapping.go_on(plan, executed, running)
        else:  # nothing of what it was told before runs any more
            self.overlapping.give_up()

    def _assumed(self, running: int | None) -> Tensor | None:
        """(1, H', A) what was executed where plans overlap and nobody has said so."""
        if self.overlapping is None or self._plan is None or self._alone or self._beside:
            return None
        left = self.lookahead if running is None else running
        return self._plan[:, : self.overlapping.overlap.answer - left]

    def _raw(self, act: Tensor) -> np.ndarray:
        spec = self._policy.spec
        raw: np.ndarray = spec.clip(spec.unnormalize(act[0].float().cpu())).numpy()
        return raw


def overlapping_of(policy: Any) -> Any:
    """The part of a policy that has to know which actions are running; None without one."""
    while policy is not None and not hasattr(policy, "go_on"):
        policy = getattr(policy, "base", None)
    return policy


def take_running(request: dict[str, Any], most: int) -> int | None:
    """Takes "running" out of a request.

    Args:
        request: the message.
        most: the lookahead.

    Raises:
        InputError: it is no whole number, or more than the lookahead.
    """
    running = request.pop("running", None)
    if isinstance(running, np.ndarray) and running.size == 1:
        running = running.item()
    if running is None:
        return None
    if isinstance(running, bool) or not isinstance(running, int | np.integer):
        raise InputError(f'"running" is {shown(repr(running), 40)}, expected a whole number')
    if not 0 <= running <= most:
        raise InputError(
            f'"running" is {shown(running, 40)}, expected 0 to {most}: more actions than '
            "--lookahead cannot run while an answer is computed"
        )
    return int(running)
