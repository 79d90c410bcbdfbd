"""Prompts as a pipeline's own text encoders see them, each text once, some at a time.

What is stored has one row for each prompt, however many images it has. Where all prompts have one
negative prompt, as is usual, its one row stands for all (`Tensor.expand`).

Shapes: N prompts; every value of a condition is (N, ...).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from diffusion.chain import Condition, sent
from diffusion.prompts.prompt import negative_of

NEGATIVE = "_negative"  # ends the names of a negative prompt's conditioning
TOKENS = 16_384  # of one pass, padding included; 0.3 GB of T5-XXL's widest activation in bf16
UNKNOWN = 512  # tokens of a prompt, if the family does not say
Encode = Callable[[list[str], torch.device], Condition]


class Encoders(Protocol):
    """What is needed of a family of pipelines."""

    def encode(self, prompts: list[str], device: torch.device) -> Condition: ...
    def encode_negative(self, prompts: list[str], device: torch.device) -> Condition: ...
    def reader(self) -> tuple[object, int]: ...


def encode_prompts(
    family: Encoders,
    prompts: list[str],
    device: torch.device,
    negative: str | None = None,
) -> Condition:
    """Conditioning of N prompts.

    Args:
        family: whose encoders.
        prompts: a prompt may have a negative prompt of its own.
        device: where the encoders are.
        negative: of those that have none; None encodes no negative prompts. Theirs are under the
            same names and "_negative".
    """
    size = max(1, TOKENS // _tokens(family))
    cond = _encoded(family.encode, prompts, device, size)
    if negative is not None:
        others = [negative_of(prompt, negative) for prompt in prompts]
        other = _encoded(family.encode_negative, others, device, size)
        cond = cond | {f"{name}{NEGATIVE}": value for name, value in other.items()}
    return cond


def _tokens(family: Encoders) -> int:
    """Tokens of a padded prompt."""
    try:
        return max(1, family.reader()[1])
    except (AttributeError, KeyError, TypeError):  # a pipeline without such a tokenizer
        return UNKNOWN


def _encoded(encode: Encode, texts: list[str], device: torch.device, size: int) -> Condition:
    """Each distinct text once, `size` at a time; one row for each of N texts."""
    distinct = list(dict.fromkeys(texts))
    parts = [encode(distinct[i : i + size], device) for i in range(0, len(distinct), size)]
    cond = joined(parts)
    if cond is None:
        cond = encode(distinct, device)
    if len(distinct) == len(texts):
        return cond
    if len(distinct) == 1:
        return {name: value.expand(len(texts), *value.shape[1:]) for name, value in cond.items()}
    place = {text: i for i, text in enumerate(distinct)}
    rows = torch.tensor([place[text] for text in texts])
    return {name: value[sent(rows, value.device)] for name, value in cond.items()}


def joined(parts: list[Condition]) -> Condition | None:
    """Conditions of some prompts each as one of all.

    Where prompts are padded to the longest of a pass, the lengths (N, L, ...) differ. Then shorter
    ones are padded by zeros, which a "mask" says are no tokens. None where there is no mask, or
    something else differs.
    """
    if len(parts) == 1:
        return parts[0]
    whole = {}
    for name in parts[0]:
        values = [part[name] for part in parts]
        if len({value.shape[1:] for value in values}) > 1:
            alike = len({(value.ndim, value.shape[2:]) for value in values}) == 1
            if "mask" not in parts[0] or values[0].ndim < 2 or not alike:
                return None
            longest = max(value.shape[1] for value in values)
            values = [_lengthened(value, longest) for value in values]
        whole[name] = torch.cat(values)
    return whole


def _lengthened(value: Tensor, length: int) -> Tensor:
    return pad(value, (0, 0) * (value.ndim - 2) + (0, length - value.shape[1]))
