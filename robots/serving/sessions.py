"""A served policy: what one client's messages to it mean.

Beside its observation, a request may hold:

    reset        True begins a new episode; alone, it is only that
    executed     (H', A) in the environment's units: what the robot really did of the last answer;
                 all of it where this is missing
    num_samples  n: answer n proposals (n, H, A) instead of one decision
    seed         of this request's noise
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from offline.errors import InputError
from offline.spec import ActionSpec
from offline.types import Obs, Policy
from robots.serving.observations import Observations, row_of

FEATURES = ("reset", "executed", "num_samples", "seed")
"""Announced in the metadata, as {"genpol": {"features": ...}}."""
_MAX_SAMPLES = 1024


class PolicySession:
    """Serves a policy.

    Args:
        policy: this connection's own: its history is this client's episode.
        observations: see `Observations`.
        generator: noise of the requests that bring no seed.
    """

    def __init__(self, policy: Policy, observations: Observations, generator: Generator) -> None:
        self._policy, self._observations, self._generator = policy, observations, generator
        # Committed with the next request, which may say that less was executed.
        self._pending: Tensor | None = None
        policy.reset()

    @torch.no_grad()
    def infer(self, request: dict[str, Any]) -> dict[str, Any]:
        """{"actions": (H, A) float32 in the environment's units, "steer": ... of a steered one}."""
        policy, spec = self._policy, self._policy.spec
        reset, count, seed, executed = _extras(request, spec)
        if reset:
            policy.reset()
            self._pending = None
            if not request:
                return {"reset": True}
        obs = self._observations(request)
        generator = self._generator
        if seed is not None:
            generator = torch.Generator().manual_seed(int(seed))
        pending, self._pending = self._pending if executed is None else executed, None
        if pending is not None:
            policy.commit(pending)
        answer: dict[str, Any] = {}
        if count is not None:
            act = policy.sample(obs, int(count), generator)[0]
        elif hasattr(policy, "decide"):
            act, answer["steer"] = decide(policy, obs, generator)
        else:
            act = policy.sample(obs, 1, generator)[0, 0]
        raw = spec.unnormalize(act.detach().float().cpu())
        if not torch.isfinite(raw).all():
            raise InputError("the policy gave NaN or infinite actions: are its weights intact?")
        raw = spec.clip(raw)
        if count is None:
            self._pending = spec.normalize(raw)[None]
        return {"actions": raw.numpy(), **answer}

    def close(self) -> None:
        """Nothing to give back."""


def decide(policy: Any, obs: Obs, generator: Generator) -> tuple[Tensor, dict[str, Any]]:
    """One decision of a steered policy, for a batch of one.

    Returns:
        the action (H, A), normalised, and how it was chosen.
    """
    decision = policy.decide(obs, generator)
    scores, chosen = decision.scores[0].float(), int(decision.chosen[0])
    return decision.action[0], {
        "num_candidates": len(scores),
        "chosen": chosen,
        "score": float(scores[chosen]),
        "score_mean": float(scores.mean()),
        "spread": float(decision.spread[0]),
        "fell_back": bool(decision.fell_back[0]),
    }


def _extras(
    request: dict[str, Any], spec: ActionSpec
) -> tuple[bool, int | None, int | None, Tensor | None]:
    """Takes reset, num_samples, seed and executed (1, H', A; normalised) out of the request."""
    reset = bool(request.pop("reset", False))
    count, seed = request.pop("num_samples", None), request.pop("seed", None)
    for name, number in (("num_samples", count), ("seed", seed)):
        whole = isinstance(number, int | np.integer) and 0 <= number < 2**63
        if number is not None and not whole:
            raise InputError(f'"{name}" is {number!r:.40}, expected a whole number')
    if count is not None and not 1 <= count <= _MAX_SAMPLES:
        raise InputError(f'"num_samples" is {count}, expected 1 to {_MAX_SAMPLES}')
    executed = request.pop("executed", None)
    if executed is None:
        return reset, count, seed, None
    raw = row_of("executed", executed, (len(np.atleast_1d(executed)), spec.dim))
    return reset, count, seed, spec.normalize(raw)
