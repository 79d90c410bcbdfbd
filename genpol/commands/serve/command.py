"""`genpol serve`: a (steered) policy, or a better choice of another server's answers, to robots."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from genpol.commands.serve.options import (
    CANDIDATES,
    PROXY_CANDIDATES,
    Serve,
    check,
    renamed,
    upstream_of,
)

if TYPE_CHECKING:
    from offline.spec import ActionSpec
    from offline.types import Policy
    from robots.recording.recorder import Recorder
    from robots.serving.observations import Observations
    from robots.serving.serve import Session


def run(config: Serve) -> None:
    """Serve until Ctrl-C; prints the address once listening."""
    from genpol.runs.quiet import hush

    hush()
    make_server(config, lambda address: print(f"serving on {address}", flush=True)).run()
    print("stopped")


def make_server(config: Serve, ready: Callable[[str], None] | None = None) -> Any:
    """The `robots.serving.serve.PolicyServer` that the options describe, not listening yet.

    Raises:
        InputError: for what a user can mend.
    """
    from genpol.commands.serve.keys import server_key
    from genpol.commands.serve.recording import finish
    from genpol.runs.device import pick_device
    from robots.serving.serve import PolicyServer, check_access

    check(config)
    api_key = server_key(config)
    check_access(config.host, api_key, config.insecure)  # before anything is loaded
    config = replace(config, device=pick_device(config.device))
    parts = proxy(config) if upstream_of(config) else policy(config)
    make_session, metadata, threads, recorder = parts
    return PolicyServer(
        make_session,
        host=config.host,
        port=config.port,
        api_key=api_key,
        insecure=config.insecure,
        max_message_bytes=int(config.max_message_mb * 2**20),
        rate_limit=config.rate_limit,
        max_connections=config.max_connections,
        metadata=metadata,
        threads=threads,
        ready=ready,
        ended=None if recorder is None else partial(finish, recorder),
    )


Parts = tuple[Callable[[], "Session"], dict[str, Any], int, "Recorder | None"]
"""What makes a connection's session, the server's metadata, threads, and what records."""


def policy(config: Serve) -> Parts:
    """What serves a policy of our own."""
    from genpol.commands.serve.recording import make_recorder
    from robots.serving.serve_policy import observed, policy_sessions
    from robots.serving.sessions import Limits

    value, shapes = load_value(config)

    def load() -> Policy:
        base = load_base(config, value)
        return base if value is None else steered(config, base, value)

    served = load()
    known = observed(served)
    observations = make_observations(config, shapes if known is None else known, known is None)
    limits = Limits(config.max_samples, config.rate_limit, config.samples_per_turn)
    base = served if value is None else served.base  # type: ignore[attr-defined]
    recorder = make_recorder(config, served.spec, value)
    listen = (lambda: None) if recorder is None else recorder.listener
    made = policy_sessions(served, observations, load, config.seed, limits, listen)
    return *made, threads_for(config, base, value), recorder


def threads_for(config: Serve, *parts: Any) -> int:
    """Of PyTorch, by the networks of the policy and of the values."""
    from offline.threads import choose, typical_of
    from robots.serving.per_client import find_weights

    each = [one for part in parts for one in getattr(part, "critics", [part])]
    weights = [weight for one in each for weight in find_weights(one)]
    return choose(config.threads, typical_of(weights, config.num_candidates or CANDIDATES))


def proxy(config: Serve) -> Parts:
    """The same with another server's policy; the metadata is that server's.

    Raises:
        InputError: it cannot be reached now. Later on, that is answered to the robot.
    """
    from genpol.commands.serve.keys import upstream_key
    from genpol.commands.serve.recording import make_recorder
    from robots.serving.client import RemotePolicy
    from robots.serving.per_client import noise
    from robots.serving.proxy import ProxySession
    from robots.serving.told import FEATURES

    value, shapes = load_value(config)
    url, count = upstream_of(config), config.num_candidates or PROXY_CANDIDATES
    assert url is not None and value is not None
    spec, key = action_spec(config, value), upstream_key(config)

    def connect() -> RemotePolicy:
        return RemotePolicy.connect(
            url,
            env_spec=spec,
            api_key=key,
            timeout=config.timeout,
            parallel=min(config.parallel, count),
            chunk=value.spec.chunk,
            deadline=config.deadline_ms / 1e3 if config.deadline_ms else None,
        )

    with connect() as probe:
        metadata = {key: entry for key, entry in probe.metadata.items() if key != "genpol"}
    observations, generators = make_observations(config, shapes, False), noise(config.seed)
    recorder = make_recorder(config, spec, value)

    def make_session() -> Session:
        return ProxySession(
            connect,
            lambda base: steered(config, base, value, anytime=False),
            count,
            observations,
            next(generators),
            spec,
            None if recorder is None else recorder.listener(),
        )

    ours = {"features": list(FEATURES), "spec": spec.with_chunk(value.spec.chunk).to_dict()}
    return make_session, {**metadata, "genpol": ours}, threads_for(config, value), recorder


def load_value(config: Serve) -> tuple[Any, dict[str, tuple[int, ...]]]:
    """The critic (composed where there are several; None without --value), and what it observes."""
    from genpol.steering.compose import Composed
    from offline.critics.value import ValueFunction
    from robots.serving.observations import merged

    values = [ValueFunction.load(folder, device=config.device or "cpu") for folder in config.value]
    for value in values:
        if config.env is not None:
            value.require_env(config.env)
    shapes = merged(*(value.obs_shapes for value in values))
    if len(values) < 2:
        return (values[0] if values else None), shapes
    weights = list(config.value_weights) or [1.0 / len(values)] * len(values)
    return Composed(values, weights), shapes


def load_base(config: Serve, value: Any) -> Policy:
    """The policy to serve: a clone's folder or a black box."""
    from robots.policies.load import is_black_box, load_black_box

    assert config.policy is not None
    if is_black_box(config.policy):
        return load_black_box(
            config.policy,
            trust=config.trust,
            env_spec=action_spec(config, value) if value is not None or config.env else None,
            action_chunk=None if value is None else value.spec.chunk,
            language=config.prompt,
            device=config.device,
        )
    from genpol.agents.deploy import load_trained

    return load_trained(config.policy, device=config.device or "cpu")


