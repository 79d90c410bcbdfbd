"""How the parts of a `genpol train` are joined."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from genpol.commands.train.inputs import Inputs
    from genpol.commands.train.options import Train
    from genpol.rounds.loop import Rounds
    from genpol.training.session import Clock, Session, Trains
    from offline.learning.loop import Loop
    from offline.models.world_model import WorldModel


def make_loop(config: Train, inputs: Inputs, envs: Any) -> Loop:
    """Agent, replay, batches and environments, joined."""
    from genpol.agents.compiled import compile_networks
    from genpol.agents.imagining import make_imagination
    from genpol.agents.make import make_agent
    from genpol.agents.recorded_base import RecordedBase
    from genpol.runs.device import pick_device
    from offline.data.mixture import Mixture, Share
    from offline.data.recorded_rows import LEARNT
    from offline.data.replay import Replay
    from offline.learning.loop import Loop
    from robots.envs.make import layout_seed

    data, device = inputs.data, pick_device(config.device)
    recorded = isinstance(inputs.base, RecordedBase)
    least = (config.n_step or config.action_chunk) + 1  # of a replay into which nothing comes
    replay = Replay(
        config.num_envs * least if recorded else config.replay_capacity,
        config.action_chunk,
        inputs.spec,
        inputs.obs_shapes,
        config.discount,
        n_step=config.n_step,
        lanes=config.num_envs,
        folder=config.output / "replay",
        memory_limit=int(config.memory_gb * 2**30),
    )
    model = None if config.world_model == "none" else make_world_model(config, inputs)
    agent = (inputs.make_agent or make_agent)(
        config,
        spec=inputs.spec,
        obs_shapes=inputs.obs_shapes,
        obs_stats=inputs.obs_stats,
        env=inputs.env,
        base=inputs.base,
        target_base=inputs.target_base,
        value=inputs.value,
        offline_rows=0 if data is None or recorded else len(data),
        replay_slots=0 if recorded else replay.slots,
        device=device,
    )
    if data is not None and data.ids and hasattr(agent, "critic"):
        agent.critic.target.meta[LEARNT] = data.ids
    if config.compile:
        compile_networks(agent.networks(), device)
    imagination = None
    if model is not None:
        imagination = make_imagination(config, agent, model, replay, data, device)
    rest = 1 - config.imagined_fraction
    offline = 0.0 if data is None else config.offline_fraction
    shares = [
        Share(
            "online", replay, max(0.0, rest - offline), key_offset=0 if data is None else len(data)
        )
    ]
    if data is not None:
        shares = [Share("offline", data, offline), *shares]
    if imagination is not None:
        shares.append(Share("imagined", imagination, config.imagined_fraction))
    return Loop(
        agent,
        envs,
        Mixture(shares),
        replay,
        config,
        layouts=lambda episode: layout_seed("train", config.seed, episode),
        device=device,
        imagination=imagination,
        follow_statistics=config.follow_statistics and inputs.statistics_follow,
    )


def make_rounds(config: Train, inputs: Inputs, envs: Any) -> Rounds | None:
    """The loop of an agent that learns from episodes; None for any other.

    Raises:
        InputError: a policy that cannot be fine-tuned so, or fewer steps than a round may take.
    """
    from genpol.commands.train.rounds import by_episodes

    if not by_episodes(config, inputs.value) or inputs.make_agent is not None:
        return None
    from tqdm import tqdm

    from genpol.policies.chains import require_chain
    from genpol.policies.policy import ChunkPolicy
    from genpol.rounds.from_episodes import FromEpisodes
    from genpol.rounds.loop import Rounds
    from genpol.runs.device import pick_device
    from robots.envs.make import layout_seed

    require_chain(inputs.base)
    assert isinstance(inputs.base, ChunkPolicy)
    return Rounds(
        FromEpisodes(inputs.base.to(pick_device(config.device)), config),
        envs,
        config,
        layouts=lambda number: layout_seed("train", config.seed, number),
        limit=int(envs.get_attr("max_steps")[0]),
        say=tqdm.write,  # above the progress bar
    )


def make_session(
    config: Train, inputs: Inputs, loop: Trains, folder: Any, clock: Clock, bar: Any
) -> Session:
    """The run's session, with its evaluation layouts."""
    from genpol.agents.make import pretrain
    from genpol.runs.device import pick_device
    from genpol.training.evaluation import Evaluator
    from genpol.training.session import Session
    from robots.envs.make import layout_seed

    data = inputs.data
    evaluator = None
    if inputs.make_env is not None:
        evaluator = Evaluator(
            inputs.make_env,
            [layout_seed("evaluate", config.seed, i) for i in range(config.eval_episodes)],
            noise_seed=config.seed,
            has_success=inputs.has_success,
            beside=inputs.beside,
        )
    return Session(
        loop,
        folder,
        config,
        evaluator,
        clock=clock,
        pretrain=None
        if data is None
        else lambda log, stop: pretrain(
            loop.agent,
            data,
            config,
            log,
            stop,
            clone=inputs.base is None,
            device=pick_device(config.device),
        ),
        videos=config.videos,
        sources={"data": data} if data is not None and data.streamed else {},
        bar=bar,
    )


def make_world_model(config: Train, inputs: Inputs) -> WorldModel:
    """What `--world-model` names, of what the run observes.

    Raises:
        InputError: it cannot predict these observations, or a rule is not known.
    """
    from genpol.agents.imagining import make_dynamics
    from offline.errors import InputError
    from offline.models.world_model import StateLayout
    from robots.envs.known_rules import known_rules
    from robots.envs.simulator_model import SimulatorModel

    layout, env = StateLayout.of(inputs.obs_shapes), inputs.env or ""
    if config.world_model == "simulator":
        return SimulatorModel(
            env,
            layout,
            inputs.spec,
            reward=config.reward,
            reward_scale=config.reward_scale,
            discount=config.discount,
        )
    if "reward" in config.known and config.reward != "dataset":
        raise InputError(
            f"--known reward is the environment's own reward, --reward {config.reward} is not: "
            "pass --reward dataset, or let the model learn it"
        )
    rules = known_rules(env, config.known, layout, inputs.spec, reward_scale=config.reward_scale)
    return make_dynamics(
        config,
        layout,
        inputs.spec.dim,
        reward=rules.reward,
        terminated=rules.terminated,
    )
