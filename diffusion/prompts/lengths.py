"""Prompts that are longer than the text encoder reads: counted before the run, in one line."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Protocol

from diffusion.errors import shown
from diffusion.prompts.prompt import negative_of
from diffusion.prompts.sources import PromptSource

MOST = 10_000  # prompts that are counted
_CHUNK = 256  # prompts that are tokenised at a time
# How messages begin by which the libraries repeat, at every batch, what was said once for all.
_REPEATED = ("The following part of your input was truncated", "Token indices sequence length is")


class Reader(Protocol):
    """What is asked of a family of pipelines; see `diffusion.families.family.Family`."""

    def reader(self) -> tuple[Any, int]: ...

    def count_tokens(self, prompts: list[str]) -> list[int]: ...


def source_warnings(
    family: Reader,
    source: PromptSource,
    *,
    drawn: int,
    evaluated: int,
    seed: int,
    negative: str | None,
) -> list[str]:
    """`warnings_of_cuts` of a run's prompts, those that it trains on and those held out.

    Of a source of one's own, those of the first epoch (`drawn`) and of the evaluations.
    """
    first = getattr(source, "first", None)
    if first is None:
        texts = source.train(0, drawn, seed) + source.held_out(evaluated, seed)
    else:
        texts = first(MOST)
    total, other = source.num_train, 0 if source.held_out_is_train else source.num_held_out
    total = None if total is None or other is None else total + other
    return warnings_of_cuts(family, texts, total, negative)


def warnings_of_cuts(
    family: Reader, prompts: Iterable[str], total: int | None = None, negative: str | None = None
) -> list[str]:
    """A line on prompts that are cut, and one on negative prompts; none where all are read whole.

    Args:
        family: knows the tokenizer, and how many tokens are read.
        prompts: of which the first `MOST` are counted.
        total: how many prompts there are; None where there is no end of them.
        negative: the negative prompt of those that have none of their own; None where guidance
            is off, so that no negative prompt is read.
    """
    try:
        texts = list(islice(prompts, MOST))
        said = [_line(family, "prompts", texts, total)]
        if negative is None:
            said.append(_unused(texts))
        else:
            others = dict.fromkeys(negative_of(prompt, negative) for prompt in texts)
            said.append(_line(family, "distinct negative prompts", list(others), len(others)))
    except Exception as error:  # a tokenizer or a family of one's own; the run itself can do well
        kind = type(error).__name__
        return [f"whether prompts are too long was not counted ({kind}: {shown(error, 120)})"]
    return [line for line in said if line]


def _line(family: Reader, what: str, texts: list[str], total: int | None) -> str | None:
    _, limit = family.reader()
    longest, cut, example = 0, 0, ""
    for text, count in _counted(family, texts):
        longest = max(longest, count)
        if count > limit:
            cut, example = cut + 1, example or text
    if not cut:
        return None
    of = f"{cut:,} of the {len(texts):,} {what}"
    if total is None:
        of = f"{cut:,} of {len(texts):,} {what} drawn"
    elif total > len(texts):
        of = f"{cut:,} of the first {len(texts):,} of {total:,} {what}"
    read = _read_part(family, example, limit)
    start, rest = shown(example, 40), shown(example[read:].strip(), 60)
    verb = "is" if cut == 1 else "are"
    return (
        f"{of} {verb} longer than the {limit} tokens that the text encoder reads (the longest has "
        f'{longest:,}), and their rest is left out; of "{start}" that is "{rest}"'
    )


def _unused(texts: list[str]) -> str | None:
    """That negative prompts of rows have no part; nothing where no row has one."""
    own = sum(bool(negative_of(text, "")) for text in texts)
    if not own:
        return None
    return (
        f"{own:,} of the {len(texts):,} prompts read have negative prompts of their own, which "
        "take no part: none does without guidance (--guidance-scale above 1), or in a model that "
        "takes the scale as an input"
    )


def _counted(family: Reader, texts: list[str]) -> Iterator[tuple[str, int]]:
    for first in range(0, len(texts), _CHUNK):
        chunk = texts[first : first + _CHUNK]
        yield from zip(chunk, family.count_tokens([str(text) for text in chunk]), strict=True)


def _read_part(family: Reader, text: str, limit: int) -> int:
    """About how many characters of a text are read: the longest start that has no more tokens."""
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if family.count_tokens([text[:middle]])[0] <= limit:
            low = middle
        else:
            high = middle - 1
    return low


def say_cuts_once() -> None:
    """Keep diffusers and transformers from saying at every batch which part of a prompt is cut."""
    for name in ("diffusers", "transformers"):
        for handler in logging.getLogger(name).handlers:
            handler.removeFilter(_not_repeated)
            handler.addFilter(_not_repeated)


def _not_repeated(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_REPEATED)
