"""What `genpol train` loads: environments, data, the base policy and the critic to start from."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from genpol.commands.train.options import Train
    from offline.critics.value import ValueFunction
    from offline.data.episodes import Episode, Episodes
    from offline.data.mixed_transitions import Data
    from offline.learning.agent import Agent
    from offline.networks.normalizer import ObsStats
    from offline.spec import ActionSpec
    from offline.types import Policy

OBSERVED = 2000  # random steps that observations are standardised by where there is no data
IMAGE_SIZE = 64  # of cameras that neither the data nor a policy says the size of


@dataclass(frozen=True)
class Given:
    """Objects that stand in for what options name; of those that are None, the options count."""

    env: Callable[[], Any] | None = None
    """Makes one environment; see `robots.envs.make.make_env`."""
    data: Episodes | Sequence[Episode] | None = None
    base: Policy | None = None
    value: ValueFunction | None = None
    make_agent: Callable[..., Agent] | None = None
    """Called as `genpol.agents.make.make_agent` is."""


@dataclass
class Inputs:
    """Everything that a training run is made of, checked against each other."""

    env: str | None
    """None where neither an option nor the data names it, which takes --steps 0."""
    spec: ActionSpec
    """Of chunks of H actions, the environment's bounds mapped to [-1, 1]."""
    obs_shapes: dict[str, tuple[int, ...]]
    """Of the observations that are learnt from."""
    data: Data | None
    base: Policy | None
    target_base: Policy | None
    value: ValueFunction | None
    has_success: bool
    make_env: Callable[[], Any] | None
    """One environment, for evaluation; None where it cannot be made and none is needed."""
    make_envs: Callable[[], Any]
    """Those that training acts in: a vector environment."""
    beside: Callable[[], AbstractContextManager[None]] = nullcontext
    """Entered during evaluations."""
    make_agent: Callable[..., Agent] | None = None
    """Of an agent of one's own; see `Given`."""
    note: str | None = None
    """Why there is no evaluation."""
    observed: ObsStats | None = None
    """Mean and std of the observations under random actions, where nothing else tells them."""

    @property
    def obs_stats(self) -> ObsStats | None:
        """Mean and std of the observations: the data's, those that --base was trained with, or
        those seen under random actions."""
        if self.data is not None:
            return self.data.obs_stats
        normalizer = getattr(getattr(self.base, "encoder", None), "normalizer", None)
        if normalizer is None:
            return self.observed
        sizes = [normalizer.shapes[key][0] for key in normalizer.keys]
        moments = zip(normalizer.mean.split(sizes), normalizer.std.split(sizes), strict=True)
        return {
            key: (mean.cpu().numpy(), std.cpu().numpy())
            for key, (mean, std) in zip(normalizer.keys, moments, strict=True)
        }

    @property
    def statistics_follow(self) -> bool:
        """Whether observations are standardised by what random actions showed, which is all that
        there is at first."""
        return self.observed is not None and self.value is None

    @property
    def fingerprint(self) -> str | None:
        """Tells whether the data is the one that a run began with."""
        if self.data is None:
            return None
        digest = hashlib.sha256(f"{len(self.data)} {self.data.indices.tolist()}".encode())
        for _, moments in sorted(self.data.obs_stats.items()):
            for array in moments:
                digest.update(array.tobytes())
        digest.update(repr((self.spec.mean, self.spec.std)).encode())
        return digest.hexdigest()[:16]


