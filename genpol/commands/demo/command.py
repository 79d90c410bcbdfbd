"""`genpol demo`: a small run of each main job on shipped assets, and one page of results."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offline.ranges import Seed, Threads

if TYPE_CHECKING:
    from genpol.reports.page import Panel

SETTINGS: dict[str, Any] = {  # of the fine-tuning part; the rest is what `--model tiny` recommends
    "model": "tiny",
    "reward": "attributes",
    "epochs": 40,
    "eval_every": 10,
    "eval_images": 128,
    "final_eval_images": 384,
    "checkpoint_every": 20,
    "best_of_k": 4,
    "guidance_control": "3",
    "wandb": "offline",
}


@dataclass(frozen=True)
class Demo:
    """Run each main job, small, on shipped assets; write a page of results."""

    output: Path = Path("runs/demo")
    """Folder of the page (index.html) and of the runs behind it. An earlier demo in it is
    replaced."""
    seed: Seed = 0
    """Seed of everything random."""
    threads: Threads | None = None
    """Threads of PyTorch on the CPU, at least 1. Default: one for the robot's parts, so that they
    are the same on any number of processors; for the images as in `genpol finetune`."""


def run(config: Demo) -> None:
    """Run every part and write OUTPUT/index.html.

    Raises:
        InputError: another process is at work in the folder, or it cannot be written in.
        Interrupted: a signal stopped it; there is no page then.
    """
    from genpol.reports.page import page
    from genpol.runs.interrupts import Interrupted
    from genpol.runs.lock import FolderLock
    from genpol.runs.quiet import hush
    from offline.files import disk_errors, write_beside

    hush()
    target = config.output / "index.html"
    with disk_errors(f"cannot make {config.output}", "Pass another --output"):
        config.output.mkdir(parents=True, exist_ok=True)
    panels: list[Panel] = []
    with FolderLock(config.output):
        try:
            for part in (images, steered_images, steering, distilled, training, world_model):
                panels += part(config)
        except Interrupted as stopped:
            text = "the demo was stopped; the same command starts it from the beginning"
            raise Interrupted(text, stopped.number) from stopped
        with disk_errors(f"cannot write {target}", "Free some space, or pass another --output"):
            write_beside(target, page(panels).encode())
    print(f"open {target.resolve()}")


def images(config: Demo) -> list[Panel]:
    """Fine-tune the shipped pipeline."""
    from diffusion.config import check
    from diffusion.loading import TINY
    from genpol.commands.finetune.command import complete, train
    from genpol.commands.finetune.options import Finetune
    from genpol.finetuning.report import finetune_panels

    folder = config.output / "images"
    remove_earlier(folder, "finetune")
    settings = complete(
        Finetune(**SETTINGS, seed=config.seed, threads=config.threads, output=folder)
    )
    check(settings)
    print(f"fine-tuning the shipped pipeline: {settings.epochs} epochs, a few minutes")
    train(settings, {})
    return finetune_panels(folder, str(TINY))


def steered_images(config: Demo) -> list[Panel]:
    """Steer the shipped pipeline by values of unfinished images."""
    import shutil

    from genpol.commands.demo.steered_images import panel

    folder = config.output / "steered-images"
    remove_earlier(folder / "value", "value")
    for pictures in (folder / "by-reward", folder / "by-value"):
        if (pictures / "images.csv").is_file():
            shutil.rmtree(pictures)
    return [panel(folder, config.seed, config.threads)]


STEERING: dict[str, Any] = {  # of the steering part
    "num_candidates": 32,
    "temperature": 1.0,
    "episodes": 50,
    "videos": 3,
    "wandb": "offline",
}


def steering(config: Demo) -> list[Panel]:
    """Steer the shipped robot policy, which was cloned from demonstrations of mixed quality."""
    from dataclasses import replace
    from pathlib import Path as Folder

    import genpol
    from genpol.commands.steer.command import Steer, steer
    from genpol.steering.report import panels

    folder = config.output / "steering"
    remove_earlier(folder, "steer")
    assets = Folder(genpol.__file__).parent / "assets" / "steering"
    print("steering the shipped robot policy: 50 paired episodes for each arm")
    found = steer(
        Steer(
            policy=str(assets / "policy"),
            value=(str(assets / "value"),),
            filtered=str(assets / "filtered"),
            seed=config.seed,
            threads=config.threads or 1,
            output=folder,
            **STEERING,
        )
    )
    print(found.advice())
    made = panels(found, folder)
    return [replace(panel, title=f"Robot policy: {panel.title}") for panel in made]


def distilled(config: Demo) -> list[Panel]:
    """Distil the steering of the part before into the policy's weights."""
    from pathlib import Path as Folder

    import genpol
    from genpol.commands.demo.distilled import panel, settings

    folder, assets = config.output / "distilled", Folder(genpol.__file__).parent / "assets"
    remove_earlier(folder, "train")
    options = settings(
        folder,
        assets / "steering" / "policy",
        assets / "steering" / "value",
        assets / "training" / "demos.hdf5",
        config.seed,
        config.threads or 1,
        STEERING["temperature"],
    )
    return [panel(folder, config.output / "steering", options, STEERING["num_candidates"])]


