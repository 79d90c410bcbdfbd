"""What a value reads of a prompt: the states of the pipeline's own encoders, whatever the family.

Every family's condition has token states under "text", most of them padded. Some have a "mask" of
what is no padding, and some a vector for the whole prompt under "pooled". Another condition, of a
family of one's own, is read by shape: (N, L, D) are tokens and (N, D) are vectors.

Shapes: N prompts, L tokens.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from diffusion.chain import Condition
from diffusion.errors import InputError, shown
from diffusion.prompt_encoding import NEGATIVE

KNOWN = ("text", "pooled")


def read_text(cond: Condition) -> dict[str, Tensor]:
    """The parts of a condition that a value reads: (N, L, D) or (N, D) each, as they are stored.

    Raises:
        InputError: there are none.
    """
    plain = {name: value for name, value in cond.items() if not name.endswith(NEGATIVE)}
    names = [name for name in KNOWN if name in plain] or sorted(plain)
    found = {
        name: plain[name]
        for name in names
        if plain[name].is_floating_point() and plain[name].ndim in (2, 3)
    }
    if not found:
        raise InputError(
            "a value needs what the prompts' encoders say, and this family's condition has no "
            f"floating-point (N, L, D) or (N, D) among {shown(', '.join(plain))}"
        )
    return found


def text_sizes(cond: Condition) -> dict[str, int]:
    """D of every part that a value reads, by name."""
    return {name: value.shape[-1] for name, value in read_text(cond).items()}


def kept(cond: Condition) -> Condition:
    """What `read_text` and `token_mask` need of a condition, in the machine's memory."""
    names = [*read_text(cond), *(["mask"] if "mask" in cond else [])]
    return {name: cond[name].detach().cpu() for name in names}


def token_mask(cond: Condition, tokens: Tensor) -> Tensor:
    """(N, L) bool: tokens (N, L, D) that are no padding; all of them where nothing says so."""
    mask = cond.get("mask")
    if mask is None or mask.shape != tokens.shape[:2]:
        return torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    return mask.to(tokens.device).bool()


def said(sizes: Mapping[str, int]) -> str:
    """Sizes in words: "text 96, pooled 128"."""
    return ", ".join(f"{name} {size}" for name, size in sizes.items())
