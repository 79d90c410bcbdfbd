"""The commands that `genpol improve` runs, as a user would type them."""

from __future__ import annotations

import shlex
from pathlib import Path

from genpol.commands.improve.options import Improve, recording_of
from genpol.improving.learner import Lesson
from genpol.improving.versions import CURRENT

# What the next server imports before it is needed.
MODULES = (
    "torch", "genpol.commands.serve.command", "genpol.commands.serve.choosing",
    "genpol.deployed.watch", "genpol.steering.session", "robots.serving.serve",
    "robots.recording.recorder",
    "robots.serving.proxy", "robots.serving.client", "offline.critics.value",
)  # fmt: skip


def serve_words(config: Improve, port: int) -> list[str]:
    """`genpol serve` that records, and watches what is learnt."""
    words = ["serve", "--host", config.host, "--port", str(port)]
    words += ["--record", str(recording_of(config)), "--record-fps", f"{config.record_fps:g}"]
    words += ["--watch", str(config.output / CURRENT)]
    words += ["--seed", str(config.seed)]
    for flag, given in (
        ("--upstream", config.upstream),
        ("--policy", config.policy),
        ("--num-candidates", config.num_candidates),
        ("--temperature", config.temperature),
        ("--prompt", config.prompt),
        ("--env", config.env),
        ("--api-key-file", config.api_key_file),
        ("--device", config.device),
    ):
        if given is not None:
            words += [flag, str(given)]
    if config.env is None and config.data:
        words += ["--actions-of", config.data[0]]
    if config.rename:
        words += ["--rename", *config.rename]
    if config.trust:
        words.append("--trust")
    return [*words, *shlex.split(config.serve_options)]


def lessons(config: Improve, chunk: int) -> list[Lesson]:
    """The commands that a version is learnt by, in order.

    Args:
        config: the options.
        chunk: H.
    """
    common = ["--seed", str(config.seed), "--threads", str(config.threads)]
    common += ["--wandb", "disabled", "--action-chunk", str(chunk)]
    common += ["--data", str(recording_of(config)), *config.data]
    if config.data:
        common += ["--data-weights", f"{config.recorded_weight:g}", *("1" for _ in config.data)]
    if config.success:  # the robot's own episodes say it themselves
        said = config.success if len(config.success) > 1 else config.success * len(config.data)
        common += ["--success", "data", *said]
    for flag, keys in (("--obs-keys", config.obs_keys), ("--image-keys", config.image_keys)):
        if keys:
            common += [flag, *keys]
    if config.device is not None:
        common += ["--device", config.device]
    more = shlex.split(config.learn_options)
    if config.learn == "value":
        return [
            Lesson("value", "value", [*common, "--steps", str(config.steps), *more], ("value",))
        ]
    words = ["--agent", config.learn, "--base", "recorded", "--steps", "0"]
    words += ["--offline-updates", str(config.steps), "--checkpoint-every", "500"]
    gives = ("value",) if config.learn == "bestofn" else ("value", "edit")
    return [Lesson("train", "train", [*words, *common, *more], gives)]


def first_served(config: Improve) -> Path | None:
    """What is watched before anything has been learnt."""
    return None if config.value is None else config.value.expanduser().resolve()
