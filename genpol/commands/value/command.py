"""`genpol value`: a critic that steers any policy of a task, or a value that steers an image
pipeline."""

from __future__ import annotations

from typing import Any

from genpol.commands.value.options import (
    CHANGEABLE,
    Value,
    of_images,
    require_one_world,
    with_step_reward,
)


def run(config: Value) -> None:
    """Learn, or go on with a run; leaves value/, checkpoints/, metrics.csv and summary.json.

    Raises:
        InputError: for what a user can mend.
        Interrupted: a signal stopped it.
    """
    from genpol.runs.quiet import hush

    hush()
    from genpol.runs.resuming import restored
    from offline.errors import InputError

    stored: dict[str, Any] = {}
    if config.resume is not None:
        config, stored = restored(config, "value", CHANGEABLE)
    elif not config.data and config.model is None:
        raise InputError(
            "--data (robots) or --model (images) is needed; `genpol value --help` lists the "
            "options."
        )
    require_one_world(config)
    config.check()
    if of_images(config):
        from genpol.commands.value.images import train_image_value

        train_image_value(config, stored)
    else:
        from genpol.commands.value.robots import train_critic

        train_critic(with_step_reward(config), stored)
