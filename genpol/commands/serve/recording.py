"""`genpol serve --record`: what is recorded, where, and by which process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genpol.commands.serve.options import Serve, renamed, upstream_of

if TYPE_CHECKING:
    from offline.spec import ActionSpec
    from robots.recording.recorder import Recorder


def make_recorder(config: Serve, spec: ActionSpec, values: Any) -> Recorder | None:
    """What records the conversations, if the options ask for it; its folder is locked.

    Args:
        config: the options.
        spec: of the served actions.
        values: a value, several composed, or None.

    Raises:
        InputError: the folder is in use, or holds something else.
    """
    if config.record is None:
        return None
    from genpol.runs.lock import FolderLock
    from robots.recording.recorder import Recorder

    each = getattr(values, "critics", [values])
    env = config.env or next((e for v in each if (e := getattr(v, "env", None))), None)
    served = {
        "policy": upstream_of(config) or config.policy,
        "value": list(config.value),
        "num_candidates": config.num_candidates,
    }

    def lock(folder: Path) -> Callable[[], None]:
        return FolderLock(folder, "pass another --record").release

    return Recorder(
        config.record,
        spec,
        config.record_fps,
        env=env,
        served=served,
        limit=int(config.record_limit_gb * 2**30),
        rename=renamed(config),
        lock=lock,
    )


def finish(recorder: Recorder) -> None:
    """Finish what is recorded, once nobody is served any more, and say what it is."""
    recorder.close()
    print(recorder.summary(), flush=True)
