"""The demo's part about values of unfinished images, which prune the chains of a pipeline.

Two values steer the same pictures: the reward of what each chain is heading for, beside the best
of K, and a network that learns it in half a minute.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from genpol.commands.generate.options import Generate
    from genpol.commands.value.options import Value
    from genpol.reports.page import Panel

VALUE: dict[str, Any] = {  # fewer images and steps than the defaults, for half a minute on one core
    "num_prompts": 48,
    "images_per_prompt": 8,
    "num_held_out": 8,
    "steps": 120,
}
PICTURES: dict[str, Any] = {"num_prompts": 16, "num_candidates": 8}
BY_REWARD: dict[str, Any] = {
    "prune_at": (0.7, 0.4, 0.2),
    "report": True,
    "guidance_control": "none",  # the part that fine-tunes shows it
}
BY_VALUE: dict[str, Any] = {"prune_at": (0.5, 0.3, 0.1)}  # so small a value ranks late states alone
LEFT = 0.3  # share of the steps that remain, at which the value's rank correlation is told


def value_settings(folder: Path, seed: int, threads: int | None) -> Value:
    """The run that learns the value, in `folder`/value."""
    from dataclasses import replace

    from genpol.commands.value.options import Value, defaults

    usual = defaults(Value(model="tiny"))
    return replace(
        usual,
        **VALUE,
        model="tiny",
        output=folder / "value",
        seed=seed,
        threads=threads,
        wandb="offline",
    )


def picture_settings(
    folder: Path, value: str, options: dict[str, Any], seed: int, threads: int | None
) -> Generate:
    """The pictures that a value steers, in `folder`."""
    from genpol.commands.generate.options import Generate

    return Generate(
        model="tiny",
        prompts="world",
        value=(value,),
        reward="attributes",
        seed=seed,
        threads=threads,
        output=folder,
        **PICTURES,
        **options,
    )


def panel(folder: Path, seed: int, threads: int | None) -> Panel:
    """Draw the pictures, learn the value, draw them again, and say what came of it.

    Raises:
        Interrupted: a signal stopped it.
    """
    from genpol.commands.generate.command import generate
    from genpol.commands.generate.steered import command_of
    from genpol.commands.value.command import run as learn
    from genpol.reports.page import Panel, code, paragraph

    value = value_settings(folder, seed, threads)
    by_reward = picture_settings(folder / "by-reward", "reward", BY_REWARD, seed, threads)
    by_value = picture_settings(folder / "by-value", str(value.output), BY_VALUE, seed, threads)
    print("drawing pictures that values steer, and learning one of the values: about a minute")
    result, beside, gallery, *_ = generate(by_reward)
    learn(value)
    generate(by_value)
    commands = [command_of(by_reward), value_command(value), command_of(by_value)]
    return Panel(
        "Images steered by a value",
        "\n".join(
            [
                paragraph(_story(by_reward)),
                result.html,
                beside.html,
                gallery.html,
                paragraph(_learnt(value, by_value)),
                paragraph("Commands:"),
                code("\n".join(commands)),
            ]
        ),
    )


def value_command(config: Value) -> str:
    """The command that learns the value again."""
    import shlex

    own = {"model": config.model, **VALUE, "seed": config.seed, "output": config.output}
    words = (f"--{name.replace('_', '-')} {shlex.quote(str(v))}" for name, v in own.items())
    return f"genpol value {' '.join(words)}"


def _left(config: Generate) -> str:
    return ", ".join(f"{100 * share:g} %" for share in config.prune_at)


def _story(config: Generate) -> str:
    return (
        "The pipeline as shipped draws these pictures, without any change of its weights. For each "
        f"picture {config.num_candidates} chains begin. When {_left(config)} of the denoising "
        "steps remain, the chains with lower values end, so that one is finished. The value here "
        "is the reward of the picture that a chain is heading for. The prompts are held out."
    )


def _learnt(value: Value, config: Generate) -> str:
    """How the learnt value ranks unfinished images, and what steering by it came to."""
    import csv

    from genpol.training.image_value_page import at_share
    from offline.documents import read_document

    document = read_document(value.output / "value" / "value.json", dict[str, Any])
    row = at_share(document["about"]["held_out"], LEFT) or {}
    with open(config.output / "images.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    reward, spent = (sum(float(r[n]) for r in rows) / len(rows) for n in ("reward", "evaluations"))
    return (
        "Where the reward is dear, a network can learn the value. This one learnt it from "
        f"{value.num_prompts * value.images_per_prompt} images of {value.num_prompts} prompts in "
        f"{value.steps} steps. When {100 * LEFT:g} % of the steps remain, its rank correlation "
        "with the reward is "
        f"{row.get('rank_correlation', float('nan')):.2f} within {value.num_held_out} held-out "
        f"prompts. Pruning by it at {_left(config)} gives the same prompts a mean reward of "
        f"{reward:.3f}, at {spent:g} network evaluations each and without asking the reward. So "
        "short a run gains little; `genpol value` learns from more by default."
    )
