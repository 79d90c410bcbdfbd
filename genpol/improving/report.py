"""The page of a run: success over episodes by version, what was learnt when, and the latest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from genpol.improving.chart import chart
from genpol.improving.seen import Seen, counts_of
from genpol.improving.versions import Version
from genpol.reports.page import Panel, duration, page, paragraph, table

LATEST = 20


def report(
    seen: Sequence[Seen],
    versions: Sequence[Version],
    *,
    now: str,
    address: str,
    restarts: int,
    command: str,
) -> str:
    """The HTML document.

    Args:
        seen: the recorded episodes, in order.
        versions: what has been learnt, and is being learnt.
        now: what happens at present, in words.
        address: of the server.
        restarts: how often the server has been started again.
        command: with which the run goes on.
    """
    from genpol.reports.stats import wilson

    known = [episode for episode in seen if episode.success is not None]
    counts = counts_of(seen)
    rows = []
    for name in dict.fromkeys(episode.version for episode in known):
        outcomes = [bool(e.success) for e in known if e.version == name]
        low, high = wilson(sum(outcomes), len(outcomes))
        rows.append(
            [
                name or "0 (the policy alone)", str(len(outcomes)), str(sum(outcomes)),
                f"{sum(outcomes) / len(outcomes):.0%}", f"{low:.0%} to {high:.0%}",
            ]
        )  # fmt: skip
    panels = [
        Panel(
            "Success over episodes",
            chart([bool(e.success) for e in known], [e.version or "0" for e in known])
            or paragraph("No episode has a label yet."),
        ),
        Panel(
            "By version",
            table(["version", "episodes", "successes", "success", "95 % interval"], rows)
            + paragraph(
                "Versions served different episodes, one after the other, so that a difference may "
                "also come from the layouts. The intervals are Wilson's.",
                "note",
            ),
        ),
        Panel("What was learnt", _learnt(versions)),
        Panel("The latest episodes", _latest(seen)),
        Panel("This run", _about(seen, counts, now, address, restarts, command)),
    ]
    return page(panels, "genpol improve")


def _learnt(versions: Sequence[Version]) -> str:
    if not versions:
        return paragraph("Nothing yet.")
    rows = [
        [
            str(v.number), str(v.episodes), v.state, duration(v.seconds),
            f"{v.cpu_seconds:.0f} s", v.why,
        ]
        for v in versions
    ]  # fmt: skip
    head = ["version", "labelled episodes", "state", "time", "processor", "why not"]
    return table(head, rows)


def _latest(seen: Sequence[Seen]) -> str:
    if not seen:
        return paragraph("No episode has ended yet.")
    said = {True: "success", False: "failure", None: "no label"}
    rows = [
        [
            str(e.index), said[e.success], e.version or "0", str(e.steps), str(e.by_hand),
            str(e.dropped), e.ended,
        ]
        for e in reversed(seen[-LATEST:])
    ]  # fmt: skip
    head = ["episode", "outcome", "version", "steps", "by hand", "not kept", "ended by"]
    return table(head, rows)


def _about(
    seen: Sequence[Seen], counts: Any, now: str, address: str, restarts: int, command: str
) -> str:
    by_hand = sum(episode.by_hand for episode in seen)
    dropped = sum(episode.dropped for episode in seen)
    lines = [
        f"The server listens on {address}. It was started again {restarts} times. {now}",
        f"{counts.recorded} episodes were recorded, {counts.labelled} of them have a label, "
        f"{counts.successes} succeeded. {by_hand} steps were a human's. {dropped} decisions were "
        "recorded without their observation.",
        f"It stops at Ctrl-C, and goes on with: {command}",
    ]
    return "".join(paragraph(line) for line in lines)
