"""A served policy: what one client's messages to it mean.

Beside its observation, a request may hold:

    reset, executed, intervention, reward, success    see `robots/serving/told.py`
    running      with a lookahead, see `robots/serving/plans.py`
    num_samples  n: answer n proposals (n, H, A) instead of one decision
    seed         of this request's noise

Many samples are drawn in slices, and other clients have turns between them. Slices have a fixed
size: what is answered to a seed depends on it, and never on what else the server does.
"""

from __future__ import annotations

from collections.abc import Generator as Steps
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from offline.errors import InputError, shown
from offline.spec import ActionSpec
from offline.types import Obs, Policy
from robots.serving.observations import Observations
from robots.serving.plans import Plans, take_running
from robots.serving.rate_limit import RateLimit
from robots.serving.told import FEATURES as TOLD
from robots.serving.told import Decided, Listener, take_told
from robots.serving.versions import Newest, Version

FEATURES = (*TOLD, "running", "num_samples", "seed")
"""Announced in the metadata, as {"genpol": {"features": ...}}."""


@dataclass(frozen=True)
class Limits:
    """What one client may ask for."""

    max_samples: int = 1024
    """Samples in one request."""
    samples_per_second: float = 1000.0
    """Samples in a second, on average."""
    samples_per_turn: int = 128
    """Proposals that are drawn at once. Each sample of a steered policy is one of K of them."""


