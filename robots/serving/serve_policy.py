"""`serve_policy`: a policy object behind openpi's websocket protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from offline.errors import InputError
from offline.threads import choose, typical_of
from offline.types import Policy
from robots.serving.observations import Observations, merged
from robots.serving.per_client import copier, find_weights, noise
from robots.serving.plans import Plans
from robots.serving.serve import PolicyServer, Session
from robots.serving.sessions import FEATURES, Limits, PolicySession
from robots.serving.told import Listener
from robots.serving.versions import Newest


def serve_policy(
    policy: Policy,
    *,
    obs_shapes: Mapping[str, tuple[int, ...]] | None = None,
    rename: Mapping[str, str] | None = None,
    prompt: str | None = None,
    embed: Callable[[str], Tensor] | None = None,
    seed: int = 0,
    max_samples: int = 1024,
    samples_per_turn: int = 128,
    rate_limit: float = 1000.0,
    **server: Any,
) -> PolicyServer:
    """A server of a policy, steered or not; it listens once it is run, or entered by `with`.

    Each client gets a copy of the policy, which remembers that client's episode; the weights of
    torch modules are shared.

    Args:
        policy: answers with chunks of `policy.spec.chunk` actions.
        obs_shapes: of each observation that a client sends, without a batch axis; default what the
            policy, or the parts of a steered one, say. Of a policy that does not say, every array
            of the message is passed on.
        rename: the message's keys -> the policy's, such as {"observation/state": "state"}.
        prompt: the instruction where the message has none.
        embed: instruction -> (384,), for a policy that observes "language".
        seed: of the noise of requests that bring none.
        max_samples: that one request may ask for.
        samples_per_turn: proposals drawn at once; another client has a turn after them.
        rate_limit: requests per second from one address, and samples per second of one client.
        server: options of `PolicyServer`: host, port, api_key, insecure, max_connections,
            max_message_bytes, threads, ready. Threads are by default those that
            `offline.threads.choose` takes for the policy's networks.

    Raises:
        InputError: the parts disagree on an observation, or a limit is not positive. A policy that
            cannot be copied is answered to the client.
    """
    if max_samples < 1 or samples_per_turn < 1:
        raise InputError("max_samples and samples_per_turn must be at least 1")
    known = observed(policy)
    shapes = dict(obs_shapes) if obs_shapes is not None else known or {}
    observations = Observations(
        shapes, others=obs_shapes is None and known is None, rename=rename, embed=embed,
        prompt=prompt,
    )  # fmt: skip

    def again() -> Policy:
        raise InputError(
            f"a {type(policy).__name__} cannot be copied, and each client needs its own: give it a "
            "__deepcopy__, or keep open files and locks out of it"
        )

    limits = Limits(max_samples, rate_limit, samples_per_turn)
    make_session, metadata = policy_sessions(policy, observations, again, seed, limits)
    server["threads"] = choose(server.get("threads"), typical_of(find_weights(policy), rows=1))
    return PolicyServer(make_session, metadata=metadata, rate_limit=rate_limit, **server)


def policy_sessions(
    policy: Policy,
    observations: Observations,
    again: Callable[[], Policy],
    seed: int,
    limits: Limits,
    listen: Callable[[], Listener | None] = lambda: None,
    newest: Newest | None = None,
) -> tuple[Callable[[], Session], dict[str, Any]]:
    """What makes each client's session with a policy, and the metadata that clients are sent.

    Args:
        policy: copied for each client.
        observations: reads a client's messages.
        again: loads the policy anew where it cannot be copied.
        seed: of the clients' streams of noise.
        limits: of each client.
        listen: makes what is told of each client's conversation, if anything.
        newest: what steers the policy, where that changes; see `robots.serving.versions`.
    """
    make_policy, generators = copier(policy, again), noise(seed)

    def make_session() -> Session:
        return PolicySession(
            make_policy(), observations, next(generators), limits, listen(), newest
        )

    plans = Plans(policy)
    spec = policy.spec if plans.length is None else policy.spec.with_chunk(plans.length)
    ours: dict[str, Any] = {"features": list(FEATURES), "spec": spec.to_dict()}
    if plans.lookahead:
        ours["lookahead"] = plans.lookahead
    if observations.complete:
        ours["obs_shapes"] = {key: list(shape) for key, shape in observations.shapes.items()}
    return make_session, {"genpol": ours}


def observed(part: Any) -> dict[str, tuple[int, ...]] | None:
    """What a policy or a critic observes, or the parts of a steered or composed one; None where
    one of them does not say."""
    if (shapes := getattr(part, "obs_shapes", None)) is not None:
        return {key: tuple(shape) for key, shape in shapes.items()}
    parts = getattr(part, "critics", None) or []  # of a composed critic
    if hasattr(part, "base"):  # a steered policy: what proposes, and what chooses
        parts = [getattr(part, name) for name in ("base", "score") if hasattr(part, name)]
    found = [observed(one) for one in parts]
    if not found or None in found:
        return None
    return merged(*(shapes for shapes in found if shapes is not None))
