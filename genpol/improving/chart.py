"""Success over episodes as an SVG: an average of the latest ones, and which version served."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 880, 300
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 26, 40
BLUE, GREY, INK, BAND = "#0a66c2", "#9a9aa0", "#1d1d1f", "#f0f3f8"
WINDOW = 20
"""Episodes that one point of the line is the mean of."""


def chart(outcomes: Sequence[bool], versions: Sequence[str]) -> str:
    """The picture, inside the page.

    Args:
        outcomes: of the N labelled episodes, in order.
        versions: N names of what served each.
    """
    if not outcomes:
        return ""
    count = len(outcomes)
    wide, high = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def x(episode: float) -> float:
        return LEFT + wide * episode / count

    def y(share: float) -> float:
        return TOP + high * (1 - share)

    parts = []
    for number, (name, first, end) in enumerate(stretches(versions)):
        if number % 2:
            parts.append(
                f'<rect x="{x(first):.1f}" y="{TOP}" width="{x(end) - x(first):.1f}" '
                f'height="{high}" fill="{BAND}"/>'
            )
        if x(end) - x(first) > 16:
            parts.append(_text(x((first + end) / 2), TOP - 8, _short(name, x(end) - x(first))))
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" '
            'stroke="#e2e2de"/>'
        )
        parts.append(_text(LEFT - 6, y(tick) + 4, f"{tick:.0%}", anchor="end"))
    for episode in sorted({0, count // 4, count // 2, 3 * count // 4, count}):
        parts.append(_text(x(episode), HEIGHT - BOTTOM + 18, str(episode)))
    parts.append(_text(LEFT + wide / 2, HEIGHT - 6, "episodes with a label"))
    for episode, success in enumerate(outcomes):
        parts.append(
            f'<circle cx="{x(episode + 0.5):.1f}" cy="{y(float(success)):.1f}" r="2.2" '
            f'fill="{GREY}" fill-opacity="0.6"/>'
        )
    line = " ".join(
        f"{x(i + 0.5):.1f},{y(share):.1f}" for i, share in enumerate(moving_mean(outcomes))
    )
    parts.append(f'<polyline points="{line}" fill="none" stroke="{BLUE}" stroke-width="2"/>')
    what = f"Share of successes among the latest {WINDOW} episodes, over {count} episodes"
    return (
        f'<figure><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(what)}" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg><figcaption>'
        f"{escape(what)}. Above the line: which version served; 0 is the policy alone."
        "</figcaption></figure>"
    )


def moving_mean(outcomes: Sequence[bool], window: int = WINDOW) -> list[float]:
    """For each episode the share of successes among it and those before it, `window` at most."""
    means = []
    for end in range(1, len(outcomes) + 1):
        latest = outcomes[max(0, end - window) : end]
        means.append(sum(latest) / len(latest))
    return means


def stretches(versions: Sequence[str]) -> list[tuple[str, int, int]]:
    """(version, first episode, one past the last) of each run of equal versions."""
    found: list[tuple[str, int, int]] = []
    for episode, name in enumerate(versions):
        if found and found[-1][0] == name:
            found[-1] = name, found[-1][1], episode + 1
        else:
            found.append((name, episode, episode + 1))
    return found


def _short(name: str, room: float) -> str:
    return name[: max(1, int(room / 7))]


def _text(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="12" '
        f'fill="{INK}">{escape(text)}</text>'
    )
