"""`genpol generate`: sample a pipeline, with a LoRA, optionally the best of K by a reward."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion.recommended import recommended
from genpol.commands.generate.options import Generate
from genpol.runs.machine import drawing, on_this_machine

if TYPE_CHECKING:
    from torch import Tensor

    from offline.threads import Typical

IN_GRID = 25  # images that grid.png shows at most
COLUMNS = ("file", "prompt", "seed", "reward", "reward_mean", "candidates", "scheduler")


def work(config: Generate) -> list[Typical]:
    """Typical operations, from the configuration of the UNet."""
    from diffusion.loading import denoiser_config

    return drawing(config, denoiser_config(config.model_config or config.model), config.batch)


@on_this_machine(work)
def run(config: Generate) -> None:
    """Write one PNG per image, grid.png with captions, and images.csv.

    The seeds in images.csv reproduce each image in plain diffusers.

    Raises:
        InputError: for what a user can mend.
        Interrupted: a signal stopped it; images.csv has the images that there are.
    """
    from genpol.runs.quiet import hide_loading_bars, hush

    hush()
    import time

    from tqdm import tqdm

    from diffusion.errors import InputError
    from diffusion.families import family_class
    from diffusion.loading import load_pipeline
    from diffusion.lora import load_lora, lora_file
    from diffusion.rewards import load_reward
    from genpol.commands.finetune.family import advice, family_of
    from genpol.commands.generate.drawing import Drawn
    from genpol.runs.device import pick_device
    from genpol.runs.interrupts import InterruptGuard
    from genpol.runs.lock import FolderLock
    from offline.files import disk_errors
    from offline.option_check import check_numbers

    check_numbers(config)
    if config.best_of > 1 and not config.reward:
        raise InputError(f"--best-of {config.best_of} needs --reward to choose by")
    require_unused(config.output)
    prompts = read_prompts(config)
    device = pick_device(config.device)
    reward = (
        load_reward(config.reward, device=device, trust=config.trust) if config.reward else None
    )
    if config.lora:
        lora_file(config.lora)  # before gigabytes are read
    hide_loading_bars()
    usual = recommended(config.model, "prdp", advice(config))
    own = family_of(config)
    pipe = load_pipeline(
        config.model,
        dtype=config.dtype,
        scheduler=config.scheduler,
        variant=config.variant,
        model_config=config.model_config,
        family=own,
    )
    kind = own or family_class(type(pipe).__name__)
    if config.lora:
        load_lora(pipe, config.lora, denoiser=kind.denoiser_name)
    if config.unet:
        name = kind.denoiser_name
        setattr(pipe, name, load_unet(config.unet, getattr(pipe, name)))
    call: dict[str, Any] = {
        "num_inference_steps": config.num_inference_steps or usual["num_inference_steps"],
        "guidance_scale": (
            usual["guidance_scale"] if config.guidance_scale is None else config.guidance_scale
        ),
        "negative_prompt": config.negative_prompt,
        "eta": config.eta,
    }
    sizes = {name: getattr(config, name) for name in ("height", "width", "max_sequence_length")}
    call["drawn"] = Drawn(
        pipe, kind, device, call, sizes, sampler=config.sampler, noise_level=config.noise_level
    )
    warn_of_cuts(pipe, prompts, call)
    wanted = [prompt for prompt in prompts for _ in range(config.images_per_prompt)]
    rows: list[dict[str, Any]] = []
    per_batch = max(1, config.batch // config.best_of)
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
                    rows += draw_batch(pipe, chunk, first, config, call, reward)
                    if time.monotonic() - saved > 1:  # a kill leaves what there was by then
                        write_csv(table, rows)
                        saved = time.monotonic()
            finally:
                if rows:
                    write_csv(table, rows)
                    write_grid(config.output, rows, len(wanted))
    if not rows:
        raise guard.interrupted("stopped before the first image")
    if len(rows) < len(wanted):
        raise guard.interrupted(
            f"stopped after {len(rows)} of {len(wanted)} images, which are in {config.output} with "
            "their images.csv; to draw all of them, pass another --output"
        )
    scored = f", mean reward {sum(r['reward'] for r in rows) / len(rows):.4f}" if reward else ""
    print(f"{len(rows)} images and images.csv in {config.output}{scored}")


def require_unused(output: Path) -> None:
    """Check that no images are there already.

    Raises:
        InputError: they are.
    """
    from diffusion.errors import InputError

    if (output / "images.csv").exists():
        raise InputError(f'"{output}" already holds images.csv; pass another --output')


def read_prompts(config: Generate) -> list[str]:
    """The prompts of a file in order, or held-out ones of a generator."""
    from itertools import islice

    from diffusion.errors import InputError
    from diffusion.prompts.sources import GENERATORS, read_all, take

    if config.prompts in GENERATORS:
        if config.num_prompts is None:
            raise InputError(f"--prompts {config.prompts} is a generator; add --num-prompts N")
        return take(config.prompts, config.num_prompts, config.seed)
    return list(islice(read_all(config.prompts, config.prompt_column), config.num_prompts))


def warn_of_cuts(pipe: Any, prompts: list[str], call: dict[str, Any]) -> None:
    """Say how many prompts are longer than the pipeline reads."""
    from diffusion.families import family_class
    from diffusion.prompts.lengths import say_cuts_once, warnings_of_cuts

    say_cuts_once()
    family = family_class(type(pipe).__name__)(pipe)
    negative = call["negative_prompt"] if family.guided(call["guidance_scale"]) else None
    for line in warnings_of_cuts(family, prompts, len(prompts), negative):
        print(f"warning: {line}")


def load_unet(folder: str, like: Any) -> Any:
    """A UNet saved by --train full, in the dtype of the one it replaces."""
    from diffusion.errors import InputError
    from diffusion.loading import require_finite

    try:
        unet = type(like).from_pretrained(folder, torch_dtype=like.dtype, use_safetensors=True)
    except Exception as error:  # a torn file and a missing one raise different kinds
        reason = " ".join(str(error).split())[:160]
        raise InputError(f'cannot load a UNet from "{folder}": {reason}') from error
    require_finite(unet, folder)
    return unet.eval()


def draw_batch(
    pipe: Any, prompts: list[str], first: int, config: Generate, call: dict[str, Any], reward: Any
) -> list[dict[str, Any]]:
    """Draw, choose and save some images; returns their rows of images.csv."""
    import torch

    from diffusion.checkpoints.schedulers import replaced
    from offline.files import write_beside

    k, scheduler = config.best_of, replaced(pipe) or type(pipe.scheduler).__name__
    seeds = [config.seed + first * k + i for i in range(len(prompts) * k)]
    repeated = [p for p in prompts for _ in range(k)]
    images = draw_images(pipe, repeated, seeds, call)
    scores = reward(images, repeated) if reward else torch.zeros(len(images))
    rows = []
    for i, prompt in enumerate(prompts):
        group = slice(i * k, (i + 1) * k)
        best = i * k + int(scores[group].argmax())
        name = f"{first + i:05d}.png"
        write_beside(config.output / name, png(images[best]))
        row: dict[str, Any] = {"file": name, "prompt": prompt, "seed": seeds[best]}
        row |= {"candidates": k, "scheduler": scheduler}
        own = getattr(prompt, "negative", None)
        if own is not None:
            row["negative_prompt"] = own
        if reward:
            row |= {"reward": float(scores[best]), "reward_mean": float(scores[group].mean())}
        rows.append(row)
    return rows


def draw_images(pipe: Any, prompts: list[str], seeds: list[int], call: dict[str, Any]) -> Tensor:
    """Images (B, 3, H, W) in [0, 1], one CPU generator per image: by the pipeline's own call, or by
    `call["drawn"]`, where it is one whose call takes other arguments.

    A prompt's own negative prompt counts before the one of `call`.
    """
    import torch

    from diffusion.prompts.prompt import negative_of

    call = dict(call)
    drawn = call.pop("drawn", None)
    if drawn is not None:
        if not drawn.by_pipeline:
            return drawn(prompts, seeds)
        call |= drawn.size
    negatives = [negative_of(prompt, call["negative_prompt"]) for prompt in prompts]
    options = dict(call)
    if type(pipe.scheduler).__name__ == "DDPMScheduler":
        options.pop("eta")
    images: list[Any] = [None] * len(prompts)
    for some in (True, False):
        rows = [i for i, negative in enumerate(negatives) if bool(negative) == some]
        if rows:
            # None, not "": SDXL then zeroes the negative embedding, as it does in fine-tuning.
            options["negative_prompt"] = [negatives[i] for i in rows] if some else None
            generators = [torch.Generator().manual_seed(seeds[i]) for i in rows]
            found = pipe(
                [prompts[i] for i in rows], generator=generators, output_type="pt", **options
            ).images
            for i, image in zip(rows, found.float().cpu(), strict=True):
                images[i] = image
    return torch.stack(images)


def png(image: Tensor) -> bytes:
    """PNG bytes of one image."""
    import io

    from genpol.reports.grids import to_pil

    buffer = io.BytesIO()
    to_pil(image).save(buffer, format="PNG")
    return buffer.getvalue()


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


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """images.csv, whole or not at all."""
    import csv
    import io

    from offline.files import write_beside

    buffer = io.StringIO()
    own = ("negative_prompt",) if any("negative_prompt" in row for row in rows) else ()
    writer = csv.DictWriter(buffer, (*COLUMNS, *own), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_beside(path, buffer.getvalue().encode())
