"""`genpol generate`: sample a pipeline, with a LoRA, optionally the best of K by a reward."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from genpol.commands.generate.drawing import draw_images, load, pipeline_call, png, read_prompts
from genpol.commands.generate.options import Generate
from genpol.runs.machine import drawing, on_this_machine

if TYPE_CHECKING:
    from genpol.reports.page import Panel
    from offline.threads import Typical

IN_GRID = 25  # images that grid.png shows at most
COLUMNS = ("file", "prompt", "seed", "reward", "reward_mean", "candidates", "scheduler")


def work(config: Generate) -> list[Typical]:
    """Typical operations, from the configuration of the UNet."""
    from diffusion.loading import denoiser_config

    return drawing(config, denoiser_config(config.model_config or config.model), config.batch)


def run(config: Generate) -> None:
    """Write what `generate` writes."""
    generate(config)


@on_this_machine(work)
def generate(config: Generate) -> list[Panel]:
    """Write one PNG per image, grid.png with captions, and images.csv.

    The seeds in images.csv reproduce each image in plain diffusers.

    Returns:
        The panels of the page that --report writes; none without it.

    Raises:
        InputError: for what a user can mend.
        Interrupted: a signal stopped it; images.csv has the images that there are.
    """
    from genpol.runs.quiet import hide_loading_bars, hush

    hush()
    import time

    from tqdm import tqdm

    from diffusion.drawing import Stopped
    from diffusion.errors import InputError
    from diffusion.rewards import load_reward
    from genpol.commands.generate.pairs import draw_pairs
    from genpol.commands.generate.steered import require_together, steered_drawing
    from genpol.runs.device import pick_device
    from genpol.runs.interrupts import InterruptGuard
    from genpol.runs.lock import FolderLock
    from offline.files import disk_errors
    from offline.option_check import check_numbers

    check_numbers(config)
    require_together(config)
    if config.pairs_from is not None:
        draw_pairs(config, config.pairs_from)
        return []
    if config.num_images is not None:
        raise InputError(
            "--num-images is for --pairs-from; without it, --images-per-prompt images are kept, "
            "each the best of --best-of"
        )
    if config.best_of > 1 and not config.reward:
        raise InputError(f"--best-of {config.best_of} needs --reward to choose by")
    require_unused(config.output)
    prompts = read_prompts(config)
    reward = (
        load_reward(config.reward, device=pick_device(config.device), trust=config.trust)
        if config.reward
        else None
    )
    hide_loading_bars()
    pipe = load(config)
    call = pipeline_call(config, pipe, prompts)
    steered = steered_drawing(config, pipe, call["drawn"], reward) if config.value else None
    wanted = [prompt for prompt in prompts for _ in range(config.images_per_prompt)]
    rows: list[dict[str, Any]] = []
    panels: list[Panel] = []
    per_batch = steered.at_once if steered else max(1, config.batch // config.best_of)
    extra = steered.columns if steered else ()
    remedy = "Free some space, or pass another --output"
    with disk_errors(f"cannot write in {config.output}", remedy):
        config.output.mkdir(parents=True, exist_ok=True)
    with FolderLock(config.output), InterruptGuard() as guard:
        require_unused(config.output)  # once more: another process may have had it meanwhile
        firsts, table = range(0, len(wanted), per_batch), config.output / "images.csv"
        saved = time.monotonic()
        with disk_errors(f"cannot write in {config.output}", remedy):
            try:
                for first in tqdm(firsts, unit="batch", disable=len(wanted) <= per_batch):
                    if guard.stop:
                        break
                    chunk = wanted[first : first + per_batch]
                    if steered:
                        rows += steered.draw(chunk, first, lambda: guard.stop)
                    else:
                        rows += draw_batch(pipe, chunk, first, config, call, reward)
                    if time.monotonic() - saved > 1:  # a kill leaves what there was by then
                        write_csv(table, rows, extra)
                        saved = time.monotonic()
            except Stopped:
                pass
            finally:
                if rows:
                    write_csv(table, rows, extra)
                    write_grid(config.output, rows, len(wanted))
            if steered and config.report and len(rows) == len(wanted):
                try:
                    panels = steered.report(lambda: guard.stop)
                except Stopped:
                    words = f"all images are in {config.output}; stopped before report.html"
                    raise guard.interrupted(words) from None
    if not rows:
        raise guard.interrupted("stopped before the first image")
    if len(rows) < len(wanted):
        raise guard.interrupted(
            f"stopped after {len(rows)} of {len(wanted)} images, which are in {config.output} with "
            "their images.csv; to draw all of them, pass another --output"
        )
    scored = f", mean reward {sum(r['reward'] for r in rows) / len(rows):.4f}" if reward else ""
    page = " and report.html" if config.report else ""
    print(f"{len(rows)} images and images.csv{page} in {config.output}{scored}")
    return panels


def require_unused(output: Path) -> None:
    """Check that no images are there already.

    Raises:
        InputError: they are.
    """
    from diffusion.errors import InputError

    if (output / "images.csv").exists():
        raise InputError(f'"{output}" already holds images.csv; pass another --output')


def draw_batch(
    pipe: Any, prompts: list[str], first: int, config: Generate, call: dict[str, Any], reward: Any
) -> list[dict[str, Any]]:
    """Draw, choose and save some images; returns their rows of images.csv."""
    from diffusion.checkpoints.schedulers import replaced
    from genpol.steering.pictures import Judged, Pictures, as_images, observations
    from genpol.steering.select import argmax
    from genpol.steering.steered import Steered
    from offline.files import write_beside

    def draw(texts: list[str], seeds: list[int]) -> Any:
        return draw_images(pipe, texts, seeds, call)

    k, scheduler = config.best_of, replaced(pipe) or type(pipe.scheduler).__name__
    seeds = [config.seed + (first + i) * k for i in range(len(prompts))]
    size = call["drawn"].policy.family.image_size
    base, obs = Pictures(draw, prompts, size), observations(range(len(prompts)), seeds)
    if reward:
        judged = Judged(reward, prompts, size)
        chosen = Steered(base, judged, k, argmax(), check=False).decide(obs, None)
        images, best, scores = as_images(chosen.action), chosen.chosen.tolist(), chosen.scores
    else:
        images, best, scores = as_images(base.sample(obs, 1, None)[:, 0]), [0] * len(prompts), None
    rows = []
    for i, prompt in enumerate(prompts):
        name = f"{first + i:05d}.png"
        write_beside(config.output / name, png(images[i]))
        row: dict[str, Any] = {"file": name, "prompt": prompt, "seed": seeds[i] + best[i]}
        row |= {"candidates": k, "scheduler": scheduler}
        own = getattr(prompt, "negative", None)
        if own is not None:
            row["negative_prompt"] = own
        if scores is not None:
            row |= {"reward": float(scores[i, best[i]]), "reward_mean": float(scores[i].mean())}
        rows.append(row)
    return rows


def write_grid(output: Path, rows: list[dict[str, Any]], wanted: int) -> None:
    """grid.png: the first images, each with its prompt under it."""
    import io

    from PIL import Image

    from genpol.reports.grids import captioned
    from offline.files import write_beside

    shown = rows[:IN_GRID]
    title = "" if len(shown) == wanted else f"The first {len(shown)} of {wanted} images"
    captions = [str(row["prompt"]) for row in shown]
    buffer = io.BytesIO()
    captioned([Image.open(output / row["file"]) for row in shown], captions, title=title).save(
        buffer, format="PNG"
    )
    write_beside(output / "grid.png", buffer.getvalue())


def write_csv(path: Path, rows: list[dict[str, Any]], extra: tuple[str, ...] = ()) -> None:
    """images.csv, whole or not at all."""
    import csv
    import io

    from offline.files import write_beside

    buffer = io.StringIO()
    own = ("negative_prompt",) if any("negative_prompt" in row for row in rows) else ()
    writer = csv.DictWriter(buffer, (*COLUMNS, *extra, *own), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_beside(path, buffer.getvalue().encode())
