"""Prompts to train and to evaluate on: a file or a named generator, split by hash.

A prompt is held out when the first 64 bits of the SHA-256 of its normalised text (case folded,
white space collapsed), read as a share of 2^64, fall below the held-out fraction: duplicates never
straddle the split, and it does not move when lines are added. Of a file only the places of prompts
stay in memory, 8 bytes each. The order is a function of (epoch, n, seed), so a resumed run needs no
state. A text that stands in a file twice is trained on twice a pass, each time with the negative
prompt and the metadata of its own row, and held out once, with those of its first row.
"""

from __future__ import annotations

import hashlib
import json
import math
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from diffusion.errors import InputError, did_you_mean, shown
from diffusion.prompts.columns import Tell
from diffusion.prompts.files import PromptFile
from diffusion.prompts.opening import exists, open_prompts
from diffusion.prompts.prompt import Prompt
from diffusion.world import scenes

Ints = NDArray[np.int64]
Hashes = NDArray[np.uint64]
Drop = Callable[[str], bool]  # whether a prompt is to be left out of training

DRAWN = 256  # scenes of a generator that stand for all of them
PATIENCE = 20_000  # fruitless draws after which a scene generator counts as exhausted
WORLDS = {"world": 0.5, "world-lone": 0.0, "world-pairs": 1.0}  # share of two-object scenes
# The 45 common animals of DDPO (arXiv 2305.13301), in the order of its public code.
ANIMALS = tuple(
    "cat dog horse monkey rabbit zebra spider bird sheep deer cow goat lion tiger bear raccoon fox "
    "wolf lizard beetle ant butterfly fish shark whale dolphin squirrel mouse rat snake turtle "
    "frog chicken duck goose bee pig turkey fly llama camel bat gorilla hedgehog kangaroo".split()
)
GENERATORS = (*WORLDS, "animals")


class PromptSource(Protocol):
    """Where prompts come from; counts are None where there is no end of them."""

    name: str  # what the user gave
    fingerprint: str  # 16 hex digits of content and settings: a resumed run refuses another
    held_out_is_train: bool  # whether `held_out` returns prompts that are trained on
    num_train: int | None
    num_held_out: int | None  # distinct ones

    def train(self, epoch: int, n: int, seed: int) -> list[str]:
        """The n prompts of an epoch: each training prompt once per pass, passes back to back."""

    def held_out(self, n: int, seed: int) -> list[str]:
        """The same n distinct held-out prompts every time; fewer where there are fewer."""


def load_prompts(
    spec: str | Sequence[str],
    *,
    column: str | None = None,
    held_out_fraction: float = 0.1,
    eval_spec: str | None = None,
    tell: Tell = print,
) -> PromptSource:
    """Prompts to train on and held-out ones: a file, a generator or a list, split by hash.

    `spec` is a .txt (a prompt a line), .jsonl or .json (objects with key `column`, or strings),
    .csv, .tsv or .parquet file (`column` of it), one of the first five with .gz, a folder of
    .parquet files, a dataset saved to disk, one of `GENERATORS`, or the prompts themselves. Where
    `column` is None it is "prompt", else the only one it may be, and `tell` gets a line that names
    it. A column "negative_prompt" holds negative prompts; the others are metadata of the prompt
    (see `diffusion.prompts.prompt.Prompt`). `held_out_fraction` in
    [0, 1) is the share of distinct prompts kept from training; where the hash picks none, or all,
    the prompt with the lowest, or all but that with the highest, is held out. At 0, `held_out`
    returns training prompts. With `eval_spec` (same forms) nothing else is held out: `held_out`
    reads from there, a world generator meaning its own held-out tenth, and training leaves those
    prompts out.

    Raises InputError for whatever makes the prompts unusable.
    """
    if not 0 <= held_out_fraction < 1:
        raise InputError(f"The held-out share must be in [0, 1), not {held_out_fraction}.")
    fraction, held, drop, eval_content = held_out_fraction, None, None, None
    digests = [f"held out {fraction}"]
    if eval_spec is not None:
        eval_content = _open(eval_spec, column, tell)
        held, digest = _evaluation_side(eval_content)
        fraction, drop = 0.0, held.has
        digests = [f"evaluation {digest}"]
    content = _open(spec, column, tell)
    spec = spec if isinstance(spec, str) else f"a list of {len(spec)}"
    train: _Side
    if isinstance(content, str):
        train = _Scenes(content, held_out=False, fraction=fraction, drop=drop)
        held = held or _Scenes(content, held_out=fraction > 0, fraction=fraction)
    else:
        offsets, hashes = _index(content, drop)
        if not len(offsets):
            raise InputError(
                f"{spec}: each of its prompts is also one of the evaluation prompts {eval_spec}, "
                "which leaves none to train on: evaluate on others, or train on more."
            )
        out = split_by_hash(hashes, fraction, spec)
        train = _Listed(content.read, offsets[~out])
        if held is None and fraction > 0:
            held = _Listed(content.read, _distinct(offsets[out], hashes[out]))
        elif held is None:
            held = _Listed(content.read, _distinct(train.offsets, hashes))
    digests.append(_digest(content))
    fingerprint = hashlib.sha256("\n".join(digests).encode()).hexdigest()[:16]
    contents = [content] if eval_content is None else [content, eval_content]
    return _Source(spec, fingerprint, train, held, eval_spec is None and fraction == 0, contents)


