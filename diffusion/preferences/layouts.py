"""The columns of files of preferences: which holds the prompt, the images and who won.

named     a chosen and a rejected image                  {prompt, chosen, rejected}
scored    two images, each with a number that is higher for the better one
                                                         Pick-a-Pic: jpg_0, jpg_1, label_0, label_1
listed    a list of images and one of their preferences  HPDv2: image_path, human_preference

Ties have no winner, and rows that say they have no label, or whose images are the same, teach
nothing: they are skipped and counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from diffusion.errors import InputError, listed, shown

PROMPTS = ("prompt", "caption", "text", "instruction")
NAMED = (
    ("chosen", "rejected"),
    ("image_chosen", "image_rejected"),
    ("chosen_image", "rejected_image"),
    ("preferred", "rejected"),
    ("preferred", "dispreferred"),
    ("preferred_image", "rejected_image"),
    ("winner", "loser"),
    ("image_winner", "image_loser"),
    ("image_w", "image_l"),
    ("win", "lose"),
)
IMAGES = tuple(
    (f"{stem}{first}", f"{stem}{second}")
    for stem in ("jpg_", "image_", "image", "img_", "img")
    for first, second in (("0", "1"), ("1", "2"), ("a", "b"))
)
SCORES = tuple(
    (pattern.format(first), pattern.format(second))
    for pattern in (
        "label_{}", "label{}", "preference_{}", "votes_image{}", "votes_{}", "score_{}",
        "weighted_results_image{}_preference",
    )
    for first, second in (("0", "1"), ("1", "2"), ("a", "b"))
)  # fmt: skip
LISTS = ("image_path", "images", "image_paths")
PREFERENCES = ("human_preference", "preference", "preferences")  # higher is better
RANKS = ("rank", "ranks", "ranking")  # lower is better

TIE, UNLABELLED, SAME, NO_PROMPT = (
    "ties", "without a label", "of one image twice", "without a prompt"
)  # fmt: skip


class Skipped(Exception):
    """A row that teaches nothing; says why, in one of four words."""


@dataclass(frozen=True)
class Layout:
    """Names of columns. `first` and `second` are images, or `first` alone is a list of them."""

    prompt: str
    first: str
    second: str | None = None
    scores: tuple[str, ...] = ()
    """Of two images, or of the list; none where `first` is the chosen image."""
    lower_is_better: bool = False
    label: str | None = None
    """Whether the row has a label at all."""
    different: str | None = None
    """Whether its images differ."""

    @property
    def images(self) -> tuple[str, ...]:
        return (self.first,) if self.second is None else (self.first, self.second)

    @property
    def small(self) -> tuple[str, ...]:
        """Columns that say who won, without the images."""
        more = (name for name in (self.label, self.different) if name is not None)
        return (self.prompt, *self.scores, *more)

    def text(self) -> str:
        """In words, for the line that a run prints."""
        images = " and ".join(f'"{name}"' for name in self.images)
        won = " and ".join(f'"{name}"' for name in self.scores)
        return f'prompts from "{self.prompt}", images from {images}' + (
            f", preferences from {won}" if won else ""
        )

    def order(self, row: Mapping[str, Any]) -> tuple[str, int, int]:
        """The prompt, and which image won and lost: indices of the images.

        Raises:
            Skipped: a row that teaches nothing.
            ValueError: a row that is not of this layout; says what is wrong with it.
        """
        prompt = row[self.prompt]
        if prompt is None or (isinstance(prompt, str) and not prompt.strip()):
            raise Skipped(NO_PROMPT)
        if not isinstance(prompt, str):
            raise ValueError(f'"{self.prompt}" is a {type(prompt).__name__}, not a string')
        if "\0" in prompt or any("\ud800" <= letter <= "\udfff" for letter in prompt):
            raise ValueError("a NUL or half a surrogate pair in the prompt: take it out")
        prompt = prompt.strip()
        if self.label is not None and not row[self.label]:
            raise Skipped(UNLABELLED)
        if self.different is not None and row[self.different] is False:
            raise Skipped(SAME)
        if not self.scores:
            return prompt, 0, 1
        values = self._values(row)
        best, worst = max(values), min(values)
        if best == worst:
            raise Skipped(TIE)
        if self.lower_is_better:
            best, worst = worst, best
        return prompt, values.index(best), values.index(worst)

    def _values(self, row: Mapping[str, Any]) -> list[float]:
        found = [row[name] for name in self.scores]
        if self.second is None:
            (found,) = found
            if not isinstance(found, list) or not found:
                raise ValueError(f'"{self.scores[0]}" is no list of numbers: {shown(found)}')
        for value in found:
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"a preference is {shown(value)}, not a number")
        return [float(value) for value in found]

    def winners(self, row: Mapping[str, Any], best: int, worst: int) -> tuple[Any, Any]:
        """The chosen and the rejected image, as the row has them.

        Raises:
            ValueError: there are not as many images as preferences.
        """
        images = [row[name] for name in self.images]
        if self.second is None:
            (images,) = images
            if not isinstance(images, list) or max(best, worst) >= len(images):
                raise ValueError(f'"{self.first}" is no list of as many images as preferences')
        return images[best], images[worst]


def layout_of(names: Iterable[str], given: str | None, where: str) -> Layout:
    """The layout of a file with these columns.

    Args:
        names: its columns.
        given: --pair-columns: "prompt,chosen,rejected", separated by commas; None finds them.
        where: what messages call the file.

    Raises:
        InputError: no layout is known of these columns.
    """
    names = list(names)
    if given is not None:
        wanted = [name.strip() for name in given.split(",")]
        if len(wanted) != 3 or any(name not in names for name in wanted):
            raise InputError(
                f"{where}: --pair-columns {shown(given)} should be the names of three columns: "
                f"prompt, chosen and rejected. Its columns: {listed(names)}."
            )
        return Layout(wanted[0], wanted[1], wanted[2])
    known = {name.casefold(): name for name in reversed(names)}
    prompt = next((known[name] for name in PROMPTS if name in known), None)
    if prompt is not None:
        pair = _pair(known, NAMED)
        if pair is not None:
            return Layout(prompt, *pair)
        images, scores = _pair(known, IMAGES), _pair(known, SCORES)
        if images is not None and scores is not None:
            label, different = known.get("has_label"), known.get("are_different")
            return Layout(prompt, *images, scores, label=label, different=different)
        paths = next((known[name] for name in LISTS if name in known), None)
        for column in (*PREFERENCES, *RANKS):
            if paths is not None and column in known:
                lower = column in RANKS
                return Layout(prompt, paths, None, (known[column],), lower_is_better=lower)
    raise InputError(
        f"{where} has no columns of a known layout, such as prompt, chosen and rejected: name them "
        f"with --pair-columns PROMPT,CHOSEN,REJECTED. Its columns: {listed(names)}."
    )


def _pair(known: Mapping[str, str], pairs: Iterable[tuple[str, str]]) -> tuple[str, str] | None:
    for one, other in pairs:
        if one in known and other in known:
            return known[one], known[other]
    return None
