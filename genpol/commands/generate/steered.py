"""`genpol generate --value`: pictures whose chains are pruned or resampled by a value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from genpol.commands.generate.drawing import png
from genpol.commands.generate.options import Generate

if TYPE_CHECKING:
    from genpol.commands.generate.drawn import Drawn
    from genpol.reports.page import Panel
    from genpol.steering.picture_chains import PictureChains, SteeredPictures

ONLY_STEERED = ("value_weights", "num_candidates", "prune_at", "temperature")
ONLY_REPORT = ("gold_reward", "guidance_control")


def require_together(config: Generate) -> None:
    """Check that the options about values fit each other, before anything is read.

    Raises:
        InputError: one of them without --value, or beside what it excludes.
    """
    from diffusion.errors import InputError

    if not config.value:
        given = [n for n in ONLY_STEERED if getattr(config, n) not in (None, ())]
        given += [n for n in ("resample", "report") if getattr(config, n)]
        given += [n for n in ONLY_REPORT if getattr(config, n) is not None]
        if given:
            raise InputError(f"{flag(given[0])} needs --value, whose pictures it is about")
        return
    if config.pairs_from is not None:
        raise InputError("--pairs-from draws plain candidates: leave --value out")
    if config.best_of > 1:
        raise InputError(
            "--best-of chooses among finished pictures and --value among unfinished ones: use "
            "--num-candidates with --value; --report shows both"
        )
    if config.value_weights and len(config.value_weights) != len(config.value):
        raise InputError(
            f"--value-weights has {len(config.value_weights)} numbers for {len(config.value)} "
            "values: give one for each folder of --value, or none for equal weights"
        )
    if "reward" in config.value and not config.reward:
        raise InputError("--value reward asks the --reward about predicted pictures: add it")
    if config.temperature is not None and not config.resample:
        raise InputError("--temperature is of --resample; pruning keeps the best")
    if config.report and not config.reward:
        raise InputError(
            "--report needs --reward: the reward chooses the best of k that steering stands beside"
        )
    for name in ONLY_REPORT:
        if getattr(config, name) is not None and not config.report:
            raise InputError(f"{flag(name)} is for the page of --report: add --report")


def steered_drawing(config: Generate, pipe: Any, drawn: Any, reward: Any) -> SteeredDrawing:
    """What draws the pictures of --value.

    Args:
        config: the options.
        pipe: the pipeline, ready.
        drawn: the `Drawn` of the same options.
        reward: that is recorded; None for none.

    Raises:
        InputError: a value that is none, is of another pipeline or has no weight; stages that
            cannot be, or resampling without noise.
    """
    from diffusion.checkpoints.schedulers import replaced
    from genpol.steering.picture_chains import (
        CANDIDATES,
        TEMPERATURE,
        PictureChains,
        selection,
    )
    from genpol.steering.picture_values import load_values

    policy, process = drawn.policy, drawn.process_with()
    values = load_values(config.value, config.value_weights, policy, reward)
    candidates = config.num_candidates or CANDIDATES
    temperature = TEMPERATURE if config.temperature is None else config.temperature
    how = selection(
        process,
        candidates,
        config.prune_at or None,
        temperature=temperature if config.resample else None,
    )
    chains = PictureChains(policy, process, values, candidates, how, batch=config.batch)
    scheduler = replaced(pipe) or type(pipe.scheduler).__name__
    return SteeredDrawing(config, chains, drawn, reward, scheduler)


def command_of(config: Generate) -> str:
    """The options that were given as a command line."""
    import shlex
    from dataclasses import MISSING, fields

    words = ["genpol", "generate"]
    for one in fields(config):
        value = getattr(config, one.name)
        if one.default is not MISSING and value == one.default:
            continue
        each = value if isinstance(value, tuple) else () if value is True else (value,)
        words += [flag(one.name), *(f"{v:g}" if isinstance(v, float) else str(v) for v in each)]
    return shlex.join(words)


def flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


@dataclass
class SteeredDrawing:
    """Draws the pictures of one command, some at a time, and keeps what its page is made from."""

    config: Generate
    chains: PictureChains
    drawn: Drawn
    reward: Any
    scheduler: str
    parts: list[SteeredPictures] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def at_once(self) -> int:
        """Pictures of one call of `draw`."""
        return self.chains.at_once

    @property
    def columns(self) -> tuple[str, ...]:
        """Of images.csv, beside the usual ones."""
        values = (f"value_{name}" for name in self.chains.how.names)
        return (*values, "evaluations", *(("copied",) if self.config.resample else ()))

    def draw(
        self, prompts: list[str], first: int, stop: Callable[[], bool]
    ) -> list[dict[str, Any]]:
        """Draw and save pictures `first` and on; returns their rows of images.csv.

        Raises:
            Stopped: `stop` said so; nothing of these was saved.
        """
        from time import perf_counter

        from diffusion.drawing import Stopped
        from offline.files import write_beside

        def tick() -> None:
            if stop():
                raise Stopped

        start, k = perf_counter(), self.chains.candidates
        found = self.chains.draw(prompts, self.config.seed + first * k, tick)
        self.seconds += perf_counter() - start
        if self.config.report:
            self.parts.append(found)
            self.prompts += prompts
        scores = self.reward(found.images, prompts) if self.reward else None
        each, rows = found.evaluations / len(prompts), []
        for i, prompt in enumerate(prompts):
            name = f"{first + i:05d}.png"
            write_beside(self.config.output / name, png(found.images[i]))
            row: dict[str, Any] = {"file": name, "prompt": prompt, "seed": found.seeds[i]}
            row |= {"candidates": k, "scheduler": self.scheduler, "evaluations": f"{each:g}"}
            values = (found.chains.values[i] * self.chains.values.unit).tolist()
            row |= dict(zip(self.columns, values, strict=False))
            if self.config.resample:
                row["copied"] = int(found.chains.copied[i])
            if (own := getattr(prompt, "negative", None)) is not None:
                row["negative_prompt"] = own
            if scores is not None:
                row["reward"] = float(scores[i])
            rows.append(row)
        return rows

    def report(self, stop: Callable[[], bool]) -> list[Panel]:
        """Draw what stands beside it at equal evaluations; write report.html and arms.csv.

        Returns:
            The panels of the page.

        Raises:
            Stopped: `stop` said so; neither is written.
        """
        import csv
        import io

        from diffusion.drawing import Stopped
        from diffusion.rewards import load_reward
        from genpol.finetuning.control_options import parse_scales
        from genpol.reports.page import page
        from genpol.steering.picture_arms import Comparison
        from genpol.steering.picture_chains import joined
        from genpol.steering.picture_page import TITLE, Steering, score_rows, steering_panels
        from offline.files import write_beside

        def tick() -> None:
            if stop():
                raise Stopped

        config, chains = self.config, self.chains
        golds = config.gold_reward or ("gold" if config.prompts == "world" else "")
        judges = {
            name: load_reward(name, device=str(chains.policy.device), trust=config.trust)
            for name in filter(None, golds.split(","))
        }
        scales = [s for s in parse_scales(config.guidance_control, config.model)
                  if s != chains.policy.guidance_scale]  # fmt: skip
        whole = joined(self.parts)
        comparison = Comparison(
            chains.policy, self.drawn.process_with, chains.process.num_steps, self.prompts,
            config.seed, chains.candidates, self.reward, judges, config.batch, tick,
        )  # fmt: skip
        asked = whole.chains.value_calls if chains.values.asks_reward else 0
        calls = round(asked / len(self.prompts))
        arms = comparison.arms(whole, self.seconds, scales, calls)
        about = Steering(
            self.prompts, chains.how, whole.chains, chains.values.unit, chains.candidates,
            str(config.reward), command_of(config),
        )  # fmt: skip
        rows, buffer = score_rows(arms, self.prompts), io.StringIO()
        writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_beside(config.output / "arms.csv", buffer.getvalue().encode())
        panels = steering_panels(arms, about)
        write_beside(config.output / "report.html", page(panels, TITLE).encode())
        return panels
