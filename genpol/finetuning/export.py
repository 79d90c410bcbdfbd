"""Writes trained weights in the layout that diffusers loads, whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from diffusion.parts import here
from offline.files import disk_errors, sync_path
from offline.finite import require_finite

if TYPE_CHECKING:
    from diffusion.pipelines import ImagePolicy


def save_weights(
    policy: ImagePolicy,
    output: Path,
    about: Mapping[str, str] | None = None,
    *,
    kohya: bool = False,
    write: bool = True,
) -> Path:
    """Write `output/lora` (or `output/unet`): file by file, beside and renamed. Returns the folder.

    Args:
        policy: whose weights.
        output: the run folder.
        about: metadata of a LoRA's file.
        kohya: write a LoRA in the layout of user interfaces as well.
        write: whether this process writes. Of several, one does, and the others send their parts
            of weights that are split.

    Raises InputError when the disk refuses, and Diverged when a weight is NaN or infinite; files
    already there stay as they were.
    """
    target = output / ("lora" if policy.train == "lora" else "unet")
    require_finite({name: here(p) for name, p in policy.trainable().items()}, str(target))
    if not write:
        policy.save_weights(target, about, kohya=kohya, write=False)
        return target
    remedy = "The weights already there are intact: free some space, then continue with --resume"
    with disk_errors(f"cannot save {target}", remedy):
        target.mkdir(parents=True, exist_ok=True)
        for stale in output.glob(".weights-*"):  # left by a kill
            shutil.rmtree(stale, ignore_errors=True)
        temporary = Path(tempfile.mkdtemp(prefix=".weights-", dir=output))
        try:
            try:
                policy.save_weights(temporary, about, kohya=kohya)
            except SafetensorError as error:  # the system's refusal as text: "... (os error 28)"
                number = re.search(r"\(os error (\d+)\)", str(error))
                if number is None:
                    raise
                raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
            mask = os.umask(0)
            os.umask(mask)
            for file in sorted(temporary.iterdir()):
                file.chmod(0o666 & ~mask)  # safetensors writes files for the owner alone
                sync_path(file)
                os.replace(file, target / file.name)
            sync_path(target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return target