def load_inputs(config: Train, given: Given | None = None) -> Inputs:
    """Load what the options name, or take what is given, the cheap checks first.

    Raises:
        InputError: one of them is missing, faulty, or does not fit the others.
    """
    from genpol.agents.config import RECORDED
    from genpol.agents.tuning_config import TUNERS
    from genpol.commands.train.recorded import NoEnvs, RecordedEnv, require_proposals
    from genpol.commands.train.rounds import by_episodes, check_rounds
    from offline.errors import InputError
    from offline.models.world_model import StateLayout
    from robots.envs.make import check_env_name, make_env

    given = given or Given()
    if by_episodes(config, given.value):
        check_rounds(config, data=given.data is not None, base=given.base is not None)
    stored = bool(config.data) or given.data is not None
    alone = config.steps == 0 and stored  # it learns from stored data
    if config.env is not None and given.env is None and not alone:
        check_env_name(config.env)
    episodes = None
    if given.data is not None:
        from robots.datasets.open import as_episodes

        episodes = as_episodes(given.data, "data")
    elif config.data:
        from genpol.commands.opened import opened

        episodes = opened(config.data, config)
    env = config.env or (None if episodes is None else episodes.env)
    if env is None and not alone:
        raise InputError("--env is needed: the environment to act in, such as metaworld/push-v3")
    images = _image_sizes(config, episodes)

    def new_env() -> Any:
        return make_env(
            given.env or env or "",
            max_steps=config.max_steps,
            image_keys=images or None,
            distractors=config.distractors,
        )

    note, recorded = None, config.base == RECORDED and given.base is None
    if recorded:
        require_proposals(episodes)
    try:
        if recorded:
            raise InputError("the policy of --base recorded is not here")
        if env is None:
            raise InputError("--data names no environment")
        probe = new_env()
    except InputError as error:
        named = given.env is not None or config.env not in (None, getattr(episodes, "env", None))
        if episodes is None or not alone or named and not recorded or _needs_env(config):
            raise
        probe, note = RecordedEnv(episodes), f"no evaluation: {error}"
    rewarded = config.agent not in TUNERS or not alone
    if rewarded:
        _check_success(config, probe, env)
    if config.videos:
        probe.reset(seed=0)
        probe.render()  # refuses what cannot be drawn, before anything is trained
    spec = dataclasses.replace(
        probe.action_spec,
        scale="bounds",
        mask=(True,) * probe.action_spec.dim,
        chunk=config.action_chunk,
    )
    data = None
    if episodes is not None:
        data, spec = _read(config, episodes, probe, spec, env, rewarded, recorded)
    inputs = Inputs(
        env=env,
        spec=spec,
        obs_shapes={},
        data=data,
        base=None,
        target_base=None,
        value=load_value(config, spec, env, given.value),
        has_success=probe.has_success,
        make_env=None if note else new_env,
        make_envs=lambda: (
            NoEnvs(config.num_envs) if note else _vector_env(given.env or env or "", config, images)
        ),
        note=note,
        make_agent=given.make_agent,
    )
    if config.base is not None or given.base is not None:
        load_base(config, inputs, probe, given.base)
    inputs.obs_shapes = _obs_shapes(config, inputs, probe)
    if config.world_model != "none":
        StateLayout.of(inputs.obs_shapes)  # refuses images, before anything takes time
    if inputs.obs_stats is None:
        inputs.observed = _observe(probe, inputs.obs_shapes, config.seed)
    probe.close()
    return inputs


def _observe(probe: Any, shapes: Mapping[str, tuple[int, ...]], seed: int) -> ObsStats:
    """Mean and std of the vectors observed in `OBSERVED` steps of random actions."""
    import numpy as np

    from robots.envs.make import layout_seed

    rng = np.random.default_rng(layout_seed("observe", seed, 0))
    low, high = np.asarray(probe.action_spec.low), np.asarray(probe.action_spec.high)
    keys = [key for key, shape in shapes.items() if len(shape) == 1]
    seen: dict[str, list[np.ndarray]] = {key: [] for key in keys}
    over, episode = True, 0
    for _ in range(OBSERVED):
        if over:
            obs, _ = probe.reset(seed=layout_seed("observe", seed, episode))
            over, episode = False, episode + 1
        else:
            obs, _, ended, truncated, info = probe.step(rng.uniform(low, high))
            over = ended or truncated or info["success"]
        for key in keys:
            seen[key].append(obs[key])
    return {key: (np.mean(rows, 0), np.std(rows, 0)) for key, rows in seen.items()}


