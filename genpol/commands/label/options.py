"""The options of `genpol label`, by subject, and their checks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from annotated_types import Ge, Gt, Le

from offline.ranges import Size

# The order of help: subject -> fields.
GROUPS: dict[str, tuple[str, ...]] = {
    "what most people need": ("data", "labels", "port", "open_browser"),
    "films": ("fps", "height"),
    "a judge instead of the page": ("success", "compare"),
}

ALL = "all"


@dataclass(frozen=True)
class Label:
    """Say which episodes of a dataset succeeded: a page in the browser, or a judge."""

    data: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DATA")]
    """Dataset: a recording of `genpol serve --record`, a LeRobot folder, a .hdf5 file, minari:NAME,
    or module:function@PATH of a reader of yours."""
    labels: Path | None = None
    """File of the labels. Default: labels.csv in the folder of the dataset, which every command
    then reads by itself; for a file NAME.hdf5 it is NAME.labels.csv, for --success of other
    commands."""
    port: Annotated[int, Ge(0), Le(65535)] = 8500
    """Port of the page on this machine, 0 to 65535. 0 takes a free one."""
    open_browser: bool = False
    """Open the page in the browser of this machine."""
    fps: Annotated[float, Gt(0), Le(1000)] | None = None
    """Frames per second of the films, above 0. Default: the dataset's, else 20."""
    height: Size = 480
    """Height of the films in pixels, at least 1. Higher pictures are made smaller."""
    success: str | None = None
    """Judge of the episodes without a label, in place of the page: module:function of an episode;
    vlm@http://HOST:PORT/v1?model=NAME, a vision-language model; or all, where all succeeded.
    Default: none, the page is served."""
    compare: bool = False
    """Ask the judge about the episodes with a label instead, write nothing, and print how often it
    agrees."""


def check(config: Label) -> None:
    """Check what needs no loading.

    Raises:
        InputError: names the flag.
    """
    from offline.errors import InputError, shown
    from offline.option_check import check_numbers

    check_numbers(config)
    if config.compare and config.success in (None, ALL):
        raise InputError("--compare needs a judge: pass --success module:function or vlm@...")
    if config.success not in (None, ALL) and ":" not in str(config.success):
        raise InputError(
            "--success takes module:function, vlm@http://HOST:PORT/v1?model=NAME or all; received "
            f'"{shown(config.success)}"'
        )
