"""`genpol serve`: a (steered) policy, or a better choice of another server's answers, to robots."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from genpol.commands.chunk_options import chunks, policy_chunk
from genpol.commands.serve.options import (
    CANDIDATES,
    PROXY_CANDIDATES,
    Serve,
    check,
    renamed,
    upstream_of,
)

if TYPE_CHECKING:
    from genpol.deployed.watch import Watch
    from offline.spec import ActionSpec
    from offline.types import Policy
    from robots.recording.recorder import Recorder
    from robots.serving.observations import Observations
    from robots.serving.serve import Session
    from robots.serving.versions import Version


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
    from genpol.runs.device import pick_device
    from robots.serving.serve import PolicyServer, check_access

    check(config)
    api_key = server_key(config)
    check_access(config.host, api_key, config.insecure)  # before anything is loaded
    config = replace(config, device=pick_device(config.device))
    parts = proxy(config) if upstream_of(config) else policy(config)
    make_session, metadata, threads, recorder, watch = parts
    if watch is not None:
        watch.start()
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
        ended=partial(end, recorder, watch),
    )


def end(recorder: Recorder | None, watch: Watch[Version] | None) -> None:
    """Nobody is served any more."""
    from genpol.commands.serve.recording import finish

    if watch is not None:
        watch.close()
    if recorder is not None:
        finish(recorder)


Parts = tuple[Callable[[], "Session"], dict[str, Any], int, "Recorder | None", "Watch | None"]
"""What makes a connection's session, the server's metadata, threads, what records, what watches."""


def policy(config: Serve) -> Parts:
    """What serves a policy of our own."""
    from genpol.commands.serve.choosing import first_choice, make_watch, planned
    from genpol.commands.serve.recording import make_recorder
    from genpol.steering.overlap import overlapping
    from robots.serving.observations import merged
    from robots.serving.serve_policy import observed, policy_sessions
    from robots.serving.sessions import Limits

    choice, watched = first_choice(config), config.watch is not None
    value = choice.value

    def load() -> Policy:
        base = load_base(config, value)
        if watched:
            return base
        if value is None:
            return overlapping(base, chunks(config, None, base.spec.chunk)[1])
        return planned(config, choice, base)

    def observing(needed: Mapping[str, tuple[int, ...]]) -> Observations:
        known = observed(base)
        return make_observations(config, merged(needed, known or {}), known is None)

    served = load()
    base = served if value is None or watched else served.base  # type: ignore[attr-defined]
    observations, watch = observing(choice.obs_shapes), None
    if watched:
        watch = make_watch(config, choice, base.spec, observing)
    limits = Limits(config.max_samples, config.rate_limit, config.samples_per_turn)
    recorder = make_recorder(config, served.spec, value)
    listen = (lambda: None) if recorder is None else recorder.listener
    newest = None if watch is None else watch.newest
    made = policy_sessions(served, observations, load, config.seed, limits, listen, newest)
    return *made, threads_for(config, base, value), recorder, watch


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
    from genpol.commands.serve.choosing import first_choice, make_watch, planned
    from genpol.commands.serve.keys import upstream_key
    from genpol.commands.serve.recording import make_recorder
    from offline.errors import InputError
    from robots.serving.client import RemotePolicy, UnknownActions
    from robots.serving.per_client import noise
    from robots.serving.proxy import ProxySession
    from robots.serving.told import FEATURES

    choice = first_choice(config)
    value, url = choice.value, upstream_of(config)
    count = config.num_candidates or choice.candidates or PROXY_CANDIDATES
    if config.candidate_noise:
        count = 1  # the others lie around it
    assert url is not None
    known = action_spec(config, value)
    spec, key = known, upstream_key(config)
    fixed = value is not None and not config.watch

    def connect() -> RemotePolicy:
        return RemotePolicy.connect(
            url,
            env_spec=spec,
            api_key=key,
            timeout=config.timeout,
            parallel=min(config.parallel, count),
            chunk=policy_chunk(config, value) if fixed else None,
            deadline=config.deadline_ms / 1e3 if config.deadline_ms else None,
        )

    ours: dict[str, Any] = {"features": [*FEATURES, "running"]}
    try:
        probe = connect()
    except UnknownActions as error:
        raise InputError(f"{error}, or a dataset of the robot's (--actions-of)") from error
    with probe:
        metadata = {key: entry for key, entry in probe.metadata.items() if key != "genpol"}
        spec = probe.spec
    if fixed:  # else the length of an answer is the other server's affair
        said = spec.chunk if "genpol" in probe.metadata else 0
        if length := answer_length(config, value, said):
            ours["spec"] = spec.with_chunk(length).to_dict()
    if config.lookahead:
        ours["lookahead"] = config.lookahead
    generators = noise(config.seed)

    def observing(needed: Mapping[str, tuple[int, ...]]) -> Observations:
        return make_observations(config, needed, False)

    observations, watch = observing(choice.obs_shapes), None
    if config.watch:
        watch = make_watch(config, choice, spec, observing, anytime=False)
    newest = None if watch is None else watch.newest
    recorder = make_recorder(config, spec, value)

    def make_session() -> Session:
        return ProxySession(
            connect,
            lambda base: planned(config, choice, base, anytime=False),
            count,
            observations,
            next(generators),
            spec,
            None if recorder is None else recorder.listener(),
            newest,
        )

    return make_session, {**metadata, "genpol": ours}, threads_for(config, value), recorder, watch


def load_base(config: Serve, value: Any) -> Policy:
    """The policy to serve: a clone's folder or a black box."""
    from robots.policies.load import is_black_box, load_black_box

    assert config.policy is not None
    if is_black_box(config.policy):
        return load_black_box(
            config.policy,
            trust=config.trust,
            env_spec=action_spec(config, value),
            action_chunk=policy_chunk(config, value),
            language=config.prompt,
            device=config.device,
        )
    from genpol.agents.deploy import load_trained

    return load_trained(config.policy, device=config.device or "cpu")


def action_spec(config: Serve, value: Any) -> ActionSpec | None:
    """The environment's actions: those of --env, those that the value was trained on, or those of
    --actions-of; None where nothing says.

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
    if value is None:
        from genpol.commands.serve.choosing import spec_of_data

        return None if config.actions_of is None else spec_of_data(config.actions_of)
    spec = value.spec
    same = {name: getattr(spec, name) for name in ("names", "gripper", "gripper_open")}
    return ActionSpec.from_bounds(spec.low, spec.high, **same)


def answer_length(config: Serve, value: Any, upstream: int) -> int | None:
    """Actions of a proxy's answers; None where only the other server's first answer tells.

    Args:
        config: the options.
        value: scores them.
        upstream: actions of the other server's answers; 0 where it does not say.
    """
    if config.score == "windows" and not upstream:
        return config.execute and config.execute + config.lookahead
    critic, overlap = chunks(config, value, upstream or value.spec.chunk)
    return critic.spec.chunk if overlap is None else overlap.answer


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