def _image_sizes(config: Train, episodes: Any) -> dict[str, int]:
    """Cameras to add to the environment: key -> height and width."""
    if not config.image_keys:
        return {}
    from offline.errors import InputError
    from offline.naming import own_names

    keys = config.image_keys
    if episodes is not None:
        keys = own_names(keys, episodes.obs_shapes, "the dataset")
    sizes = {}
    for key in keys:
        shape: tuple[int, ...] = (IMAGE_SIZE, IMAGE_SIZE, 3)
        if episodes is not None:
            shape = episodes.obs_shapes[key]
        if len(shape) != 3 or shape[0] != shape[1]:
            raise InputError(
                f'"{key}" is {shape} in the dataset, expected a square image: pass --image-size '
                f"{IMAGE_SIZE}"
            )
        sizes[key] = shape[0]
    return sizes


def _needs_env(config: Train) -> bool:
    """Whether something was asked for that only an environment can do."""
    return bool(config.videos or config.distractors or config.world_model == "simulator")


def _check_success(config: Train, probe: Any, env: str | None) -> None:
    from offline.errors import InputError

    if config.reward != "dataset" and not probe.has_success:
        raise InputError(
            f'"{env}" does not say when its task is achieved, which --reward {config.reward} '
            "needs: pass --reward dataset for the environment's own rewards"
        )


def _read(
    config: Train,
    episodes: Any,
    probe: Any,
    spec: ActionSpec,
    env: str | None,
    rewarded: bool,
    recorded: bool,
) -> tuple[Data, ActionSpec]:
    """The dataset's transitions, with rewards where they are needed, and the spec with its
    statistics."""
    from offline.data.joined import by_source, sources_of
    from offline.data.mixed_transitions import transitions_of
    from offline.data.recorded_rows import own_split
    from offline.data.training_data import check_actions, check_dataset_fits, wanted_keys

    keys = wanted_keys(episodes, config.obs_keys, config.image_keys)
    if env is not None:
        check_dataset_fits(episodes, env, space_shapes(probe), probe.action_spec, keys)
    check_actions(episodes, probe.action_spec)
    known = episodes.spec
    spec = dataclasses.replace(spec, mean=known.mean, std=known.std, p01=known.p01, p99=known.p99)
    kept = None
    if any(hasattr(source.episodes, "decisions") for source in sources_of(episodes)):
        kept, _ = by_source(episodes, own_split)  # what --watch judges by is never learnt from
    data = transitions_of(
        episodes,
        config.action_chunk,
        indices=kept,
        spec=spec,
        discount=config.discount,
        reward=config.reward if rewarded else "none",
        reward_scale=config.reward_scale,
        n_step=config.n_step,
        obs_keys=keys,
        memory_limit=int(config.memory_gb * 2**30),
        proposals=config.num_candidates if recorded else 0,
    )
    return data, spec


def space_shapes(env: Any) -> dict[str, tuple[int, ...]]:
    """Shape of each observation of an environment."""
    return {key: tuple(space.shape) for key, space in env.observation_space.spaces.items()}


def _obs_shapes(config: Train, inputs: Inputs, probe: Any) -> dict[str, tuple[int, ...]]:
    """What is learnt from, in the environment, the data, the base policy and the critic alike."""
    from genpol.agents.compatibility import require_observations
    from offline.errors import InputError, did_you_mean

    offered = space_shapes(probe)
    if inputs.data is not None:
        shapes = dict(inputs.data.obs_shapes)
    elif not config.obs_keys and (known := getattr(inputs.base, "obs_shapes", None)):
        shapes = dict(known)
        require_observations(offered, shapes, "--base")
    else:
        vectors = config.obs_keys or [k for k, shape in offered.items() if len(shape) == 1]
        for key in (*vectors, *config.image_keys):
            if key not in offered:
                hint = did_you_mean(key, offered)
                raise InputError(f'{inputs.env} has no observation "{key}".{hint}')
        shapes = {key: offered[key] for key in sorted({*vectors, *config.image_keys})}
    if not shapes:
        raise InputError(
            f"{inputs.env} has no one-dimensional observations: name its images with --image-keys"
        )
    if config.distractors and "distractors" not in shapes:
        raise InputError(
            "--distractors adds an observation that is not among those learnt from, which are "
            f"{', '.join(shapes)}: drop it, or learn without --data, --base and --obs-keys"
        )
    for flag, part in (("--base", inputs.base), ("--value", inputs.value)):
        require_observations(shapes, getattr(part, "obs_shapes", None) or {}, flag)
    return shapes


