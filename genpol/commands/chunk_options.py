"""The options of chunks, the same in `genpol steer` and `genpol serve`: how much of a chunk is
scored and executed, and how the chunks follow each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Le

from offline.ranges import Few, Size

if TYPE_CHECKING:
    from genpol.steering.overlap import Overlap

CHUNKS = ("score", "execute", "lookahead", "temporal_ensemble")  # a group of help


@dataclass(frozen=True, kw_only=True)
class ChunkOptions:
    """How much of a chunk is scored and executed."""

    score: Literal["first", "windows"] = "first"
    """Of a chunk longer than the value's: "first" scores and executes its first actions, as many as
    the value was trained on. "windows" scores all of it, window by window, and sums the scores.
    Temperature, margin and gate are then in units of the sum."""
    execute: Size | None = None
    """Actions executed between two decisions, at least 1. Default: all that are scored, but for
    those of --lookahead."""
    lookahead: Few = 0
    """Actions that the robot still executes while the next decision is computed. It sends its
    observation so many actions before its last answer ends, and the next answer begins with
    them. 0 decides between chunks."""
    temporal_ensemble: Annotated[float, Ge(-1e3), Le(1e3)] | None = None
    """Average each proposal with what earlier decisions planned for the same times, before it is
    scored. Weights are exp(-M i), from the oldest plan (i = 0) on: 0.01 is ACT's. Default: off."""


def check_chunks(config: ChunkOptions, *, valued: bool) -> None:
    """Check what needs no loading.

    Raises:
        InputError: names the flag.
    """
    from offline.errors import InputError

    if config.score == "windows" and not valued:
        raise InputError("--score windows needs --value to score by")
    if config.temporal_ensemble is not None and config.execute is None:
        raise InputError(
            "--temporal-ensemble averages plans that overlap: pass --execute, the actions between "
            "two decisions, below the length of a chunk"
        )


def policy_chunk(config: ChunkOptions, value: Any) -> int | None:
    """Actions that a black box has to propose; None for as many as it does by itself."""
    return None if value is None or config.score == "windows" else value.spec.chunk


def chunks(config: ChunkOptions, value: Any, length: int) -> tuple[Any, Overlap | None]:
    """The value of whole plans (None without one), and how the plans overlap, if they do.

    Args:
        config: the options.
        value: scores chunks of its own length; may be None.
        length: of the policy's chunks (L).

    Raises:
        InputError: names the flag that does not fit.
    """
    from genpol.steering.overlap import Overlap
    from genpol.steering.windows import windowed
    from offline.errors import InputError

    least = 1 if value is None else value.spec.chunk
    plan = least if value is not None and config.score == "first" else length
    needed = config.lookahead + (config.execute or 1)
    if needed > plan:
        said = "--lookahead" if config.execute is None else "--execute and --lookahead"
        raise InputError(
            f"{said} need {needed} actions of a chunk, and {plan} are scored: "
            + ('pass --score windows to score all of it, or less of them' if plan < length
               else "pass less of them")
        )  # fmt: skip
    if config.execute is not None and config.temporal_ensemble is None:
        if config.score == "windows":  # what is not executed is not scored
            plan = max(needed, least)
    elif config.temporal_ensemble is not None and config.execute == plan:
        raise InputError(
            f"--temporal-ensemble averages plans that overlap, and with --execute {plan} of "
            f"{plan} actions none do: pass a smaller --execute"
        )
    value = None if value is None else windowed(value, plan)
    execute = config.execute or plan - config.lookahead
    if execute == plan:
        return value, None
    return value, Overlap(plan, execute, config.lookahead, config.temporal_ensemble)
