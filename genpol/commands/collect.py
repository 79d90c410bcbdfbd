"""`genpol collect`: demonstrations by imperfect operators, to robomimic-format HDF5."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from genpol.runs.interrupts import InterruptGuard
    from offline.data.episodes import Episode
    from robots.envs.simulated_env import SimulatedEnv
    from robots.operators.experts import Operator


@dataclass(frozen=True)
class Collect:
    """Collect demonstrations from a scripted expert in the hands of two operators, failures kept.

    clean-sloppy: a careful one, and one with an unsteady hand who misjudges where the object is.
    two-mode: two with steady hands, each of whom misjudges it towards a side of his own.
    """

    env: str
    """Such as metaworld/pick-place-v3 (all 50 tasks have an expert) or ogbench/cube-single-v0
    (cubes, scene and puzzles have)."""
    output: Path
    """The HDF5 file to write."""
    operators: Literal["clean-sloppy", "two-mode"] = "clean-sloppy"
    """Who demonstrates; two-mode operators have half the episodes each."""
    episodes: int = 120
    """Episodes in all."""
    sloppy_fraction: float = 0.67
    """clean-sloppy: share of the episodes by the sloppy operator."""
    seed: int = 0
    """Of layouts, order, bias and noise."""
    noise: float = 0.05
    """Careful and two-mode operators: standard deviation added to each action (in [-1, 1])."""
    sloppy_noise: float = 0.2
    """Sloppy operator: the same."""
    bias_min: float | None = None
    """Least error of the object's position, in metres, fixed per episode; default .03 for the
    sloppy operator, .01 for two-mode ones."""
    bias_max: float | None = None
    """Largest error of the object's position; default .06 for the sloppy operator, .035 for
    two-mode ones."""
    bias_side: Literal["habit", "random"] = "habit"
    """Sloppy operator errs towards one side, drawn by the seed, or a random one per episode."""
    mode_sides: tuple[Literal["x+", "x-", "y+", "y-"], ...] = ("x+", "y+")
    """two-mode: the side towards which each operator errs; in metaworld x is sideways and y away
    from the robot, in OGBench x is away from it."""
    max_steps: int | None = None
    """Give up after this many steps; default 200 in metaworld, OGBench's own limit there."""
    valid_fraction: float = 0.1
    """Share of the episodes in the split "valid"; the others are "train"."""
    image_size: int | None = None
    """Also store camera images of this height and width, as "image"."""
    overwrite: bool = False
    """Replace an existing file."""


def run(config: Collect) -> None:
    """Write the file whole or not at all, and say what is in it."""
    from tqdm import tqdm

    from genpol.runs.interrupts import InterruptGuard
    from offline.errors import InputError
    from robots.datasets.robomimic_hdf5 import write_hdf5
    from robots.envs.make import make_env
    from robots.operators.collect import draw_order
    from robots.operators.experts import check_expert

    config = with_defaults(config)
    if config.output.is_dir():
        raise InputError(f'--output "{config.output}" is a folder; name a file in it')
    if config.output.exists() and not config.overwrite:
        raise InputError(f'"{config.output}" exists; pass another --output, or --overwrite')
    if not 0 <= config.valid_fraction < 1:
        raise InputError(f"--valid-fraction is in [0, 1), not {config.valid_fraction:g}")
    draw_order(config.episodes, config.sloppy_fraction, config.seed)
    check_expert(config.env)
    chosen = operators(config)
    images = {"image": config.image_size} if config.image_size is not None else None
    env = make_env(config.env, max_steps=config.max_steps, image_keys=images)
    try:
        found = demonstrations(config, env, chosen)
        tally = Tally()
        with InterruptGuard() as guard:
            written = write_hdf5(
                config.output,
                tally.watch(tqdm(found, total=config.episodes, unit="episode"), guard),
                spec=env.action_spec,
                env=config.env,
                env_kwargs={"max_steps": env.max_steps, "image_keys": env.image_keys},
                valid_fraction=config.valid_fraction,
                seed=config.seed,
                meta={"collect": options(config)},
            )
    finally:
        env.close()
    splits = ", ".join(f"{name} {len(written.splits[name])}" for name in ("train", "valid"))
    print(f"{config.output}: {tally}; {splits}; content hash {written.meta['content_hash']}")


def with_defaults(config: Collect) -> Collect:
    """The bias that was not given: small for two modes, large for the sloppy operator."""
    least, most = (0.01, 0.035) if config.operators == "two-mode" else (0.03, 0.06)
    return dataclasses.replace(
        config,
        bias_min=least if config.bias_min is None else config.bias_min,
        bias_max=most if config.bias_max is None else config.bias_max,
    )


def operators(config: Collect) -> tuple[Operator, ...]:
    """The careful and the sloppy one, or one per mode."""
    from robots.operators.collect import habit
    from robots.operators.experts import Operator, modes

    least, most = config.bias_min, config.bias_max
    assert least is not None and most is not None  # `with_defaults`
    if config.operators == "two-mode":
        return modes(config.mode_sides, config.noise, least, most)
    side = habit(config.seed) if config.bias_side == "habit" else None
    sloppy = Operator("sloppy", config.sloppy_noise, least, most, side)
    return Operator("clean", config.noise), sloppy


def demonstrations(
    config: Collect, env: SimulatedEnv, chosen: tuple[Operator, ...]
) -> Iterator[Episode]:
    from robots.operators.collect import collect, collect_modes

    if config.operators == "two-mode":
        return collect_modes(env, config.episodes, config.seed, chosen)
    clean, sloppy = chosen
    fraction = config.sloppy_fraction
    return collect(env, config.episodes, fraction, config.seed, clean=clean, sloppy=sloppy)


def options(config: Collect) -> dict[str, Any]:
    """What the episodes came from, to be stored with them; not where they went."""
    values = dataclasses.asdict(config)
    return {key: values[key] for key in values if key not in ("output", "overwrite")}


class Tally:
    """Episodes, steps and successes by operator, counted as the episodes pass."""

    def __init__(self) -> None:
        self.steps = 0
        self.counts: dict[str, tuple[int, int]] = {}
        """operator -> (episodes, successes)"""

    def watch(self, episodes: Iterable[Episode], guard: InterruptGuard) -> Iterator[Episode]:
        """The same episodes, until an interrupt: fewer than asked for are not worth a file."""
        for episode in episodes:
            if guard.stop:
                raise KeyboardInterrupt
            self.steps += len(episode)
            total, successes = self.counts.get(episode.meta["operator"], (0, 0))
            self.counts[episode.meta["operator"]] = (total + 1, successes + bool(episode.success))
            yield episode

    def __str__(self) -> str:
        total, successes = (sum(column) for column in zip(*self.counts.values(), strict=True))
        by = ", ".join(f"{name} {won}/{n}" for name, (n, won) in sorted(self.counts.items()))
        return f"{total} episodes, {self.steps} steps, {successes} successes ({by})"
