"""`genpol train` with a reward that comes from episodes: when that is so, and what it refuses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from genpol.agents.tuning_checks import require_value
from genpol.agents.tuning_config import TUNERS, TuningConfig
from offline.errors import InputError

if TYPE_CHECKING:
    from genpol.commands.train.options import Train

# What has no part in it, and what it is when it is not given.
IDLE: dict[str, Any] = {"offline_updates": 0, "start_steps": 0, "kl_cap": TuningConfig.kl_cap}


def by_episodes(config: Train, value: object = None) -> bool:
    """Whether an agent fine-tunes a policy by what its own episodes come to.

    Args:
        config: of the run. Such an agent learns from the value where one is named.
        value: the critic that was given in place of a name, or loaded.
    """
    return config.agent in TUNERS and config.value is None and value is None


def check_rounds(config: Train, *, data: bool = False, base: bool = False) -> None:
    """Check what needs no loading.

    Args:
        config: of a run that learns from episodes.
        data, base: whether one was given in place of a name.

    Raises:
        InputError: something is missing, or has no part in this.
    """
    from genpol.rounds.loop import require_rounds

    require_value(config.agent, config.steps > 0)
    agent = f"--agent {config.agent}"
    if config.base is None and not base:
        raise InputError(
            f"{agent} fine-tunes a policy, so it needs one: pass --base with a folder of "
            "`genpol clone`"
        )
    without = f"{agent} without --value learns from its own episodes"
    if config.data or data:
        raise InputError(
            f"{without}, in which --data has no part: drop it, or pass the --value that is to "
            "reward chunks at its observations"
        )
    for name, usual in IDLE.items():
        if (given := getattr(config, name)) != usual:
            raise InputError(
                f"{without}, in which --{name.replace('_', '-')} {given} has no part: drop it"
            )
    require_rounds(config)