def action_spec(config: Serve, value: Any) -> ActionSpec:
    """The environment's actions: those of --env, or those that the value was trained on.

    The latter needs no simulator where the robot is.
    """
    from offline.spec import ActionSpec

    if config.env is not None:
        from robots.envs.make import make_env

        env = make_env(config.env)
        try:
            return env.action_spec
        finally:
            env.close()
    spec = value.spec
    same = {name: getattr(spec, name) for name in ("names", "gripper", "gripper_open")}
    return ActionSpec.from_bounds(spec.low, spec.high, **same)


def steered(config: Serve, base: Policy, value: Any, *, anytime: bool = True) -> Any:
    """`base` steered as the options say; `anytime` lets it watch the deadline itself."""
    from genpol.steering.session import make_select
    from genpol.steering.steered import Steered

    return Steered(
        base,
        value,
        config.num_candidates or CANDIDATES,
        make_select(config.temperature, config.margin),
        gate=config.gate,
        deadline=config.deadline_ms / 1e3 if config.deadline_ms and anytime else None,
    )


def make_observations(
    config: Serve, shapes: Mapping[str, tuple[int, ...]], others: bool
) -> Observations:
    """What turns robots' messages into observations of these shapes."""
    from robots.serving.observations import Observations

    embed = None
    if "language" in shapes:
        from offline.networks.language import embedder

        embed = embedder(config.language_model)
    return Observations(
        shapes, others=others, rename=renamed(config), embed=embed, prompt=config.prompt
    )
