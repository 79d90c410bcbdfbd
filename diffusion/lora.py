"""LoRAs: files of others brought into a pipeline."""

from __future__ import annotations

import hashlib
from pathlib import Path

from diffusion.errors import InputError
from diffusion.families import family_class
from diffusion.loading import reason, require_finite

TRAINED, REFERENCE = "default", "reference"  # adapter names


def lora_fingerprint(folder: str) -> str:
    """16 hex digits of a LoRA's file. Raises InputError where there is none."""
    return hashlib.sha256(_lora_file(folder).read_bytes()).hexdigest()[:16]


def _lora_file(folder: str) -> Path:
    path = Path(folder)
    file = path / "pytorch_lora_weights.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise InputError(
            f'no LoRA at "{folder}": expected a folder holding pytorch_lora_weights.safetensors, '
            "such as runs/x/lora"
        )
    return file


def touches_text_encoder(folder: str) -> bool:
    from safetensors import safe_open

    with safe_open(_lora_file(folder), "pt") as file:
        return any(key.startswith(("text_encoder", "lora_te")) for key in file.keys())


def load_lora(pipe, folder: str, *, adapter: str = TRAINED) -> None:
    """Load a diffusers LoRA folder (or file) into the pipeline's denoiser under an adapter name."""
    file = _lora_file(folder)
    try:
        pipe.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=adapter)
    except Exception as error:  # peft and diffusers raise many kinds for one cause
        raise InputError(
            f'"{folder}" does not fit this pipeline (another model?): {reason(error)}'
        ) from error
    require_finite(getattr(pipe, family_class(type(pipe).__name__).denoiser_name), folder)