def read_all(spec: str, column: str | None = None, tell: Tell = print) -> Iterator[str]:
    """All prompts of a file in its order, repeats included; a bad line raises when reached."""
    content = _open(spec, column, tell)
    if isinstance(content, str | _InMemory):
        raise InputError(f'"{spec}" is a generator: say how many prompts with --num-prompts.')
    return (text for _, text in content.scan(whole=True))


def take(spec: str, n: int, seed: int) -> list[str]:
    """n distinct held-out prompts of a named generator."""
    if not isinstance(_open(spec, None), str | _InMemory):
        raise InputError(f"{spec} is a file, all of which is used: leave out --num-prompts.")
    prompts = load_prompts(spec).held_out(n, seed)
    if len(prompts) < n:
        raise InputError(
            f'"{spec}" has {len(prompts)} held-out prompts, not the {n} asked for: lower '
            "--num-prompts, or put prompts of your own in a .txt file."
        )
    return prompts


def prompt_hash(prompt: str) -> int:
    """64 bits of the normalised text; on the world's captions, the ones its own split uses."""
    normalised = " ".join(prompt.casefold().split())
    return int.from_bytes(hashlib.sha256(normalised.encode()).digest()[:8], "big")


# ------------------------------------------------------------------------------- what there is


class _InMemory:
    """A list of prompts, read as a file is; offsets are indices."""

    def __init__(self, prompts: Sequence[str]) -> None:
        self.prompts = prompts

    def scan(self, whole: bool = False) -> Iterator[tuple[int, str]]:
        return enumerate(self.prompts)

    def read(self, places: Iterable[int]) -> list[str]:
        return [self.prompts[i] for i in places]


def _open(
    spec: str | Sequence[str], column: str | None, tell: Tell = print
) -> str | _InMemory | PromptFile:
    """The content behind `spec`: the name of a world, a list, or a file, not yet read."""
    if not isinstance(spec, str):
        if not spec or not all(isinstance(prompt, str) and prompt.strip() for prompt in spec):
            raise InputError("Prompts: expected a list of at least one text, none of them empty.")
        return _InMemory(spec)
    if spec in WORLDS:
        return spec
    if spec == "animals":
        return _InMemory(ANIMALS)
    if exists(spec):
        return open_prompts(spec, column, tell)
    hint = did_you_mean(spec, GENERATORS)
    raise InputError(f"Prompts '{shown(spec)}': no file of that name, and no generator.{hint}")


