"""Pairs to train on and held-out ones, from a file of preferences, split by hash of the prompt.

The split is that of prompts (`prompts/sources.py`): all pairs of one prompt are on one side, and a
prompt is held out whether it comes from a file of prompts or of pairs. In memory there are 16 bytes
for each pair; images are decoded when they are needed. The pairs of an epoch are a function of
(epoch, n, seed).
"""

from __future__ import annotations

import hashlib
import os
from array import array
from collections import Counter
from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from diffusion.errors import InputError, shown
from diffusion.preferences.json_lines import JsonLines
from diffusion.preferences.layouts import Layout
from diffusion.preferences.pair import Pair
from diffusion.preferences.parquet import Parquet, parquet_files
from diffusion.prompts.sources import (
    PromptSource,
    evaluation_side,
    permute,
    prompt_hash,
    split_by_hash,
)

AT_ONCE = 32  # pairs read in one go
FORMATS = "a .jsonl, .jsonl.gz or .parquet file, or a folder of .parquet files"


class _File(Protocol):
    layout: Layout
    skipped: Counter[str]
    digest: str
    spec: str

    def scan(self) -> Iterator[tuple[int, str]]: ...
    def read(self, places) -> Iterator[Pair]: ...


class PairSource(PromptSource):
    """Pairs of a file, and their prompts as a `PromptSource`.

    Attributes:
        about: one line on what was read, and what was skipped.
        num_train, num_held_out: pairs on either side.
    """

    def __init__(
        self,
        spec: str,
        *,
        columns: str | None = None,
        held_out_fraction: float = 0.1,
        eval_spec: str | None = None,
        eval_column: str = "prompt",
    ) -> None:
        self.name, self._file = spec, _open(spec, columns)
        self._eval, digest = None, f"held out {held_out_fraction}"
        if eval_spec is not None:
            self._eval, other = evaluation_side(eval_spec, eval_column)
            digest += f" evaluation {other}"
        places, hashes, known = array("q"), array("Q"), bytearray()
        for place, prompt in self._file.scan():
            places.append(place)
            hashes.append(prompt_hash(prompt))
            known.append(self._eval is not None and self._eval.has(prompt))
        if not len(places):
            raise InputError(f"{self._file.spec} has no pair to train on{self._skips()}.")
        every, out = np.asarray(places, np.int64), np.asarray(known, np.bool_)
        if out.all():
            raise InputError(
                f"{self._file.spec}: each of its prompts is also one of the evaluation prompts "
                f"{eval_spec}, which leaves none to train on: evaluate on others."
            )
        if not out.any():
            out = split_by_hash(np.asarray(hashes, np.uint64), held_out_fraction, self._file.spec)
        self._train, self._held_out = every[~out], every[out] if out.any() else every
        self.held_out_is_train = not out.any()
        self.num_train, self.num_held_out = len(self._train), len(self._held_out)
        held = "none held out" if self.held_out_is_train else f"{self.num_held_out} held out"
        self.about = (
            f"pairs of {self._file.spec}: {self._file.layout.text()}; {self.num_train} to train "
            f"on, {held}{self._skips()}"
        )
        words = f"pairs\n{digest}\n{columns}\n{self._file.digest}"
        self.fingerprint = hashlib.sha256(words.encode()).hexdigest()[:16]

    def _skips(self) -> str:
        parts = [f"{count} {why}" for why, count in sorted(self._file.skipped.items())]
        return f"; skipped: {', '.join(parts)}" if parts else ""

    # -- pairs ------------------------------------------------------------------------------------

    def train_pairs(self, epoch: int, n: int, seed: int) -> Iterator[Pair]:
        """The n pairs of an epoch: each training pair once per pass, passes back to back."""
        return self._read(self._places(epoch, n, seed))

    def held_out_pairs(self, n: int, seed: int) -> Iterator[Pair]:
        """The same n held-out pairs every time; fewer where there are fewer."""
        return self._read(self._fixed(min(n, self.num_held_out), seed))

    def _read(self, places: NDArray[np.int64]) -> Iterator[Pair]:
        ordered = np.sort(places)  # so that neighbours in the file are read together
        for first in range(0, len(ordered), AT_ONCE):
            yield from self._file.read(ordered[first : first + AT_ONCE])

    def _places(self, epoch: int, n: int, seed: int) -> NDArray[np.int64]:
        size = self.num_train
        passes, places = np.divmod(np.arange(epoch * n, (epoch + 1) * n), size)
        chosen = np.empty_like(places)
        for k in np.unique(passes):
            chosen[passes == k] = permute(places[passes == k], size, f"pairs/{seed}/{k}")
        return self._train[chosen]

    def _fixed(self, n: int, seed: int) -> NDArray[np.int64]:
        order = permute(np.arange(n), self.num_held_out, f"held-out pairs/{seed}")
        return self._held_out[order]

    # -- prompts ----------------------------------------------------------------------------------

    def train(self, epoch: int, n: int, seed: int) -> list[str]:
        """The prompts of an epoch's pairs."""
        return [pair.prompt for pair in self.train_pairs(epoch, n, seed)]

    def held_out(self, n: int, seed: int) -> list[str]:
        """At most n distinct prompts to draw at evaluations: the same every time."""
        if self._eval is not None:
            return self._eval.fixed(n, seed)
        found: dict[str, str] = {}
        for first in range(0, self.num_held_out, n):
            order = permute(
                np.arange(first, min(first + n, self.num_held_out)),
                self.num_held_out,
                f"held-out pairs/{seed}",
            )
            for pair in self._read(self._held_out[order]):
                found.setdefault(pair.prompt, pair.prompt)
            if len(found) >= n:
                break
        return list(found.values())[:n]


