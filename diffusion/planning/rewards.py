"""Bytes of reward models, by their configurations."""

from __future__ import annotations

from typing import Any

import torch

from diffusion.planning.skeleton import bytes_of
from diffusion.rewards import JUDGES, PLAIN
from diffusion.rewards.clip import CLIP_LOCATION, HPSV2_LOCATION, PICKSCORE_LOCATION
from diffusion.rewards.expression import parse, rewards_of

CLIPS = {"clip": CLIP_LOCATION, "pickscore": PICKSCORE_LOCATION, "hpsv2": HPSV2_LOCATION}
OTHERS = ("aesthetic", "imagereward")


def reward_bytes(expression: str) -> dict[str, int | None]:
    """Bytes of each reward's weights on the device; None where nobody knows before it is loaded.

    Those of Python functions of the user's own are unknown. Judges and servers compute elsewhere.

    Raises:
        InputError: the expression is wrong.
    """
    found: dict[str, int | None] = {}
    for term in rewards_of(parse(expression, [*PLAIN, *CLIPS, *OTHERS, *JUDGES])):
        if term.is_url or term.name in PLAIN or term.name in JUDGES:
            continue
        if term.is_function or term.name not in CLIPS:
            found[term.name] = None
        else:
            found[term.name] = _clip(term.location or CLIPS[term.name])
    return found


def _clip(location: str) -> int | None:
    from transformers import CLIPConfig, CLIPModel

    kind: Any = CLIPModel
    try:
        config = CLIPConfig.from_pretrained(location, local_files_only=True)
        with torch.device("meta"):
            return bytes_of(kind(config))
    except Exception:  # neither here nor in the cache, or of another kind: loading says which
        return None
