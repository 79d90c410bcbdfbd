"""Small files of preferences in the layouts that people have, and the images they are made of."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image


def picture(grey: int, size: tuple[int, int] = (16, 16)) -> Image.Image:
    """Noise around a grey, so that no two seeds' images are the same; `size` is (width, height)."""
    noise = np.random.default_rng(grey).integers(-40, 40, (size[1], size[0], 3))
    return Image.fromarray(np.clip(grey + noise, 0, 255).astype(np.uint8))


def encoded(grey: int, kind: str = "PNG", size: tuple[int, int] = (16, 16)) -> bytes:
    buffer = io.BytesIO()
    picture(grey, size).save(buffer, format=kind)
    return buffer.getvalue()


def prompts(count: int) -> list[str]:
    return [f"thing {i}" for i in range(count)]


def pair_file(folder: Path, count: int = 12, name: str = "pairs.jsonl", **more) -> Path:
    """JSON lines of `count` pairs: the chosen image is light, the rejected one dark."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    rows = []
    for i, prompt in enumerate(prompts(count)):
        for side, grey in (("chosen", 170 + i), ("rejected", 60 + i)):
            (images / f"{i}-{side}.png").write_bytes(encoded(grey))
        paths = {side: f"images/{i}-{side}.png" for side in ("chosen", "rejected")}
        rows.append({"prompt": prompt, **paths, "votes": i, **more})
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path = folder / name
    path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    return path


def parquet(path: Path, rows: list[dict], group: int = 4) -> Path:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=group)
    return path


def pick_a_pic(count: int = 12, first: int = 0) -> list[dict]:
    """Rows as of pickapic_v2: the second image wins in odd rows; the last two teach nothing."""
    rows = []
    for i in range(first, first + count):
        won = i % 2
        images = [encoded(60 + i, "JPEG"), encoded(60 + i, "JPEG")]
        images[won] = encoded(170 + i, "JPEG")
        rows.append(
            {
                "are_different": True,
                "caption": prompts(i + 1)[i],
                "has_label": True,
                "jpg_0": images[0],
                "jpg_1": images[1],
                "label_0": float(1 - won),
                "label_1": float(won),
                "model_0": "one",
                "ranking_id": i,
            }
        )
    tie = {"label_0": 0.5, "label_1": 0.5}
    return [*rows, rows[0] | tie, rows[0] | {"has_label": False, "label_0": None, "label_1": None}]


def hpd(count: int = 12) -> list[dict]:
    """Rows as of HPDv2 with embedded images: a list of images and one of preferences."""
    return [
        {
            "prompt": prompt,
            "image_path": [
                {"bytes": encoded(60 + i), "path": "a.png"},
                {"bytes": encoded(170 + i), "path": "b.png"},
            ],
            "human_preference": [0, 1],
            "raw_annotations": [[0, 1]],
        }
        for i, prompt in enumerate(prompts(count))
    ]


def generic(count: int = 12) -> list[dict]:
    """Rows as the datasets library writes images."""
    return [
        {
            "prompt": prompt,
            "chosen": {"bytes": encoded(170 + i), "path": None},
            "rejected": {"bytes": encoded(60 + i), "path": None},
            "votes": i,
        }
        for i, prompt in enumerate(prompts(count))
    ]
