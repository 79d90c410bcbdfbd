"""The options of `genpol collect`, by subject."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from offline.ranges import Count, Decay, NotNegative, Seed, Share, Size

# Operators -> smallest and largest error of the object's position, in metres.
BIAS = {"clean-sloppy": (0.03, 0.06), "two-mode": (0.01, 0.035)}
# The order of help: subject -> fields.
GROUPS: dict[str, tuple[str, ...]] = {
    "what most people need": (
        "env", "output", "operators", "episodes", "sloppy_fraction", "seed", "image_size",
        "overwrite",
    ),
    "operators": ("noise", "sloppy_noise", "bias_min", "bias_max", "bias_side", "mode_sides"),
    "episodes": ("max_steps", "valid_fraction"),
}  # fmt: skip
# What help shows for settings that --operators decides.
DEFAULT_TEXTS = {
    f"bias_{end}": "; ".join(f"{BIAS[who][i]:g} with {who}" for who in BIAS)
    for i, end in enumerate(("min", "max"))
}


@dataclass(frozen=True)
class Collect:
    """Collect demonstrations by two imperfect scripted operators, failures kept.

    Both are a scripted expert with errors added. clean-sloppy: one operator is careful; the other
    has an unsteady hand and misjudges where the object is. two-mode: both have steady hands; each
    misjudges the object towards a side of their own.
    """

    env: str
    """Environment, such as metaworld/pick-place-v3 or ogbench/cube-single-v0. All 50 tasks of
    metaworld have an expert, and so have OGBench's cubes, scene and puzzles."""
    output: Path
    """HDF5 file to write."""
    operators: Literal["clean-sloppy", "two-mode"] = "clean-sloppy"
    """Who demonstrates. Each of two-mode's operators has half the episodes."""
    episodes: Count = 120
    """Episodes in all, at least 1."""
    sloppy_fraction: Share = 0.67
    """Share of the episodes by the sloppy operator, 0 to 1 (clean-sloppy)."""
    seed: Seed = 0
    """Seed of layouts, order, bias and noise."""
    noise: NotNegative = 0.05
    """Standard deviation of the noise of careful and two-mode operators, added to each action in
    [-1, 1]."""
    sloppy_noise: NotNegative = 0.2
    """Standard deviation of the noise of the sloppy operator, likewise."""
    bias_min: NotNegative | None = None
    """Smallest error of the object's position, in metres, drawn once per episode."""
    bias_max: NotNegative | None = None
    """Largest error of the object's position, in metres."""
    bias_side: Literal["habit", "random"] = "habit"
    """Side towards which the sloppy operator errs: one for all episodes, drawn by the seed (habit),
    or another for each episode (random)."""
    mode_sides: tuple[Literal["x+", "x-", "y+", "y-"], ...] = ("x+", "y+")
    """Side towards which each operator errs (two-mode). In metaworld x is sideways and y is away
    from the robot. In OGBench x is away from the robot."""
    max_steps: Count | None = None
    """Steps after which an episode is given up. Default: 200 in metaworld; OGBench's own limit
    there."""
    valid_fraction: Decay = 0.1
    """Share of the episodes in the split "valid", at least 0 and below 1. The others are in
    "train"."""
    image_size: Size | None = None
    """Height and width of camera images, in pixels, which are stored as "image". Default: no
    images."""
    overwrite: bool = False
    """Replace an existing file."""
