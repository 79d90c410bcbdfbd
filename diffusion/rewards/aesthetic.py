"""`aesthetic`: the LAION aesthetic predictor, a small head on CLIP ViT-L/14 image embeddings.

    score = head(e_I),  head = Linear 768-1024, 1024-128, 128-64, 64-16, 16-1

e_I is the unit-length image embedding; the released head ("sac+logos+ava1-l14-linearMSE",
github.com/christophschuhmann/improved-aesthetic-predictor) has dropout but no activations between
its layers, so it is affine in e_I. Scores run from about 1 to 10; Stable Diffusion gives 5 to 6.
"""

from __future__ import annotations

import os
import re
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from diffusion.errors import InputError
from diffusion.rewards.clip import CLIP_LOCATION, ClipEncoder
from diffusion.rewards.reward import RewardFn

Layers = list[tuple[Tensor, Tensor]]  # (weight (out, in), bias (out,)), first layer first

_WHERE = (
    "Give the head's weights, aesthetic@HEAD.safetensors (or the folder that holds them); they are "
    "sac+logos+ava1-l14-linearMSE.pth of github.com/christophschuhmann/improved-aesthetic-predictor"
)
_KEY = re.compile(r"(?:.*\.)?(\d+)\.(weight|bias)")


def load_aesthetic(location: str | None, device: str | torch.device, trust: bool) -> RewardFn:
    """`location` is the head's file, or a folder with one such file.

    CLIP ViT-L/14 is read from the folder `clip` beside that file where there is one, else from the
    hub. A .pth file is a pickle: it needs `trust`, and is then read with weights_only=True.
    """
    path = _head_file(location)
    layers = head_layers(_read(path, trust), str(path))
    beside = path.parent / "clip"
    encoder = ClipEncoder(
        str(beside) if beside.is_dir() else CLIP_LOCATION,
        reward="aesthetic",
        device=device,
        trust=trust,
    )
    width, expected = encoder.model.config.projection_dim, layers[0][0].shape[1]
    if width != expected:
        raise InputError(
            f'Reward "aesthetic": the head {path} expects embeddings of {expected} numbers but '
            f"this CLIP gives {width}. The released head belongs to CLIP ViT-L/14 (768)."
        )
    layers = [(weight.to(device), bias.to(device)) for weight, bias in layers]
    return partial(aesthetic_score, encoder, layers)


@torch.no_grad()
def aesthetic_score(
    encoder: ClipEncoder, layers: Layers, images: Tensor, prompts: list[str]
) -> Tensor:
    """head(e_I) for images (B, 3, H, W) in [0, 1]: (B,). Prompts are not read."""
    hidden = encoder.images(images)
    for weight, bias in layers:
        hidden = F.linear(hidden, weight, bias)
    return hidden[:, 0]


def head_layers(weights: dict[str, Tensor], source: str) -> Layers:
    """Linear layers, in order, from keys such as "layers.0.weight"; checks that they fit together.

    Raises InputError naming `source` where they do not end in one number.
    """
    numbered: dict[int, dict[str, Tensor]] = {}
    for key, value in weights.items():
        if found := _KEY.fullmatch(key):
            numbered.setdefault(int(found.group(1)), {})[found.group(2)] = value.float()
    layers: Layers = []
    for index in sorted(numbered):
        layer = numbered[index]
        fits = "weight" in layer and "bias" in layer and layer["weight"].ndim == 2
        if not fits or (layers and layer["weight"].shape[1] != layers[-1][0].shape[0]):
            raise InputError(
                f'Reward "aesthetic": layer {index} of {source} does not fit. {_WHERE}.'
            )
        layers.append((layer["weight"], layer["bias"]))
    if not layers or layers[-1][0].shape[0] != 1:
        raise InputError(
            f'Reward "aesthetic": {source} is no aesthetic head: expected keys layers.0.weight, '
            f"layers.0.bias, ... down to one number, received {sorted(weights)[:3]}. {_WHERE}."
        )
    return layers


def _head_file(location: str | None) -> Path:
    if location is None:
        raise InputError(f'Reward "aesthetic" needs weights. {_WHERE}.')
    path = Path(os.path.expanduser(location))
    if path.is_dir():
        for suffix in (".safetensors", ".pth"):
            files = sorted(path.glob(f"*{suffix}"))
            if len(files) > 1:
                names = ", ".join(file.name for file in files)
                raise InputError(f'Reward "aesthetic": which of {names} in {path} is the head?')
            if files:
                return files[0]
    if not path.is_file():
        raise InputError(f'Reward "aesthetic": no head at {path}. {_WHERE}.')
    return path


def _read(path: Path, trust: bool) -> dict[str, Tensor]:
    if path.suffix != ".safetensors" and not trust:
        raise InputError(
            f'Reward "aesthetic": {path} is a pickle, which can run code when read. Convert it to '
            f".safetensors, or say that you trust it with --trust."
        )
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
        loaded = loaded.get("state_dict", loaded)
        return {str(key): value for key, value in loaded.items() if isinstance(value, Tensor)}
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, AttributeError) as error:
        text = " ".join(str(error).split())
        raise InputError(f'Reward "aesthetic" cannot read {path}: {text[:160]}.') from error
    except Exception as error:  # pickle.UnpicklingError, which weights_only raises on code
        raise InputError(f'Reward "aesthetic": {path} holds more than weights.') from error
