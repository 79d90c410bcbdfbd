"""Rewards of images given prompts: load one by an expression, add one by writing a function.

    reward = load_reward("10*pickscore + 2*hpsv2", device="cuda")
    reward(images, prompts)              # images (B, 3, H, W) float in [0, 1] -> (B,) float32, CPU

A reward is any function of (images, prompts) that returns B numbers, higher is better; see
`expression.py` for the grammar, and `callables.py` for what else a function may take. Built in:

    jpeg_compressibility, jpeg_incompressibility       minus and plus the JPEG's kilobytes
    attributes, attributes_hard                        the shipped world's training checker
    gold, gold_wholly                                  its gold checker: for evaluation only
    clip, pickscore, hpsv2, aesthetic, imagereward     learned scores: name@WEIGHTS
    ocr                                                whether the text that was asked for is there
    vlm@http://host:port/v1?model=NAME                 a vision-language model as a judge
    module:function, http://host:port                  yours
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import torch

from diffusion.errors import InputError, shown
from diffusion.rewards import jpeg, world
from diffusion.rewards.aesthetic import load_aesthetic
from diffusion.rewards.callables import RewardFn, adapt, reward_function
from diffusion.rewards.clip import load_clip, load_hpsv2, load_pickscore
from diffusion.rewards.expression import Term, parse, rewards_of, split_expressions
from diffusion.rewards.function import load_function
from diffusion.rewards.imagereward import load_imagereward
from diffusion.rewards.ocr import load_ocr
from diffusion.rewards.remote import load_remote
from diffusion.rewards.reward import Combine, Judgement, Reward, as_reward, judge
from diffusion.rewards.vlm import load_vlm

__all__ = [
    "PLAIN",
    "WITH_WEIGHTS",
    "Combine",
    "Judgement",
    "Reward",
    "RewardFn",
    "as_reward",
    "judge",
    "load_reward",
    "reward_function",
    "split_expressions",
]

PLAIN: dict[str, RewardFn] = {
    "jpeg_compressibility": jpeg.jpeg_compressibility,
    "jpeg_incompressibility": jpeg.jpeg_incompressibility,
    "attributes": world.attributes,
    "attributes_hard": world.attributes_hard,
    "gold": world.gold,
    "gold_wholly": world.gold_wholly,
}
# Each takes (location or None, device, trust).
WITH_WEIGHTS: dict[str, Callable[[str | None, str | torch.device, bool], RewardFn]] = {
    "clip": load_clip,
    "pickscore": load_pickscore,
    "hpsv2": load_hpsv2,
    "aesthetic": load_aesthetic,
    "imagereward": load_imagereward,
}
# Judges, which have an address of their own or none: each takes it.
JUDGES: dict[str, Callable[[str | None], RewardFn]] = {"ocr": load_ocr, "vlm": load_vlm}


def load_reward(
    expression: str,
    *,
    device: str | torch.device = "cpu",
    trust: bool = False,
    combine: Combine = "raw",
) -> Reward:
    """The reward an expression describes, ready to call.

    `device` is where learned rewards run. `trust` allows weights that are pickles, still read with
    weights_only=True. `combine` says whether each reward is standardised within the images of its
    prompt before the expression is computed (normalised), or not (raw).
    Raises InputError where the expression, its weights or its server is wrong.
    """
    parts = parse(expression, [*PLAIN, *WITH_WEIGHTS, *JUDGES])
    terms: dict[tuple[str, str | None], Term] = {}  # each is loaded and asked once
    for term in rewards_of(parts):
        terms.setdefault((term.name, term.location), term)
    for term in terms.values():  # before any weights are read
        if term.name in PLAIN and term.location is not None:
            raise InputError(
                f'Reward "{term.name}" has no weights: leave out @{shown(term.location)}.'
            )
        _check_location(term)
    labels = {place: _label(term, list(terms.values())) for place, term in terms.items()}
    return Reward(
        expression,
        [(1.0, labels[place], _load(term, device, trust)) for place, term in terms.items()],
        combine=combine,
        parts=parts,
        label_of=lambda term: labels[term.name, term.location],
    )


def _check_location(term: Term) -> None:
    """Raises InputError where weights can stand nowhere: no file and no hub id has such a name."""
    if term.location is None or term.name not in WITH_WEIGHTS:
        return
    try:
        Path(term.location).expanduser().stat()
    except (ValueError, RuntimeError) as error:  # a NUL, half a surrogate pair, no such user
        why = shown(error)
    except OSError as error:
        why = "the name is too long" if error.errno == errno.ENAMETOOLONG else ""
    else:
        return
    if why:
        raise InputError(f'Reward "{term.name}": no weights at "{shown(term.location)}" ({why}).')


def _load(term: Term, device: str | torch.device, trust: bool) -> RewardFn:
    if term.is_url:
        return load_remote(term.name)
    if term.is_function:
        function = load_function(term.name)
        return adapt(function, term.name, device=device, form=term.location)
    if term.name in JUDGES:
        return JUDGES[term.name](term.location)
    if term.name in PLAIN:
        return PLAIN[term.name]
    return WITH_WEIGHTS[term.name](term.location, device, trust)


def _label(term: Term, terms: list[Term]) -> str:
    """The name; with its location where two terms share a name."""
    shared = sum(other.name == term.name for other in terms) > 1
    return f"{term.name}@{term.location}" if shared and term.location else term.name
