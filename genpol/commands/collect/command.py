"""`genpol collect`: demonstrations by imperfect operators, to robomimic-format HDF5."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genpol.commands.collect.options import BIAS, Collect

if TYPE_CHECKING:
    from genpol.runs.interrupts import InterruptGuard
    from offline.data.episodes import Episode
    from robots.envs.simulated_env import SimulatedEnv
    from robots.operators.experts import Operator


def run(config: Collect) -> None:
    """Collect, write the file and say what is in it.

    What is stopped or fails leaves its finished episodes in a file beside it, whose name ends in
    ".partial"; the same command goes on from there, with the same result.

    Raises:
        InputError: for what a user can mend.
        Interrupted: a signal stopped it.
    """
    from tqdm import tqdm

    from genpol.runs.interrupts import InterruptGuard
    from genpol.runs.lock import FolderLock
    from offline.errors import InputError
    from offline.files import disk_errors, sync_path
    from offline.option_check import check_numbers
    from robots.datasets.robomimic_hdf5 import write_hdf5
    from robots.envs.make import make_env
    from robots.operators.collect import draw_order
    from robots.operators.experts import check_expert

    check_numbers(config)
    config = with_defaults(config)
    if config.output.is_dir():
        raise InputError(f'--output "{config.output}" is a folder; name a file in it')
    if config.output.exists() and not config.overwrite:
        raise InputError(f'"{config.output}" exists; pass another --output, or --overwrite')
    draw_order(config.episodes, config.sloppy_fraction, config.seed)
    check_expert(config.env)
    chosen = operators(config)
    images = {"image": config.image_size} if config.image_size is not None else None
    env = make_env(config.env, max_steps=config.max_steps, image_keys=images)
    folder, partial, tally = config.output.parent, partial_file(config.output), Tally()
    with disk_errors(f"cannot write in {folder}", "Pass another --output"):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        with FolderLock(folder, name=f".{config.output.name}.lock"), InterruptGuard() as guard:
            count, kept = earlier(partial, config)
            found = chain(kept, demonstrations(config, env, chosen, first=count))
            bar = tqdm(found, total=config.episodes, unit="episode")
            written = write_hdf5(
                partial,
                tally.watch(bar, guard),
                spec=env.action_spec,
                env=config.env,
                env_kwargs={"max_steps": env.max_steps, "image_keys": env.image_keys},
                valid_fraction=config.valid_fraction,
                seed=config.seed,
                meta={"collect": options(config)},
            )
            if len(written) == config.episodes:
                with disk_errors(f"cannot write {config.output}", "Pass another --output"):
                    partial.replace(config.output)
                    sync_path(folder)
    except NothingCollected as error:
        raise (error.__cause__ or guard.interrupted("stopped in the first episode")) from None
    finally:
        env.close()
    if len(written) < config.episodes:
        told = (
            f"{len(written)} of {config.episodes} episodes are in {partial}; the same command goes "
            "on from there"
        )
        if tally.error is None:
            raise guard.interrupted(f"stopped: {told}")
        if isinstance(tally.error, InputError):
            raise type(tally.error)(f"{tally.error} [{told}]") from tally.error
        print(told)
        raise tally.error
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
    config: Collect, env: SimulatedEnv, chosen: tuple[Operator, ...], first: int
) -> Iterator[Episode]:
    """Those from index `first` on."""
    from robots.operators.collect import collect, collect_modes

    count, seed = config.episodes, config.seed
    if config.operators == "two-mode":
        return collect_modes(env, count, seed, chosen, first=first)
    clean, sloppy = chosen
    fraction = config.sloppy_fraction
    return collect(env, count, fraction, seed, clean=clean, sloppy=sloppy, first=first)


def partial_file(output: Path) -> Path:
    """Where the episodes of an unfinished collection are: demos.partial.hdf5."""
    return output.with_name(f"{output.stem}.partial{output.suffix}")


def earlier(partial: Path, config: Collect) -> tuple[int, Iterator[Episode]]:
    """How many episodes an earlier sitting left, and these; each depends on seed and index alone.

    Raises:
        InputError: they were collected with other options.
    """
    import json

    from offline.errors import InputError
    from robots.datasets.robomimic_hdf5 import RobomimicHdf5

    if not partial.exists():
        return 0, iter(())
    found = RobomimicHdf5(partial)
    theirs, ours = found.meta.get("collect"), json.loads(json.dumps(options(config)))
    if theirs != ours:
        theirs = theirs if isinstance(theirs, dict) else {}
        name = next(key for key in ours if theirs.get(key) != ours[key])
        raise InputError(
            f"{partial} holds episodes that were collected with other options "
            f"(--{name.replace('_', '-')} {theirs.get(name)}, not {ours[name]}): collect with "
            "those, delete it, or pass another --output"
        )
    return len(found), (found[i] for i in range(len(found)))


def options(config: Collect) -> dict[str, Any]:
    """What the episodes came from, to be stored with them; not where they went."""
    values = dataclasses.asdict(config)
    return {key: values[key] for key in values if key not in ("output", "overwrite")}


class NothingCollected(Exception):
    """There is no episode to write; its cause is what went wrong in the first one, if anything."""


class Tally:
    """Episodes, steps and successes by operator, counted as the episodes pass."""

    def __init__(self) -> None:
        self.steps = 0
        self.error: Exception | None = None
        """What ended the episodes too early, if anything."""
        self.counts: dict[str, tuple[int, int]] = {}
        """operator -> (episodes, successes)"""

    def watch(self, episodes: Iterable[Episode], guard: InterruptGuard) -> Iterator[Episode]:
        """The same episodes, until a signal or an error.

        Raises:
            NothingCollected: there is none.
        """
        coming = iter(episodes)
        while not guard.stop:
            try:
                episode = next(coming)
            except StopIteration:
                break
            except Exception as error:
                self.error = error
                break
            self.steps += len(episode)
            total, successes = self.counts.get(episode.meta["operator"], (0, 0))
            self.counts[episode.meta["operator"]] = (total + 1, successes + bool(episode.success))
            yield episode
        if not self.counts:
            raise NothingCollected from self.error

    def __str__(self) -> str:
        total, successes = (sum(column) for column in zip(*self.counts.values(), strict=True))
        by = ", ".join(f"{name} {won}/{n}" for name, (n, won) in sorted(self.counts.items()))
        return f"{total} episodes, {self.steps} steps, {successes} successes ({by})"