def _digest(content: str | _InMemory | PromptFile) -> str:
    if isinstance(content, _InMemory):
        return " ".join(content.prompts) + "".join(_beside(p) for p in content.prompts)
    if not isinstance(content, str):  # an older version read no negative prompts from files
        negatives = ", negative prompts" if content.columns.negatives else ""
        return f"{content.columns.name} {content.digest}{negatives}"
    words = (scenes.SIZES, scenes.TEXTURES, scenes.COLOURS, scenes.SHAPES)
    return repr((content, words, tuple(scenes.POSITIONS), tuple(scenes.RELATIONS)))


def _beside(prompt: str) -> str:
    """What a prompt of a list carries, as text; nothing of a plain one."""
    if not isinstance(prompt, Prompt) or (prompt.negative is None and not prompt.metadata):
        return ""
    beside = [prompt.negative, dict(prompt.metadata)]
    return "\n" + json.dumps(beside, sort_keys=True, default=lambda one: type(one).__name__)


def _index(content: _InMemory | PromptFile, drop: Drop | None = None) -> tuple[Ints, Hashes]:
    """Offset and hash of each prompt in order, (N,) each, without the dropped ones."""
    offsets, hashes = array("q"), array("Q")
    for offset, text in content.scan():
        if drop is None or not drop(text):
            offsets.append(offset)
            hashes.append(prompt_hash(text))
    return np.asarray(offsets, np.int64), np.asarray(hashes, np.uint64)


def split_by_hash(hashes: Hashes, fraction: float, spec: str) -> NDArray[np.bool_]:
    """Which prompts are held out: at least one distinct prompt on either side, if fraction > 0."""
    out = hashes < np.uint64(math.ceil(fraction * 2**64))
    if fraction == 0:
        return out
    lowest, highest = hashes.min(), hashes.max()
    if lowest == highest:
        raise InputError(
            f"{spec} has one distinct prompt, so none can be held out: add prompts, pass "
            "--held-out 0, or give others with --eval-prompts FILE."
        )
    if not out.any():
        return hashes == lowest
    return hashes != highest if out.all() else out


def evaluation_side(spec: str, column: str | None = None) -> tuple[_Side, str]:
    """The prompts of --eval-prompts: `fixed(n, seed)` gives some, `has(prompt)` knows them; and a
    digest of them."""
    return _evaluation_side(_open(spec, column, print))


def _distinct(offsets: Ints, hashes: Hashes) -> Ints:
    """The first offset of each hash, in order; `offsets` itself where none repeats."""
    first = np.unique(hashes, return_index=True)[1]
    return offsets if len(first) == len(offsets) else offsets[np.sort(first)]


def _evaluation_side(content: str | _InMemory | PromptFile) -> tuple[_Side, str]:
    if isinstance(content, str):
        return _Scenes(content, held_out=True), _digest(content)
    offsets, hashes = _index(content)
    side = _Listed(content.read, _distinct(offsets, hashes), np.unique(hashes))
    return side, _digest(content)


# ------------------------------------------------------------------- the two sides of a source


class _Source:
    def __init__(
        self,
        name: str,
        fingerprint: str,
        train: _Side,
        held_out: _Side,
        held_out_is_train: bool,
        contents: list[str | _InMemory | PromptFile],
    ) -> None:
        self.name, self.fingerprint = name, fingerprint
        self.held_out_is_train = held_out_is_train
        self.num_train, self.num_held_out = train.size, held_out.size
        self.train, self.held_out = train.epoch, held_out.fixed
        self.contents = contents

    def first(self, n: int) -> Iterator[str]:
        """The first prompts of each of its files, up to n together, and some of a generator."""
        both = (self._of(content) for content in self.contents)
        return islice(chain.from_iterable(both), n)

    @staticmethod
    def _of(content: str | _InMemory | PromptFile) -> Iterator[str]:
        if isinstance(content, str):
            return iter(_Scenes(content, held_out=False).epoch(0, DRAWN, 0))
        return (text for _, text in content.scan())


