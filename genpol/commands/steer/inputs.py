"""What `genpol steer` loads: value functions, policies, the instruction, held-out observations."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from genpol.commands.steer.options import Steer
    from offline.types import Critic, Obs, Policy


def load_values(config: Steer) -> tuple[Critic, str]:
    """The value function, composed where there are several, and the environment's name.

    Raises:
        InputError: unknown environment, or a value of another task.
    """
    from genpol.steering.compose import Composed
    from offline.critics.value import ValueFunction
    from offline.errors import InputError
    from robots.envs.make import check_env_name

    values = [ValueFunction.load(folder, device=config.device or "cpu") for folder in config.value]
    env_name = config.env or values[0].env
    if env_name is None:
        raise InputError("--env is needed: the value's dataset did not name its environment")
    check_env_name(env_name)
    if not config.any_task:
        for value in values:
            value.require_env(env_name)
    if len(values) == 1:
        return values[0], env_name
    weights = list(config.value_weights) or [1.0 / len(values)] * len(values)
    return Composed(values, weights), env_name


def load_policy(
    text: str, config: Steer, env: Any, language: str | None, chunk: int | None
) -> Policy:
    """A clone's folder or a black box, for the environment's actions; of a black box that is asked
    for chunks of no length in particular, all that it proposes."""
    from genpol.agents.deploy import load_trained
    from robots.policies.load import is_black_box, load_black_box

    if not is_black_box(text):
        return load_trained(text, device=config.device or "cpu")
    return load_black_box(
        text,
        trust=config.trust,
        env_spec=env.action_spec,
        action_chunk=chunk,
        language=language,
        device=config.device,
    )


def learn_chunk(policy: Any, new_env: Callable[[], Any]) -> None:
    """Ask another server once, so that its policy's spec says how long its chunks are."""
    from genpol.steering.session import first_observations

    if hasattr(policy, "sample_anew"):
        policy.sample_anew(first_observations(new_env, [0])[0], 1, None)


def require_plan(filtered: Policy | None, plan: int) -> None:
    """Check that the clone of --filtered proposes chunks as long as those that are compared.

    Raises:
        InputError: it does not.
    """
    from offline.errors import InputError

    if filtered is not None and filtered.spec.chunk < plan:
        raise InputError(
            f"--filtered proposes chunks of H={filtered.spec.chunk}, and {plan} actions are "
            "executed of each: clone it with a longer --action-chunk, or pass --score first"
        )


class WithLanguage:
    """An environment whose observations carry the embedding of one instruction."""

    def __init__(self, env: Any, embedding: Any) -> None:
        self.env, self.embedding = env, embedding

    def __getattr__(self, name: str) -> Any:
        return getattr(self.env, name)

    def reset(self, **options: Any) -> Any:
        obs, info = self.env.reset(**options)
        return {**obs, "language": self.embedding}, info

    def step(self, action: Any) -> Any:
        obs, *rest = self.env.step(action)
        return ({**obs, "language": self.embedding}, *rest)


def embed(language: str | None, values: Any, policy: Any, config: Steer) -> Any:
    """The instruction's embedding where the value or the policy observes one, else None."""
    from offline.errors import InputError

    wanted = any(
        "language" in (getattr(source, "obs_shapes", None) or {}) for source in (values, policy)
    )
    if not wanted:
        return None
    if language is None:
        raise InputError("--instruction is needed: the value or the policy was trained with one")
    from offline.networks.language import embed as embed_text

    return embed_text(language, model=config.language_model)


def tuned(config: Steer, policy: Policy, values: Critic) -> dict[str, Any]:
    """Temperature and gate chosen on the held-out episodes of a dataset, never on the arms."""
    from genpol.steering.tuning import tune
    from robots.datasets.open import open_dataset

    assert config.tune is not None
    pictures = {
        key: shape[0]
        for part in (values, policy)
        for key, shape in (getattr(part, "obs_shapes", None) or {}).items()
        if len(shape) == 3
    }
    size = next(iter(pictures.values()), None)  # one of all: steering draws them square
    tuning = tune(
        policy,
        values,
        held_out_observations(open_dataset(config.tune, images=[*pictures], image_size=size)),
        num_candidates=config.num_candidates,
        seed=config.seed,
    )
    print(f"tuned on held-out data: temperature {tuning.temperature:g}, gate {tuning.gate}")
    if tuning.note:
        print(tuning.note)
    return {"temperature": tuning.temperature, "gate": tuning.gate}


def held_out_observations(episodes: Any, limit: int = 512) -> Obs:
    """Observations (N, ...) spread over the episodes of the "valid" split, or over all."""
    import numpy as np
    import torch

    indices = episodes.splits.get("valid", np.arange(len(episodes)))
    if len(indices) == 0:
        indices = np.arange(len(episodes))
    each = max(1, limit // len(indices))
    parts: dict[str, list[Any]] = {}
    for index in indices[:limit]:
        episode = episodes[int(index)]
        steps = np.unique(np.linspace(0, len(episode) - 1, each).astype(int))
        for key, values in episode.obs.items():
            parts.setdefault(key, []).append(values[steps])
    return {key: torch.from_numpy(np.concatenate(values)) for key, values in parts.items()}
