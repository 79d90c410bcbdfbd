"""The options of `genpol serve`, by subject, and their checks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Ge, Gt, Le

from genpol.commands.chunk_options import CHUNKS, ChunkOptions, check_chunks
from offline.ranges import Finite, NotNegative, Positive, Seed, Size, Threads

PROXY_CANDIDATES, CANDIDATES = 8, 32
# The order of help: subject -> fields.
GROUPS: dict[str, tuple[str, ...]] = {
    "what most people need": (
        "policy", "upstream", "value", "edit", "watch", "num_candidates", "temperature", "host",
        "port", "api_key_file", "rename", "prompt", "trust",
    ),
    "choice": ("margin", "gate", "value_weights", "candidate_noise", "deadline_ms"),
    "chunks": CHUNKS,
    "observations and instruction": ("language_model", "env", "actions_of"),
    "newer versions": ("watch_every", "judge_by"),
    "recording": ("record", "record_fps", "record_limit_gb"),
    "access": ("api_key", "insecure"),
    "limits": (
        "rate_limit", "max_samples", "samples_per_turn", "max_message_mb", "max_connections",
    ),
    "other server": ("upstream_api_key_file", "parallel", "timeout"),
    "run": ("device", "threads", "seed"),
}  # fmt: skip
# What help shows for settings that are decided later.
DEFAULT_TEXTS = {
    "num_candidates": f"{CANDIDATES}; {PROXY_CANDIDATES} with --upstream; of edits as in training",
    "temperature": "1; 0 with edits",
}


@dataclass(frozen=True)
class Serve(ChunkOptions):
    """Serve a policy, steered or not, or steer another server's policy (openpi)."""

    policy: str | None = None
    """Policy to serve: a folder of `genpol clone` or `genpol train`, or robomimic:FILE, octo:DIR,
    lerobot:DIR or module:function. Default: none; --upstream is needed instead."""
    upstream: str | None = None
    """Other policy server, ws://HOST:PORT. It is asked for K answers and the best is passed on.
    Default: none; --policy is needed instead."""
    value: tuple[str, ...] = ()
    """Folders of `genpol value` or `genpol train` to choose by. Scores of several values are
    standardised over the candidates and summed with --value-weights. Default: none, proposals are
    not ranked."""
    value_weights: tuple[Finite, ...] = ()
    """Weight of each value. A negative one avoids what that value rates highly. Default: equal."""
    edit: str | None = None
    """Run of `genpol train --agent expo`. Its edits move the proposals, and its value chooses among
    proposals and edits. Default: nothing is edited."""
    watch: str | None = None
    """Run whose newer values and edits are taken up between episodes. It need not be there yet:
    until then --value or --edit choose, or nobody does. Default: none."""
    watch_every: Annotated[float, Gt(0), Le(1e6)] = 2.0
    """Seconds between two looks at --watch, above 0."""
    judge_by: str | None = None
    """Recorded episodes that newer versions of --watch are judged by. One that is worse on those
    that no version has learnt from is not served. Default: --record."""
    host: str = "127.0.0.1"
    """Address to listen on. Anything but loopback needs an API key, or --insecure."""
    port: Annotated[int, Ge(0), Le(65535)] = 8000
    """Port to listen on, 0 to 65535. 0 takes a free one."""
    num_candidates: Size | None = None
    """Proposals that are ranked for each decision (K), at least 1."""
    temperature: NotNegative | None = None
    """Temperature of the choice by softmax(value / temperature), in units of the value, at least 0.
    0 takes the best."""
    margin: NotNegative | None = None
    """Choose the best proposal only where it beats the first by this much, in units of the value,
    at least 0. This replaces --temperature. Default: off."""
    gate: NotNegative | None = None
    """Take the first proposal where the critics disagree by more than this, in units of the value,
    at least 0. Default: off."""
    deadline_ms: Annotated[float, Gt(0), Le(1e9)] | None = None
    """Milliseconds for a decision, above 0, waiting for its turn included. The proposals that have
    arrived by then are ranked. Default: no limit."""
    candidate_noise: NotNegative = 0.0
    """Candidates around the policy's proposal, for policies that always propose the same (ACT, an
    L1 or MSE head): the policy is asked once, and the others lie at most this far from its answer,
    in standard deviations of the data, at least 0. 0 asks the policy for all candidates."""
    parallel: Size = 8
    """Connections to --upstream, at least 1. Each has one request under way."""
    timeout: Annotated[float, Gt(0), Le(1e6)] = 30.0
    """Seconds to wait for an answer of --upstream, above 0."""
    upstream_api_key_file: str | None = None
    """File with the key that --upstream asks for. Default: $GENPOL_UPSTREAM_API_KEY, else none."""
    rename: tuple[str, ...] = ()
    """Observations that are called otherwise by the robot: ROBOT_KEY=TRAINED_KEY, such as
    observation/state=state. Default: none."""
    prompt: str | None = None
    """Instruction where the robot sends none. Default: none."""
    language_model: str = "shipped"
    """Sentence encoder for values and policies trained with language: "shipped", or a folder."""
    env: str | None = None
    """Environment whose actions a black box gives. Default: the environment of --value."""
    actions_of: str | None = None
    """Dataset that has the robot's actions, such as the demonstrations. It says their bounds where
    no value, --env or server does. Default: none."""
    record: str | None = None
    """Folder to record every episode in: observations, candidates, scores, and what was executed.
    It is a LeRobot v3 dataset. Default: nothing is recorded."""
    record_fps: Annotated[float, Gt(0), Le(1e4)] = 10.0
    """Actions per second of the robot, above 0. Recorded steps are dated by it, and films play at
    it."""
    record_limit_gb: Annotated[float, Gt(0), Le(1e6)] = 50.0
    """Size of --record in GiB, above 0. Nothing more is recorded once it is reached."""
    api_key_file: str | None = None
    """File with the key that clients must send. Default: $GENPOL_API_KEY, else none."""
    api_key: str | None = field(default=None, repr=False)
    """Key that clients must send, where every user of this machine can read it. Default:
    that of --api-key-file."""
    insecure: bool = False
    """Serve without an API key on an address that others can reach."""
    rate_limit: Positive = 1000.0
    """Requests per second from one address, and samples per second of one client, above 0. Further
    ones are answered with an error."""
    max_samples: Size = 1024
    """Samples that one request may ask for, at least 1."""
    samples_per_turn: Size = 128
    """Proposals that are drawn at once, at least 1. Clients take turns: whoever asks for more is
    served in slices of so many. Less is better for a slow policy with several clients."""
    max_message_mb: Annotated[float, Gt(0), Le(1e6)] = 16.0
    """Size of a message in MiB, above 0. Larger ones are answered with an error."""
    max_connections: Size = 128
    """Clients at the same time, at least 1."""
    trust: bool = False
    """Load checkpoints that are pickles. A pickle can run code when it is opened."""
    seed: Seed = 0
    """Seed of the noise."""
    device: str | None = None
    """Device of the networks: cpu, cuda, cuda:1, mps or auto. Default: auto, which is cuda where
    there is one, else cpu."""
    threads: Threads | None = None
    """Threads of PyTorch on the CPU, at least 1. Default: $OMP_NUM_THREADS, else one for small
    networks, and for images or wide layers as many as a measurement at the start finds faster."""


