"""What `genpol train` may start from: a base policy, ours or a black box, and a critic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from genpol.commands.train import Train
    from genpol.commands.train_inputs import Inputs
    from offline.spec import ActionSpec
    from offline.types import Policy
    from offline.value import ValueFunction


def load_value(config: Train, spec: ActionSpec, env: str) -> ValueFunction | None:
    """The critic to start from, if one is named.

    Raises:
        InputError, SpecError: it is not there, or of another task or other actions.
    """
    if config.value is None:
        return None
    from genpol.agents.compatibility import require_same_actions
    from offline.errors import InputError
    from offline.penalties import lipschitz_bound
    from offline.value import ValueFunction

    value = ValueFunction.load(config.value)
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


def load_base(config: Train, inputs: Inputs, probe: Any) -> None:
    """Set `base`, and for someone else's policy `target_base` and `beside`.

    Raises:
        InputError, SpecError: it is not there, of another task, or cannot be used so.
    """
    from genpol.agents.compatibility import require_same_actions
    from genpol.agents.frozen_base import FrozenBase
    from genpol.policies import load_policy
    from offline.errors import InputError, SpecError
    from robots.load import is_black_box, load_black_box

    assert config.base is not None
    if not is_black_box(config.base):
        base = load_policy(config.base)
        if base.env is not None and base.env != inputs.env:
            raise SpecError(
                f"--base was trained for {base.env}, --env is {inputs.env}: pass a policy of this "
                "task"
            )
        require_same_actions(base.spec, inputs.spec, "--base")
        inputs.base = base
        return

    def load() -> Policy:
        return load_black_box(
            config.base or "",
            trust=config.trust,
            env_spec=probe.action_spec,
            action_chunk=config.action_chunk,
            language=probe.language,
        )

    if config.num_envs > 1:
        raise InputError(
            f"--base {config.base} may remember its episode, so it acts in one environment at a "
            f"time: pass --num-envs 1, not {config.num_envs}"
        )
    frozen = FrozenBase(load(), load(), inputs.spec)
    inputs.base, inputs.target_base = frozen, frozen.for_targets
    inputs.beside = frozen.aside
