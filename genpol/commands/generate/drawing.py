"""Reading prompts, loading a pipeline and drawing images with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from diffusion.recommended import recommended
from genpol.commands.generate.options import Generate

if TYPE_CHECKING:
    from torch import Tensor


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


def load(config: Generate) -> Any:
    """The pipeline, with its LoRA or its fine-tuned network."""
    from diffusion.families import family_class
    from diffusion.loading import load_pipeline
    from diffusion.lora import load_lora, lora_file
    from genpol.commands.finetune.family import family_of

    if config.lora:
        lora_file(config.lora)  # before gigabytes are read
    own = family_of(config)
    pipe = load_pipeline(
        config.model,
        dtype=config.dtype,
        scheduler=config.scheduler,
        variant=config.variant,
        model_config=config.model_config,
        family=own,
    )
    name = (own or family_class(type(pipe).__name__)).denoiser_name
    if config.lora:
        load_lora(pipe, config.lora, denoiser=name)
    if config.unet:
        setattr(pipe, name, load_unet(config.unet, getattr(pipe, name)))
    return pipe


def pipeline_call(config: Generate, pipe: Any, prompts: list[str]) -> dict[str, Any]:
    """What `draw_images` is told: the options, else the recommended values; and "drawn", which
    draws where the pipeline's own call takes other arguments.

    The pipeline is moved to the device. Says how many prompts are longer than it reads.
    """
    from diffusion.families import family_class
    from genpol.commands.finetune.family import advice, family_of
    from genpol.commands.generate.drawn import Drawn
    from genpol.runs.device import pick_device

    usual = recommended(config.model, "prdp", advice(config))
    kind = family_of(config) or family_class(type(pipe).__name__)
    steps, scale = config.num_inference_steps, config.guidance_scale
    call: dict[str, Any] = {
        "num_inference_steps": usual["num_inference_steps"] if steps is None else steps,
        "guidance_scale": usual["guidance_scale"] if scale is None else scale,
        "negative_prompt": config.negative_prompt,
        "eta": config.eta,
    }
    sizes = {name: getattr(config, name) for name in ("height", "width", "max_sequence_length")}
    length = sizes["max_sequence_length"]
    sizes["max_sequence_length"] = usual.get("max_sequence_length") if length is None else length
    call["drawn"] = Drawn(
        pipe,
        kind,
        pick_device(config.device),
        call,
        sizes,
        sampler=config.sampler,
        noise_level=config.noise_level,
    )
    warn_of_cuts(call["drawn"].policy.family, prompts, call)
    return call


def warn_of_cuts(family: Any, prompts: list[str], call: dict[str, Any]) -> None:
    """Say how many prompts are longer than the pipeline reads."""
    from diffusion.prompts.lengths import say_cuts_once, warnings_of_cuts

    say_cuts_once()
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


def draw_images(pipe: Any, prompts: list[str], seeds: list[int], call: dict[str, Any]) -> Tensor:
    """Images (B, 3, H, W) in [0, 1], one CPU generator per image: by the pipeline's own call, or by
    `call["drawn"]`, where it is one whose call takes other arguments.

    A prompt's own negative prompt counts before the one of `call`.
    """
    from contextlib import nullcontext

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
            texts = [prompts[i] for i in rows]
            with nullcontext() if drawn is None else drawn.in_pieces():
                found = pipe(texts, generator=generators, output_type="pt", **options).images
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
