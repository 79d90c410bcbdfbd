"""The options of `genpol improve`, by subject, and their checks."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Le

from offline.ranges import Count, NotNegative, Positive, Seed, Size, Threads

Learn = Literal["value", "bestofn", "expo"]
# The order of help: subject -> fields.
GROUPS: dict[str, tuple[str, ...]] = {
    "what most people need": (
        "upstream", "policy", "data", "success", "value", "record", "every", "learn", "steps",
        "action_chunk", "host", "port", "api_key_file", "rename", "output",
    ),
    "serving": (
        "num_candidates", "temperature", "prompt", "env", "record_fps", "trust", "serve_options",
    ),
    "learning": (
        "recorded_weight", "obs_keys", "image_keys", "learn_options", "seed", "niceness",
        "device", "threads",
    ),
    "run": ("episodes",),
}  # fmt: skip
# What help shows for settings that are decided later.
DEFAULT_TEXTS = {
    "record": "recording/ in --output",
    "num_candidates": "8 with --upstream, 32 with --policy; of edits as in training",
    "temperature": "1; 0 with edits",
}


@dataclass(frozen=True)
class Improve:
    """Serve a policy, record what it does, learn from that, and swap, all at once.

    A robot talks to it as to any policy server, and says how each episode ended ({"success": true}
    or false). After every --every such episodes a value is learnt from them in the background, and
    is served from the next episode on. Stop it at any moment; the same command goes on.
    """

    upstream: str | None = None
    """Other policy server, ws://HOST:PORT. Its weights stay as they are. Default: none; --policy is
    needed instead."""
    policy: str | None = None
    """Policy to serve: a folder of `genpol clone` or `genpol train`, or robomimic:FILE, octo:DIR,
    lerobot:DIR or module:function. Default: none; --upstream is needed instead."""
    data: tuple[str, ...] = ()
    """Demonstrations that are learnt from beside the robot's own episodes. Default: none."""
    success: tuple[str, ...] = ()
    """Who says which episodes of --data succeeded, one for all of them or one for each, as in
    `genpol value`: all, last-reward, a FILE.csv or module:function. Default: as the data says."""
    value: Path | None = None
    """Folder of `genpol value` to choose by until something has been learnt. Default: none, the
    policy is served as it is."""
    record: Path | None = None
    """Folder of the recording. An earlier recording is learnt from and goes on."""
    every: Count = 20
    """Episodes with a label after which the next version is learnt, at least 1."""
    learn: Learn = "value"
    """What is learnt: a critic of the episodes (value); a critic whose targets are the best of the
    recorded candidates (bestofn); that and edits of the candidates (expo)."""
    steps: Count = 5000
    """Gradient steps for each version, at least 1."""
    action_chunk: Size | None = None
    """Actions of a chunk (H) that is scored, at least 1. Default: as many as the robot mostly
    executes of an answer."""
    host: str = "127.0.0.1"
    """Address to listen on. Anything but loopback needs an API key, or
    --serve-options=--insecure."""
    port: Annotated[int, Ge(0), Le(65535)] = 8000
    """Port to listen on, 0 to 65535. 0 takes a free one."""
    api_key_file: str | None = None
    """File with the key that robots must send. Default: $GENPOL_API_KEY, else none."""
    rename: tuple[str, ...] = ()
    """Observations that are called otherwise by the robot: ROBOT_KEY=DATA_KEY, such as
    observation/state=state. Default: none."""
    output: Path = Path("runs/improve")
    """Run folder: what has been learnt, logs, and index.html, the page of success by version."""
    num_candidates: Size | None = None
    """Proposals for each decision (K), at least 1."""
    temperature: NotNegative | None = None
    """Temperature of the choice by softmax(value / temperature), in units of the value, at least 0.
    0 takes the best."""
    prompt: str | None = None
    """Instruction where the robot sends none. Default: none."""
    env: str | None = None
    """Environment whose actions the policy gives. Default: as the policy, --value or --data say."""
    record_fps: Positive = 10.0
    """Actions per second of the robot, above 0."""
    trust: bool = False
    """Load checkpoints that are pickles. A pickle can run code when it is opened."""
    serve_options: str = ""
    """Further options of `genpol serve`, as one text: --serve-options="--deadline-ms 100 --gate 3".
    Default: none."""
    recorded_weight: Positive = 1.0
    """Share of every batch that the robot's episodes give, above 0; that of each --data is 1."""
    obs_keys: tuple[str, ...] = ()
    """Observations to learn from. Default: all vectors."""
    image_keys: tuple[str, ...] = ()
    """Cameras to learn from. Default: none."""
    learn_options: str = ""
    """Further options of `genpol value` (or `genpol train`, as --learn says), as one text:
    --learn-options="--critic iql --batch-size 128". Default: none."""
    seed: Seed = 0
    """Seed of learning and of the server's noise."""
    niceness: Annotated[int, Ge(0), Le(19)] = 19
    """How much learning stands back behind other programs, 0 to 19."""
    device: str | None = None
    """Device of the networks: cpu, cuda, cuda:1, mps or auto. Default: auto, which is cuda where
    there is one, else cpu."""
    threads: Threads = 1
    """Threads of PyTorch for learning, at least 1."""
    episodes: Count | None = None
    """Episodes with a label after which it ends by itself, once the last version is learnt, at
    least 1. Default: never."""


def check(config: Improve) -> None:
    """Check what needs no loading.

    Raises:
        InputError: names the flag.
    """
    from offline.errors import InputError
    from offline.option_check import check_numbers

    check_numbers(config)
    if (config.policy is None) == (config.upstream is None):
        raise InputError("expected either --policy or --upstream")
    if len(config.success) not in (0, 1, len(config.data)) or (config.success and not config.data):
        raise InputError(
            f"{len(config.success)} --success for {len(config.data)} --data: pass one for each"
        )
    for flag, text in (
        ("--serve-options", config.serve_options),
        ("--learn-options", config.learn_options),
    ):
        try:
            words = shlex.split(text)
        except ValueError as error:
            raise InputError(f"{flag} cannot be read as words: {error}") from None
        if words and not words[0].startswith("-"):
            raise InputError(
                f'{flag} takes options as one text, such as "--seed 3"; received "{words[0][:40]}"'
            )


def recording_of(config: Improve) -> Path:
    """Where episodes are recorded."""
    return config.output / "recording" if config.record is None else config.record.expanduser()
