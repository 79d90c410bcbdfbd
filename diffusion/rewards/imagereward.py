"""`imagereward`: ImageReward (arXiv 2304.05977) through its own package, where that is installed.

The raw score of ImageReward-v1.0, normalised by its authors to mean 0 and std 1 on their data;
about -2 to 2.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from diffusion.errors import InputError
from diffusion.rewards.pixels import to_pil
from diffusion.rewards.reward import RewardFn

MODEL = "ImageReward-v1.0"


def load_imagereward(location: str | None, device: str | torch.device, trust: bool) -> RewardFn:
    """`location` is an ImageReward.pt of yours; without one the package downloads its own.

    Raises InputError where the package is not installed or does not load.
    """
    try:
        import ImageReward
    except ModuleNotFoundError as error:
        if error.name == "ImageReward":
            raise InputError(
                'Reward "imagereward" needs the ImageReward package: pip install image-reward.'
            ) from error
        raise _broken("be imported", error) from error
    except Exception as error:  # it targets old versions of transformers
        raise _broken("be imported", error) from error
    try:
        model = ImageReward.load(location or MODEL, device=str(device))
    except Exception as error:
        raise _broken(f"load {location or MODEL}", error) from error
    return partial(imagereward_score, model)


@torch.no_grad()
def imagereward_score(model: Any, images: Tensor, prompts: list[str]) -> Tensor:
    """The package's score of each image for its prompt: (B, 3, H, W) in [0, 1] -> (B,)."""
    pairs = zip(prompts, to_pil(images), strict=True)
    return torch.tensor([float(model.score(prompt, picture)) for prompt, picture in pairs])


def _broken(what: str, error: Exception) -> InputError:
    text = " ".join(str(error).split())
    return InputError(
        f'Reward "imagereward": its package is installed but cannot {what} '
        f"({type(error).__name__}: {text[:160]}). It may need an older transformers: serve it from "
        f"an environment of its own with scripts/reward_server.py and use http://HOST:PORT."
    )
