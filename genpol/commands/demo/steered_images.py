"""The demo's part about a value of unfinished images, which prunes the chains of a pipeline."""

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
    "steps": 150,
}
PICTURES: dict[str, Any] = {
    "num_prompts": 16,
    "num_candidates": 8,
    "prune_at": (0.7, 0.4, 0.2),
    "guidance_control": "none",  # the part that fine-tunes shows it
}


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


def picture_settings(folder: Path, seed: int, threads: int | None) -> Generate:
    """The pictures that it steers, in `folder`/pictures."""
    from genpol.commands.generate.options import Generate

    return Generate(
        model="tiny",
        prompts="world",
        value=(str(folder / "value"),),
        reward="attributes",
        report=True,
        seed=seed,
        threads=threads,
        output=folder / "pictures",
        **PICTURES,
    )


def panel(folder: Path, seed: int, threads: int | None) -> Panel:
    """Learn the value, draw the pictures and say what came of it.

    Raises:
        Interrupted: a signal stopped it.
    """
    from genpol.commands.generate.command import generate
    from genpol.commands.generate.steered import command_of
    from genpol.commands.value.command import run as learn
    from genpol.reports.page import Panel, code, paragraph

    value = value_settings(folder, seed, threads)
    pictures = picture_settings(folder, seed, threads)
    print(f"learning the value of unfinished images from {images_of(value)} images: half a minute")
    learn(value)
    result, beside, gallery, *_ = generate(pictures)
    return Panel(
        "Images steered by a value",
        "\n".join(
            [
                paragraph(_story(value, pictures)),
                result.html,
                beside.html,
                gallery.html,
                paragraph("Commands:"),
                code(f"{value_command(value)}\n{command_of(pictures)}"),
            ]
        ),
    )


def images_of(config: Value) -> int:
    """Images that the value learns from."""
    return config.num_prompts * config.images_per_prompt


def value_command(config: Value) -> str:
    """The command that learns the value again."""
    import shlex

    own = {"model": config.model, **VALUE, "seed": config.seed, "output": config.output}
    words = (f"--{name.replace('_', '-')} {shlex.quote(str(v))}" for name, v in own.items())
    return f"genpol value {' '.join(words)}"


def _story(value: Value, pictures: Generate) -> str:
    left = ", ".join(f"{100 * share:g} %" for share in pictures.prune_at)
    return (
        "The pipeline as shipped draws these pictures, without any change of its weights. A small "
        "network has learnt what reward an unfinished image is going to have, from "
        f"{images_of(value)} images that the pipeline drew of {value.num_prompts} prompts and "
        f"their rewards. For each picture {pictures.num_candidates} chains begin. When {left} of "
        "the denoising steps remain, the chains with lower values end, so that one is finished. "
        "The prompts are held out."
    )