class PolicySession:
    """Serves a policy.

    Args:
        policy: this connection's own: its history is this client's episode.
        observations: see `Observations`.
        generator: noise of the requests that bring no seed.
        limits: of this client.
        listener: is told what the client says and is answered.
        newest: what steers `policy` from an episode's beginning on; None where the policy is served
            as it is.
    """

    def __init__(
        self,
        policy: Policy,
        observations: Observations,
        generator: Generator,
        limits: Limits | None = None,
        listener: Listener | None = None,
        newest: Newest | None = None,
    ) -> None:
        self._policy, self._observations, self._generator = policy, observations, generator
        self._limits = limits or Limits()
        self._rate = RateLimit(self._limits.samples_per_second, "samples")
        self._plans = Plans(policy)
        self._listener, self._over = listener, False
        self._base, self._newest, self._version = policy, newest, Version("", id, observations)
        self._begins = True  # whether the next observation begins an episode
        policy.reset()

    @torch.no_grad()
    def infer(self, request: dict[str, Any], arrived: float) -> Steps[None, None, dict[str, Any]]:
        """{"actions": (H, A) float32 in the environment's units, "steer": ... of a steered one}.

        H is the policy's chunk, or what a robot needs of it where decisions overlap.
        """
        spec = self._policy.spec
        running = take_running(request, self._plans.lookahead)
        told = take_told(request, spec.dim, spec.chunk)
        count, seed = _extras(request, self._limits.max_samples)
        self._begins |= told.reset or self._over
        obs: Obs = {}
        if not (told.reset or told.alone):  # nothing is taken in of a message that cannot be used
            self._begin()
            obs = self._observed(request, count)
        if told.reset or self._over:
            self._policy.reset()
            self._plans.forget()
        else:
            told = self._plans.heard(told, running)
        if self._listener is not None and told.anything:
            self._listener.told(told, request)
        self._over = told.ends and not told.reset
        if told.alone:
            return told.echo()
        if told.reset:
            self._begin()
            obs = self._observed(request, count)
        policy, spec = self._policy, self._policy.spec
        generator = self._generator
        if seed is not None:
            generator = torch.Generator().manual_seed(seed)
        self._plans.tell(running, self._listener)
        answer: dict[str, Any] = {}
        decision = None
        if count is not None:
            act = yield from self._samples(obs, count, generator, arrived)
        elif hasattr(policy, "decide"):
            act, answer["steer"], decision = decide(policy, obs, generator, arrived)
            if self._version.name:
                answer["steer"]["version"] = self._version.name
        else:
            act = policy.sample(obs, 1, generator)[0, 0]
        raw = spec.unnormalize(act.detach().float().cpu())
        if not torch.isfinite(raw).all():
            raise InputError("the policy gave NaN or infinite actions: are its weights intact?")
        raw = spec.clip(raw)
        if count is None:
            self._plans.answered(spec.normalize(raw))
        else:  # which of them the robot takes is not known
            self._plans.forget()
        sent = raw[..., : self._plans.length, :].numpy()
        if count is None and self._listener is not None and not self._over:
            decided = considered(decision, spec, sent, arrived, answer.get("steer", {}))
            self._listener.decided(request, decided)
        return {"actions": sent, **answer}

    def _begin(self) -> None:
        """Where an episode begins: by the newest version from now on."""
        if not self._begins:
            return
        self._begins = False
        if self._newest is None or (version := self._newest()) is self._version:
            return
        self._version, self._observations = version, version.observations
        self._policy = version.steer(self._base)
        self._plans = Plans(self._policy)

    def _samples(
        self, obs: Obs, count: int, generator: Generator, arrived: float
    ) -> Steps[None, None, Tensor]:
        """(n, H, A), with a turn for each slice; each has its share of a deadline."""
        policy = self._policy
        size = max(1, self._limits.samples_per_turn // getattr(policy, "num_candidates", 1))
        sizes = [min(size, count - start) for start in range(0, count, size)]
        drawn: list[Tensor] = []
        for size in sizes:
            if drawn:
                yield None
            due = {}
            if (deadline := deadline_of(policy)) is not None:
                now = perf_counter()
                share = (deadline - (now - arrived)) / (len(sizes) - len(drawn))
                due = {"since": now + share - deadline}
            drawn.append(policy.sample(obs, size, generator, **due)[0])
        return torch.cat(drawn)

    def _observed(self, request: dict[str, Any], count: int | None) -> Obs:
        """The observation of a message that asks for so many samples, or for a decision."""
        obs = self._observations(request)
        if count is not None:
            self._rate.take(number=count)
        return obs

    def close(self) -> None:
        """The client has gone."""
        if self._listener is not None:
            self._listener.close()


def deadline_of(policy: Any) -> float | None:
    """Seconds that a steered policy has for a decision; None without a limit."""
    return getattr(getattr(policy, "pace", None), "deadline", None)


def decide(
    policy: Any, obs: Obs, generator: Generator, arrived: float
) -> tuple[Tensor, dict[str, Any], Any]:
    """One decision of a steered policy, for a batch of one.

    Args:
        policy: has `decide`, and takes `since` with it where it has a deadline.
        obs: the observation.
        generator: draws proposals and the choice.
        arrived: when the request came: it may have waited for its turn.

    Returns:
        the action (H, A), normalised, how it was chosen, and the whole decision.
    """
    due = {} if deadline_of(policy) is None else {"since": arrived}
    decision = policy.decide(obs, generator, **due)
    scores, chosen = decision.scores[0].float(), int(decision.chosen[0])
    said = {
        "num_candidates": len(scores),
        "chosen": chosen,
        "score": float(scores[chosen]),
        "score_mean": float(scores.mean()),
        "spread": float(decision.spread[0]),
        "fell_back": bool(decision.fell_back[0]),
    }
    return decision.action[0], said, decision


def considered(
    decision: Any, spec: ActionSpec, answer: np.ndarray, arrived: float, steer: dict[str, Any]
) -> Decided:
    """What a listener is told of a decision.

    Args:
        decision: of a steered policy, for a batch of one; None of a plain one.
        spec: of the policy.
        answer: (H', A), what the robot is sent, in the environment's units.
        arrived: when the request came.
        steer: how it was chosen, as the robot is told.
    """
    latency, version = perf_counter() - arrived, str(steer.get("version", ""))
    if decision is None:
        none = np.empty(0, np.float32)
        return Decided(answer[None], none, 0, answer, latency, version)
    candidates = spec.clip(spec.unnormalize(decision.candidates[0].detach().float().cpu()))
    scores = decision.scores[0].detach().float().cpu().numpy()
    return Decided(candidates.numpy(), scores, int(decision.chosen[0]), answer, latency, version)


def _extras(request: dict[str, Any], max_samples: int) -> tuple[int | None, int | None]:
    """Takes num_samples and seed out of the request."""
    count = _whole("num_samples", request.pop("num_samples", None))
    seed = _whole("seed", request.pop("seed", None))
    if count is not None and not 1 <= count <= max_samples:
        raise InputError(f'"num_samples" is {count}, expected 1 to {max_samples}')
    return count, seed


def _whole(name: str, value: Any) -> int | None:
    """A number of samples, or a seed."""
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise InputError(f'"{name}" is {shown(repr(value), 40)}, expected a whole number')
    if not 0 <= value < 2**63:
        raise InputError(f'"{name}" is {value}, expected a whole number from 0 to 2^63 - 1')
    return int(value)
