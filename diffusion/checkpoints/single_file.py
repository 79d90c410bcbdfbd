"""Models in one `.safetensors` file, in the layout of their authors and of the user interfaces.

Such a file holds weights: of all networks, or of the denoiser alone. Its configuration, tokenisers
and scheduler, and the networks that it lacks, come from a diffusers folder or hub id of the same
architecture.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from diffusion.checkpoints.channels import require_channels
from diffusion.checkpoints.components import Say, heard, load_networks, networks
from diffusion.checkpoints.index import SCHEDULER, UNUSED, Checkpoint, absent, require_parts
from diffusion.checkpoints.schedulers import mended, read_scheduler
from diffusion.errors import InputError, listed, shown
from diffusion.families import family_class

PREFIX = "model.diffusion_model."
PICKLES = (".ckpt", ".pt", ".pth", ".bin")
FILES = (".safetensors", ".gguf", *PICKLES)
VAE = ("first_stage_model.", "vae.")
LORA = (
    "lora_down", "lora_up", "lora_A", "lora_B", "lora_unet_", "lora_te", ".lora.", "hada_w",
    "lokr_w", "lora_transformer_",
)  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """Files of one architecture.

    marks: names, without PREFIX, of which all are there; one tuple for each layout. parts: a
    network that such a file may hold -> how its names start.
    """

    words: str
    pipeline: str
    denoiser: str
    marks: tuple[tuple[str, ...], ...]
    entries: tuple[str, ...]
    parts: dict[str, tuple[str, ...]]


# The first whose marks are there. Those without an index are in the layout of diffusers.
LAYOUTS = (
    Layout(
        "Stable Diffusion XL", "StableDiffusionXLPipeline", "unet",
        (
            ("input_blocks.0.0.weight", "label_emb.0.0.weight"),
            ("conv_in.weight", "time_embedding.linear_1.weight", "add_embedding.linear_1.weight"),
        ),
        ("input_blocks.0.0.weight", "conv_in.weight"),
        {
            "vae": VAE,
            "text_encoder": ("conditioner.embedders.0.",),
            "text_encoder_2": ("conditioner.embedders.1.",),
        },
    ),
    Layout(
        "Stable Diffusion", "StableDiffusionPipeline", "unet",
        (
            ("input_blocks.0.0.weight",),
            ("conv_in.weight", "time_embedding.linear_1.weight"),
        ),
        ("input_blocks.0.0.weight", "conv_in.weight"),
        {"vae": VAE, "text_encoder": ("cond_stage_model.",)},
    ),
    Layout(
        "Stable Diffusion 3", "StableDiffusion3Pipeline", "transformer",
        (
            ("joint_blocks.0.x_block.attn.qkv.weight", "x_embedder.proj.weight"),
            ("transformer_blocks.0.attn.add_q_proj.weight", "pos_embed.proj.weight"),
        ),
        ("x_embedder.proj.weight", "pos_embed.proj.weight"),
        {
            "vae": VAE,
            "text_encoder": ("text_encoders.clip_l.",),
            "text_encoder_2": ("text_encoders.clip_g.",),
            "text_encoder_3": ("text_encoders.t5xxl.",),
        },
    ),
    Layout(
        "Flux.1", "FluxPipeline", "transformer",
        (
            ("double_blocks.0.img_attn.qkv.weight", "vector_in.in_layer.weight"),
            ("single_transformer_blocks.0.proj_mlp.weight", "x_embedder.weight"),
        ),
        ("img_in.weight", "x_embedder.weight"),
        {
            "vae": VAE,
            "text_encoder": ("text_encoders.clip_l.",),
            "text_encoder_2": ("text_encoders.t5xxl.",),
        },
    ),
)  # fmt: skip


def is_single_file(model: str) -> bool:
    """Whether a model is named by a file of weights, there or not."""
    return Path(model).suffix.lower() in FILES and not Path(model).is_dir()


@dataclass(frozen=True)
class SingleFile:
    """A checked file: its layout and the shapes of its tensors by name."""

    path: Path
    layout: Layout
    shapes: dict[str, tuple[int, ...]]

    def held(self, part: str) -> bool:
        """Whether the file holds a network of the pipeline."""
        if part == self.layout.denoiser:
            return True
        starts = self.layout.parts.get(part, ())
        return any(name.startswith(starts) for name in self.shapes) if starts else False

    @property
    def channels(self) -> int | None:
        """Input channels of the denoiser."""
        for entry in self.layout.entries:
            shape = self.shapes.get(entry) or self.shapes.get(PREFIX + entry)
            if shape is not None and len(shape) > 1:
                return shape[1]
        return None

    def default_config(self) -> str:
        """The hub id whose configuration fits, as diffusers infers it."""
        from diffusers.loaders.single_file_utils import fetch_diffusers_config

        empty = {name: torch.empty(shape, device="meta") for name, shape in self.shapes.items()}
        return fetch_diffusers_config(empty)["pretrained_model_name_or_path"]


def open_single_file(model: str) -> SingleFile:
    """Read a file's header.

    Raises:
        InputError: there is no such file, or it holds no model that can be trained.
    """
    path = Path(model)
    if "://" in model:
        raise InputError(f'--model "{shown(model)}" is an address; download the file and pass it')
    if not path.is_file():
        raise InputError(f'--model "{shown(model)}": no file of that name')
    if path.suffix.lower() in PICKLES:
        raise InputError(
            f'--model "{shown(model)}" is a pickle, which can run code when it is opened; pass a '
            ".safetensors file"
        )
    shapes = _shapes(path)
    names = {name.removeprefix(PREFIX) for name in shapes}
    if any(mark in name for name in names for mark in LORA):
        raise InputError(
            f'--model "{shown(model)}" is a LoRA, and no model: pass it as --lora, and the model '
            "that it belongs to as --model"
        )
    if "edm_mean" in names:
        raise InputError(
            f'"{shown(model)}" is of EDM\'s noise levels, and not of a table of betas; training it '
            "as DDIM's would undo it"
        )
    for layout in LAYOUTS:
        if any(set(marks) <= names for marks in layout.marks):
            return SingleFile(path, layout, shapes)
    raise InputError(
        f'--model "{shown(model)}" holds no model that is known by its tensors '
        f"({', '.join(shown(name, 40) for name in sorted(shapes)[:3])}, ...); single files of "
        f"{', '.join(layout.words for layout in LAYOUTS)} can be read"
    )


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes by name, from the header alone, once the file's length is what it says."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(size, 100_000_000):
                raise ValueError("its first bytes are no length of a header")
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            last = max((int(one["data_offsets"][1]) for one in header.values()), default=0)
            shapes = {name: tuple(map(int, one["shape"])) for name, one in header.items()}
    except (OSError, ValueError, RecursionError, struct.error, KeyError, TypeError) as error:
        raise InputError(
            f'"{path}" is no safetensors file ({shown(error)}); was it downloaded whole?'
        ) from error
    except AttributeError as error:  # JSON, and no object
        raise InputError(f'"{path}" is no safetensors file') from error
    if 8 + length + last > size:
        raise InputError(
            f'"{path}" is cut off: it has {size:,} bytes of {8 + length + last:,}; download it '
            "again"
        )
    return shapes


def load_single_file(
    model: str, config: str | None, *, dtype: torch.dtype, variant: str | None, say: Say
) -> Any:
    """A pipeline of a single file and of a configuration's folder or hub id.

    Says in one line what came from where.

    Raises:
        InputError: the file or the configuration cannot be used, or they do not fit.
    """
    import diffusers

    file = open_single_file(model)
    found = configuration(file, config)
    family = family_class(found.class_name, model)
    require_parts(found, family.may_lack)
    vae, packed = found.config("vae"), family.channels_per_latent
    require_channels({"in_channels": file.channels}, vae, packed, file.layout.denoiser, model)
    rest = [part for part in networks(found) if not file.held(part)]
    kind: Any = getattr(diffusers, found.class_name)
    parts = absent(found)
    folder = _with_weights(found, file, rest, variant)
    parts |= load_networks(found, folder, rest, dtype=dtype, variant=variant, say=say)
    if marked := marked_settings(file, found):
        settings = ", ".join(f"{key}={value}" for key, value in marked.items())
        say(f"{file.path.name} is marked as a model that predicts v: {settings}")
    parts["scheduler"] = read_scheduler(found, **marked)
    before = dict(parts["scheduler"].config)
    held = [part for part in found.parts if file.held(part)]
    try:
        with heard(say):
            pipe = kind.from_single_file(
                str(file.path),
                config=str(folder),
                local_files_only=True,
                torch_dtype=dtype,
                **parts,
            )
    except Exception as error:  # shapes, names and files fail each in their way
        why = shown(error, 200)
        if "meta" in why:  # a tensor that is still a placeholder
            why = "the file lacks tensors that the configuration asks for"
        raise InputError(
            f'cannot load "{model}" with the configuration of "{found.name}": {why}; is it that of '
            "this model?"
        ) from error
    for part in held:
        _require_all(getattr(pipe, part), part, model)
    if changed := mended(pipe, before):
        say(changed)
    others = [part for part in found.parts if part not in held and part not in UNUSED]
    say(f"{file.path.name}: {listed(held)} from the file; {listed(others)} from {found.name}")
    return pipe


def configuration(file: SingleFile, config: str | None) -> Checkpoint:
    """The checkpoint whose configuration a single file is read with.

    Raises:
        InputError: there is none, or it is of another architecture.
    """
    layout = file.layout
    if config is None:
        try:
            config = file.default_config()
            found = Checkpoint(config, option="the configuration")
        except InputError as error:
            raise InputError(
                f'"{file.path}" holds weights alone, and its configuration cannot be had from the '
                f"hub ({config}); pass --model-config FOLDER, a diffusers folder of the same "
                "architecture"
            ) from error
    else:
        found = Checkpoint(config, option="--model-config")
    if found.class_name != layout.pipeline:
        raise InputError(
            f'"{file.path}" is {layout.words}, and --model-config "{found.name}" is a '
            f"{found.class_name}; pass the folder of a {layout.pipeline}"
        )
    return found


def marked_settings(file: SingleFile, found: Checkpoint) -> dict[str, Any]:
    """Settings of the scheduler that a file is marked with, and its configuration has otherwise."""
    config = found.config("scheduler", SCHEDULER)
    if "v_pred" not in file.shapes or config.get("prediction_type") == "v_prediction":
        return {}
    zero = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return {"prediction_type": "v_prediction"} | (zero if "ztsnr" in file.shapes else {})


def _with_weights(
    found: Checkpoint, file: SingleFile, rest: list[str], variant: str | None
) -> Path:
    """The folder of the configuration, with the weights of what the file lacks."""
    if found.folder is not None:
        return found.folder
    from diffusers import DiffusionPipeline

    for part in found.parts:
        found.fetched(f"{part}/config.json")
    left_out = absent(found) | {part: None for part in networks(found) if part not in rest}
    try:
        return Path(
            DiffusionPipeline.download(
                found.source, use_safetensors=True, variant=variant, **left_out
            )
        )
    except Exception as error:  # the hub and the network fail in many ways
        raise InputError(
            f'cannot download the rest of "{found.name}": {shown(error, 160)}; pass --model-config '
            "with a folder that is here"
        ) from error


def _require_all(network: torch.nn.Module, part: str, model: str) -> None:
    lacking = [name for name, weight in network.state_dict().items() if weight.is_meta]
    if lacking:
        raise InputError(
            f'cannot load "{model}": its {part} lacks {len(lacking)} tensors ({lacking[0]}, ...) '
            "that the configuration asks for; is --model-config that of this model?"
        )