TRAINING: dict[str, Any] = {  # of the part that trains by reward: a small critic, for one core
    "agent": "expo",
    "steps": 4000,
    "reward": "zero-one",
    "reward_scale": 10.0,
    "n_step": 8,
    "batch_size": 128,
    "target_rate": 0.01,
    "init_temperature": 0.01,
    "value_ensemble": 5,
    "hidden": (256, 256),
    "num_candidates": 8,
    "candidates": "two-step",
    "edit_scale": 0.05,
    "base_filter": "success",
    "eval_every": 1000,
    "eval_episodes": 50,
    "videos": 4,
    "device": "cpu",
    "wandb": "offline",
}


def training(config: Demo) -> list[Panel]:
    """Train the shipped robot policy by reward (EXPO)."""
    from dataclasses import replace
    from pathlib import Path as Folder

    import genpol
    from genpol.commands.train.command import Train, check, train
    from genpol.reports.page import Panel, paragraph
    from genpol.runs.allocator import keep_freed_memory
    from genpol.training.report import panels
    from genpol.training.session import Clock

    keep_freed_memory()
    folder = config.output / "training"
    remove_earlier(folder, "train")
    assets = Folder(genpol.__file__).parent / "assets" / "training"
    settings = Train(
        base=str(assets / "policy"),
        data=(str(assets / "demos.hdf5"),),
        seed=config.seed,
        threads=config.threads or 1,
        output=folder,
        **TRAINING,
    )
    check(settings)
    print(f"training the shipped robot policy by reward: {settings.steps:,} steps, a few minutes")
    train(settings, {}, Clock())
    story = (
        "A flow policy was cloned from 40 demonstrations by two operators. Each operator moves "
        "precisely but misjudges the object's position, always towards his own side. Of the 40 "
        "demonstrations 14 succeed. EXPO (arXiv 2507.07986) then trains the policy in the "
        "simulator, with a reward of 1 at success and 0 elsewhere. The policy keeps imitating "
        "successful episodes, its own included. A small network edits its proposals towards higher "
        "value. The best of proposals and edits is executed."
    )
    first, *rest = panels(folder, chosen=2)
    found = [Panel(first.title, paragraph(story) + first.html), *rest]
    return [replace(panel, title=f"Trained by reward: {panel.title}") for panel in found]


def world_model(config: Demo) -> list[Panel]:
    """Train SAC with a world model and without one."""
    from genpol.commands.demo.world_model import ARMS, panel, train_both
    from genpol.runs.allocator import keep_freed_memory

    keep_freed_memory()
    folder = config.output / "world-model"
    for arm in ARMS:
        remove_earlier(folder / arm, "train")
    train_both(folder, config.seed, config.threads or 1)
    return [panel(folder)]


def remove_earlier(folder: Path, command: str) -> None:
    """Delete the run of `command` that an earlier demo left here; anything else is not touched.

    Raises:
        InputError: a process is at work in it.
    """
    import json
    import shutil

    from genpol.runs.lock import FolderLock

    try:
        document = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return
    if isinstance(document, dict) and document.get("command") == command:
        with FolderLock(folder):
            shutil.rmtree(folder)