def check(config: Serve) -> None:
    """Check what needs no loading.

    Raises:
        InputError: names the flag.
    """
    from offline.errors import InputError
    from offline.option_check import check_numbers

    check_numbers(config)
    if (config.policy is None) == (config.upstream is None):
        raise InputError("expected either --policy or --upstream")
    chooses = bool(config.value or config.edit or config.watch)
    if upstream_of(config) and not chooses:
        raise InputError("--upstream needs --value, --edit or --watch to choose by")
    for name in ("num_candidates", "margin", "gate", "deadline_ms"):
        if getattr(config, name) is not None and not chooses:
            raise InputError(f"--{name.replace('_', '-')} needs --value to choose by")
    if config.candidate_noise and config.edit is not None:
        raise InputError("--edit moves the proposals itself: leave out --candidate-noise")
    if config.candidate_noise and not (config.value or config.watch):
        raise InputError("--candidate-noise needs --value or --watch to choose by")
    check_chunks(config, valued=chooses)
    if config.edit is not None and config.score == "windows":
        raise InputError("--edit moves chunks of the value's length: leave out --score windows")
    if config.edit is not None and config.value:
        raise InputError("--edit brings the value that it was trained with: leave out --value")
    if config.watch is not None and len(config.value) > 1:
        raise InputError("--watch replaces one value, not several: pass one --value at most")
    if config.judge_by is not None and config.watch is None:
        raise InputError("--judge-by judges what --watch takes up: pass --watch")
    if config.api_key is not None and config.api_key_file is not None:
        raise InputError("expected either --api-key-file or --api-key")
    if config.value_weights and len(config.value_weights) != len(config.value):
        raise InputError(
            f"{len(config.value_weights)} --value-weights for {len(config.value)} values"
        )


def renamed(config: Serve) -> dict[str, str]:
    """--rename as a map: the robot's keys -> the trained ones.

    Raises:
        InputError: an entry is no pair.
    """
    from offline.errors import InputError

    rename = {}
    for pair in config.rename:
        theirs, _, ours = pair.partition("=")
        if not (theirs and ours):
            raise InputError(f'--rename takes KEY=KEY, the robot\'s first; received "{pair}"')
        rename[theirs] = ours
    return rename


def upstream_of(config: Serve) -> str | None:
    """The other server: --upstream, or a --policy that is one."""
    if config.policy and config.policy.startswith(("ws://", "wss://")):
        return config.policy
    return config.upstream
