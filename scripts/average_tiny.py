"""Average the UNet and text encoder of two pipelines of one lineage: w A + (1 - w) B.

The shipped pipeline is such an average of its last two training legs, which trade caption noise
against competence; docs/TINY.md has the numbers.

    python scripts/average_tiny.py runs/leg3 runs/leg4 --weight 0.25 --output runs/tiny
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

FILES = ("unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("--weight", type=float, default=0.25, help="of the first")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    shutil.copytree(args.second, args.output)
    for name in FILES:
        a, b = load_file(args.first / name), load_file(args.second / name)
        mixed = {
            k: (args.weight * a[k].float() + (1 - args.weight) * b[k].float()).half().to(b[k].dtype)
            if b[k].is_floating_point()
            else b[k]
            for k in b
        }
        save_file(mixed, args.output / name, metadata={"format": "pt"})


if __name__ == "__main__":
    main()