class _Listed:
    """Finitely many prompts, read by offset when asked for."""

    def __init__(
        self,
        read: Callable[[Ints], list[str]],
        offsets: Ints,
        hashes: Hashes | None = None,
    ) -> None:
        self.read, self.offsets, self.hashes, self.size = read, offsets, hashes, len(offsets)

    def epoch(self, epoch: int, n: int, seed: int) -> list[str]:
        passes, places = np.divmod(np.arange(epoch * n, (epoch + 1) * n), self.size)
        chosen = np.empty_like(places)
        for k in np.unique(passes):
            chosen[passes == k] = permute(places[passes == k], self.size, f"train/{seed}/{k}")
        return self.read(self.offsets[chosen])

    def fixed(self, n: int, seed: int) -> list[str]:
        places = np.arange(min(n, self.size))
        return self.read(self.offsets[permute(places, self.size, f"held out/{seed}")])

    def has(self, prompt: str) -> bool:
        assert self.hashes is not None
        key = np.uint64(prompt_hash(prompt))
        place = int(np.searchsorted(self.hashes, key))
        return place < len(self.hashes) and bool(self.hashes[place] == key)


class _Scenes:
    """Captions of one side of the world's split, drawn afresh for each (seed, epoch)."""

    size = None

    def __init__(
        self, name: str, held_out: bool, fraction: float = 0.1, drop: Drop | None = None
    ) -> None:
        self.name, self.held_out, self.fraction, self.drop = name, held_out, fraction, drop

    def _captions(self, key: str) -> Iterator[str | None]:
        """Endless draws; None for one that belongs elsewhere."""
        rng = np.random.default_rng(int.from_bytes(hashlib.sha256(key.encode()).digest(), "big"))
        while True:
            caption = scenes.sample_scene(rng, WORLDS[self.name]).caption()
            mine = scenes.is_held_out(caption, self.fraction) == self.held_out
            yield caption if mine and not (self.drop and self.drop(caption)) else None

    def _gather(self, n: int, key: str, distinct: bool) -> list[str]:
        found: list[str] = []
        seen: set[str] = set()
        fruitless = 0
        draws = self._captions(key)
        while len(found) < n and fruitless < PATIENCE:
            caption = next(draws)
            fruitless += 1
            if caption is not None and not (distinct and caption in seen):
                found.append(caption)
                seen.add(caption)
                fruitless = 0
        if len(found) < n and not (found and distinct):
            side = "held out" if self.held_out else "to train on"
            raise InputError(f'"{self.name}" has no scene {side}: change the held-out share.')
        return found

    def epoch(self, epoch: int, n: int, seed: int) -> list[str]:
        return self._gather(n, f"train/{seed}/{epoch}", distinct=False)

    def fixed(self, n: int, seed: int) -> list[str]:
        return self._gather(n, f"held out/{seed}", distinct=True)

    def has(self, prompt: str) -> bool:
        scene = scenes.parse_caption(prompt)
        if scene is None or WORLDS[self.name] == (0.0 if scene.second else 1.0):
            return False
        return scenes.is_held_out(scene.caption(), self.fraction) == self.held_out


_Side = _Listed | _Scenes


def permute(places: NDArray[np.int64], size: int, key: str) -> NDArray[np.int64]:
    """Where a bijection of [0, size) drawn by `key` sends `places` (n,), in O(n) memory.

    A Feistel network of 8 rounds permutes the next even number of bits; what lands at `size` or
    above is sent through again until it does not (cycle walking: Black and Rogaway, 2002).
    """
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half) - np.uint64(1)
    round_keys = np.frombuffer(hashlib.sha512(key.encode()).digest(), "<u8")
    out = places.astype(np.uint64)
    outside = np.ones(len(out), bool)
    while outside.any():
        left, right = out[outside] >> half, out[outside] & mask
        for round_key in round_keys:
            left, right = right, left ^ (_mix(right + round_key) & mask)
        out[outside] = (left << half) | right
        outside = out >= size
    return out.astype(np.int64)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele et al., 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
