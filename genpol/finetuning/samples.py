"""One held-out evaluation on disk: every image's prompt and scores, and the first few pictures.

samples/evaluation_before.csv   index, prompt, one column per reward, picture
samples/before/00000.png        the pictures of the first rows, in the images' own size

WHEN is "before" or "after", and of what stands beside them "best_of_16" or "guidance_3".
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from genpol.reports.grids import before_after, to_pil
from offline.files import disk_errors, write_beside

if TYPE_CHECKING:
    from diffusion.measures import Evaluation

PICTURES = 16  # as many as the sample grids show
_TEXT = ("index", "prompt", "picture")


@dataclass(frozen=True)
class Scores:
    """n held-out images: `prompts` n, `scores` name -> (n,), `pictures` of the first few."""

    prompts: list[str]
    scores: dict[str, NDArray[np.float64]]
    pictures: list[Path]


def save_evaluation(samples: Path, when: str, result: Evaluation) -> Path:
    """Write `samples/evaluation_WHEN.csv` and `samples/WHEN/`; returns the table's path.

    Raises InputError when the disk refuses.
    """
    path, count = samples / f"evaluation_{when}.csv", min(PICTURES, len(result.images))
    with disk_errors(f"cannot write {path}", "Free some space, or choose another --output"):
        (samples / when if count else samples).mkdir(parents=True, exist_ok=True)
        names = [f"{when}/{i:05d}.png" for i in range(count)]
        for name, image in zip(names, result.images[:count], strict=True):
            buffer = io.BytesIO()
            to_pil(image).save(buffer, format="PNG")
            write_beside(samples / name, buffer.getvalue())
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["index", "prompt", *result.rewards, "picture"])
        for i, prompt in enumerate(result.prompts):
            scores = [repr(float(values[i])) for values in result.rewards.values()]
            writer.writerow([i, prompt, *scores, names[i] if i < len(names) else ""])
        write_beside(path, text.getvalue().encode())
    return path


def read_evaluation(path: Path) -> Scores:
    """What `save_evaluation` wrote."""
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    names = [name for name in rows[0] if name not in _TEXT]
    return Scores(
        prompts=[row["prompt"] for row in rows],
        scores={name: np.array([float(row[name]) for row in rows]) for name in names},
        pictures=[path.parent / row["picture"] for row in rows if row["picture"]],
    )


def before_after_picture(samples: Path, epochs: int) -> Image.Image | None:
    """The first pictures of both saved evaluations as pairs with their prompts.

    None where the evaluation before training was not saved, or was of other prompts.
    """
    first = samples / "evaluation_before.csv"
    if not first.is_file():
        return None
    before, after = read_evaluation(first), read_evaluation(samples / "evaluation_after.csv")
    count = min(len(before.pictures), len(after.pictures))
    if count == 0 or before.prompts[:count] != after.prompts[:count]:
        return None
    return before_after(
        [Image.open(path) for path in before.pictures[:count]],
        [Image.open(path) for path in after.pictures[:count]],
        after.prompts[:count],
        title=f"Held-out prompts, the same noise before and after {epochs} epochs of fine-tuning",
    )
