"""One command in several processes: they are joined, and the first one alone speaks."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffusion.ranks import Ranks


def speaks(error: BaseException | None = None) -> bool:
    """Whether this process prints, or prints of an error: of several, the first one does.

    All make the same mistake of a user's at once; what only one of the others meets, it tells the
    first. Of the end of the first one another speaks.
    """
    alone = os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"
    return bool(getattr(error, "speaks", alone))


@contextmanager
def one_voice() -> Iterator[None]:
    """Within this context nothing is printed, and nobody warned, but in the first process."""
    with ExitStack() as stack:
        if not speaks():
            stack.enter_context(redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
        yield


@contextmanager
def several(device: str | None) -> Iterator[Ranks]:
    """The processes that a launcher has started, joined while the context lasts; else one.

    Args:
        device: as --device.

    Raises:
        InputError: they cannot be joined, or one of them has ended.
    """
    from diffusion.processes import joined

    with one_voice(), joined(device) as ranks:
        yield ranks
