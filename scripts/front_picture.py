"""Compose the picture on the README's first screen: docs/results/front.png.

    python -m scripts.front_picture     # two minutes on one core

Left: the first six held-out prompts of the committed run of scripts/tiny_results.py, before and
after. Right: one episode of the shipped robot policy and the same layout steered by the shipped
value function. The layout is the first on which one sample fails and steering succeeds, so that
the picture shows the difference; how often it is so is in the tables, not in the picture.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from genpol.reports.grids import font_for, wrap
from genpol.reports.videos import Recording
from scripts.tiny_results import samples_of_seed_0

FILE = Path(__file__).parents[1] / "docs" / "results" / "front.png"
BLUE, DOTS, GREY = (10, 102, 194), (150, 150, 156), (85, 85, 90)
INK, PAPER = (29, 29, 31), (255, 255, 255)
FAINT = (226, 226, 222)
SIDE = 780  # width of a half
GUTTER = 40
EDGE = 20
HEAD, TEXT, SMALL = 34, 23, 20  # heights of letters
CANDIDATES = 32
CAMERA = {"lookat": (0.08, 0.72, 0.13), "distance": 0.95, "azimuth": 150.0, "elevation": -30.0}


def text(
    canvas: Image.Image, at: tuple[int, int], words: str, size: int, width: int, ink=INK
) -> int:
    """Draw wrapped text; returns the y below it."""
    pen, font = ImageDraw.Draw(canvas), font_for(words, size)
    x, y = at
    for line in wrap(words, font, width):
        pen.text((x, y), line, fill=ink, font=font)
        y += round(1.28 * size)
    return y


# -- images ---------------------------------------------------------------------------------------


def images_half(height: int) -> Image.Image:
    """Six pairs with their prompts."""
    prompts, before, after = samples_of_seed_0()
    canvas = Image.new("RGB", (SIDE, height), PAPER)
    text(canvas, (0, 0), "Images: draw what the prompt asks for", HEAD, SIDE)
    text(
        canvas, (0, 48), "Same prompt and same noise, before and after fine-tuning by reward.",
        TEXT, SIDE, GREY,
    )  # fmt: skip
    side, gap = 182, 8
    for i in range(6):
        x, y = (i % 2) * (2 * side + gap + 36), 92 + (i // 2) * 288
        for k, (label, picture) in enumerate((("before", before[i]), ("after", after[i]))):
            left = x + k * (side + gap)
            text(canvas, (left, y), label, SMALL, side, GREY)
            large = picture.resize((192, 192), Image.Resampling.NEAREST)
            canvas.paste(large.resize((side, side), Image.Resampling.BOX), (left, y + 26))
        text(canvas, (x, y + 26 + side + 6), prompts[i], SMALL, 2 * side + gap)
    return canvas


# -- robots ---------------------------------------------------------------------------------------


def episodes() -> tuple[Recording, Recording]:
    """One sample and steered, on the first layout where only the latter succeeds."""

    import genpol
    from genpol.policies.policy import load_policy
    from genpol.steering.session import Arms, make_select, run_arms
    from offline.critics.value import ValueFunction
    from offline.threads import use_threads
    from robots.envs.make import layout_seed, make_env

    use_threads(1)
    assets = Path(genpol.__file__).parent / "assets" / "steering"
    value = ValueFunction.load(assets / "value")
    arms = Arms(load_policy(assets / "policy"), value, make_select(1.0, None), CANDIDATES)

    def closer_env():
        env = make_env(value.env, render_size=384)
        env.simulator.camera = CAMERA
        return env

    for index in range(50):
        seeds = [layout_seed("evaluate", 0, index)]
        found = run_arms(arms, ("base", "steered"), closer_env, seeds=seeds, seed=0, record=(0,))
        if found["steered"].success[0] and not found["base"].success[0]:
            return found["base"].recordings[0], found["steered"].recordings[0]
    raise SystemExit("no layout of 50 on which only the steered policy succeeds")


def chart(film: Recording, width: int, height: int) -> Image.Image:
    """Values of all proposals at every decision (grey) and of the executed one (blue)."""
    smooth = 2
    canvas = Image.new("RGB", (width * smooth, height * smooth), PAPER)
    pen = ImageDraw.Draw(canvas)
    decisions = [
        now
        for before, now in zip([None, *film.decisions], film.decisions, strict=False)
        if before is None or not np.array_equal(now["scores"], before["scores"])
    ]
    scores = np.stack([now["scores"] for now in decisions])
    chosen = np.array([now["scores"][int(now["chosen"])] for now in decisions])
    low, high = float(scores.min()), float(scores.max())

    def at(i: int, value: float) -> tuple[float, float]:
        x = 12 + (width - 24) * i / (len(decisions) - 1)
        y = height - 12 - (height - 24) * (value - low) / (high - low)
        return x * smooth, y * smooth

    pen.line([(0, height * smooth - 1), (width * smooth, height * smooth - 1)], fill=FAINT, width=3)
    for i, row in enumerate(scores):
        for value in row:
            x, y = at(i, float(value))
            pen.ellipse([x - 5, y - 5, x + 5, y + 5], fill=DOTS)
    line = [at(i, float(value)) for i, value in enumerate(chosen)]
    pen.line(line, fill=BLUE, width=7, joint="curve")
    for x, y in line:
        pen.ellipse([x - 10, y - 10, x + 10, y + 10], fill=BLUE)
    return canvas.resize((width, height), Image.Resampling.LANCZOS)


def robots_half(height: int) -> Image.Image:
    """Two frames of the same moment and the values of the steered episode."""
    base, steered = episodes()
    canvas = Image.new("RGB", (SIDE, height), PAPER)
    text(canvas, (0, 0), "Robots: choose among a policy's proposals", HEAD, SIDE)
    text(
        canvas, (0, 48), "Same policy, same initial state: carry the red puck to the blue ball.",
        TEXT, SIDE, GREY,
    )  # fmt: skip
    last = len(steered.frames) - 1
    frames = (
        ("one sample: fails to grasp the puck", base.frames[min(last, len(base.frames) - 1)]),
        ("steered: reaches the goal", steered.frames[last]),
    )
    side, top = 384, 121
    for k, (label, frame) in enumerate(frames):
        left = k * (SIDE - side)
        text(canvas, (left, top - 29), label, SMALL, side, GREY)
        canvas.paste(Image.fromarray(frame), (left, top))
    y = text(
        canvas, (0, top + side + 14),
        f"Steered: a value function rates {CANDIDATES} proposals at each decision (up is better).",
        SMALL, SIDE,
    )  # fmt: skip
    drawn = chart(steered, SIDE, height - y - 62)
    canvas.paste(drawn, (0, y + 6))
    pen, middle = ImageDraw.Draw(canvas), height - 22
    for x, colour, words in (
        (6, BLUE, "the proposal that is executed"),
        (350, DOTS, "the others"),
        (560, None, "time goes to the right"),
    ):
        if colour:
            pen.ellipse([x, middle - 7, x + 14, middle + 7], fill=colour)
        text(canvas, (x + 24 if colour else x, middle - 13), words, SMALL, SIDE, INK)
    return canvas


def main() -> None:
    height = 950
    canvas = Image.new("RGB", (2 * (SIDE + EDGE) + GUTTER, height + 2 * EDGE), PAPER)
    canvas.paste(images_half(height), (EDGE, EDGE))
    canvas.paste(robots_half(height), (EDGE + SIDE + GUTTER, EDGE))
    x = EDGE + SIDE + GUTTER // 2
    ImageDraw.Draw(canvas).line([(x, EDGE), (x, height + EDGE)], fill=FAINT, width=2)
    canvas.save(FILE, optimize=True)
    print(f"{FILE}: {FILE.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
