"""`genpol collect`: demonstrations by imperfect operators, to robomimic-format HDF5."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from genpol.commands.collect.options import BIAS, Collect

if TYPE_CHECKING:
    from genpol.runs.interrupts import InterruptGuard
    from offline.data.episodes import Episode
    from robots.envs.simulated_env import SimulatedEnv
    from robots.operators.experts import Operator


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
    least, most = BIAS[config.operators]
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