def _vector_env(env: str | Callable[[], Any], config: Train, images: dict[str, int]) -> Any:
    from robots.envs.vector_env import make_vector_env

    return make_vector_env(
        env,
        config.num_envs,
        max_steps=config.max_steps,
        image_keys=images or None,
        distractors=config.distractors,
        asynchronous=config.env_workers > 0,
        at_work=config.env_workers,
    )


def load_value(
    config: Train, spec: ActionSpec, env: str | None, given: ValueFunction | None = None
) -> ValueFunction | None:
    """The critic to start from, if one is named or given; a given one is copied.

    Raises:
        InputError, SpecError: it is not there, or of another task or other actions.
    """
    if config.value is None and given is None:
        return None
    from genpol.agents.compatibility import require_same_actions
    from offline.critics.penalties import lipschitz_bound
    from offline.critics.value import ValueFunction
    from offline.errors import InputError

    value = copy.deepcopy(given) if given is not None else ValueFunction.load(config.value or "")
    if env is not None:
        value.require_env(env)
    require_same_actions(value.spec, spec, "--value")
    bound, wanted = value.architecture["lipschitz_bound"], lipschitz_bound(config)
    if bound != wanted:  # its layers are other ones
        fitting = f"with --lipschitz spectral --lipschitz-bound {bound}"
        raise InputError(
            f"--value has {'layers without a bound' if bound is None else f'the bound {bound}'}, "
            f"--lipschitz {config.lipschitz} needs {'none' if wanted is None else wanted}: go on "
            f"{'without --lipschitz spectral' if bound is None else fitting}, or drop --value"
        )
    normed = value.architecture["layer_norm"]
    if bound is None and normed != config.layer_norm:
        raise InputError(
            f"--value has layers {'with' if normed else 'without'} LayerNorm: go on with "
            f"{'--layer-norm' if normed else '--no-layer-norm'}, or drop --value"
        )
    return value


def load_base(config: Train, inputs: Inputs, probe: Any, given: Policy | None = None) -> None:
    """Set `base`, and for someone else's policy `target_base` and `beside`; a given one is copied.

    Raises:
        InputError, SpecError: it is not there, of another task, or cannot be used so.
    """
    from genpol.agents.compatibility import require_same_actions
    from genpol.agents.config import RECORDED
    from genpol.agents.frozen_base import FrozenBase
    from genpol.agents.recorded_base import RecordedBase
    from genpol.policies.policy import ChunkPolicy, load_policy
    from genpol.runs.device import pick_device
    from offline.errors import InputError, SpecError
    from robots.policies.load import is_black_box, load_black_box

    named = config.base or ""
    if named == RECORDED and given is None:
        inputs.base = RecordedBase(inputs.spec)
        return
    ours = isinstance(given, ChunkPolicy) if given is not None else not is_black_box(named)
    if ours:
        base = copy.deepcopy(given) if isinstance(given, ChunkPolicy) else load_policy(named)
        if base.env is not None and inputs.env is not None and base.env != inputs.env:
            raise SpecError(
                f"--base was trained for {base.env}, --env is {inputs.env}: pass a policy of this "
                "task"
            )
        require_same_actions(base.spec, inputs.spec, "--base")
        inputs.base = base
        return

    def load() -> Policy:
        if given is not None:
            return copy.deepcopy(given)
        return load_black_box(
            named,
            trust=config.trust,
            env_spec=probe.action_spec,
            action_chunk=config.action_chunk,
            language=probe.language,
            device=pick_device(config.device),
        )

    if config.num_envs > 1:
        raise InputError(
            f"--base {named or type(given).__name__} may remember its episode, so it acts in one "
            f"environment at a time: pass --num-envs 1, not {config.num_envs}"
        )
    frozen = FrozenBase(load(), load(), inputs.spec)
    inputs.base, inputs.target_base = frozen, frozen.for_targets
    inputs.beside = frozen.aside