def load_pairs(
    spec: str,
    *,
    columns: str | None = None,
    held_out_fraction: float = 0.1,
    eval_spec: str | None = None,
    eval_column: str = "prompt",
) -> PairSource:
    """Preferences from a file or a folder, split into pairs to train on and held-out ones.

    Args:
        spec: a .jsonl or .jsonl.gz, whose images are paths from where it is; a .parquet, a folder
            of such files, or a pattern such as "data/train-*.parquet".
        columns: "prompt,chosen,rejected": its columns, where they are not found by their names.
        held_out_fraction: share of the prompts whose pairs are never trained on, in [0, 1).
        eval_spec: prompts to draw at evaluations instead of the held-out pairs' own. Pairs of these
            prompts are those held out; where there are none, the hash decides.
        eval_column: that holds the prompts there.

    Raises:
        InputError: for whatever makes the pairs unusable; names the file and the line.
    """
    if not 0 <= held_out_fraction < 1:
        raise InputError(f"The held-out share must be in [0, 1), not {held_out_fraction}.")
    return PairSource(
        spec,
        columns=columns,
        held_out_fraction=held_out_fraction,
        eval_spec=eval_spec,
        eval_column=eval_column,
    )


def _open(spec: str, columns: str | None) -> _File:
    path = os.path.abspath(os.path.expanduser(spec))
    if path.endswith((".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")) and os.path.isfile(path):
        return JsonLines(spec, columns)
    files = parquet_files(spec)
    if files and all(os.path.isfile(one) for one in files):
        return Parquet(spec, files, columns)
    if not os.path.exists(path):
        raise InputError(f"--pairs {shown(spec, 200)}: there is no such file; give {FORMATS}.")
    if path.endswith(".json"):
        raise InputError(
            f"--pairs {shown(spec, 200)}: a JSON list is not read piece by piece; make it .jsonl, "
            f"for example: jq -c '.[]' < {shown(spec, 60)} > pairs.jsonl"
        )
    what = "a folder without .parquet files" if os.path.isdir(path) else "a file of another kind"
    raise InputError(f"--pairs {shown(spec, 200)} is {what}: give {FORMATS}.")
