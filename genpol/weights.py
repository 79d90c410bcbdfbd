"""Put trained weights where users load them, whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from genpol.files import disk_errors

if TYPE_CHECKING:
    from diffusion.pipelines import ImagePolicy


def save_weights(policy: ImagePolicy, output: Path) -> Path:
    """Write `output/lora` (or `output/unet`): file by file, beside and renamed. Returns the folder.

    Raises InputError when the disk refuses; files already there stay as they were.
    """
    target = output / ("lora" if policy.train == "lora" else "unet")
    remedy = "The weights already there are intact: free some space, then go on with --resume"
    with disk_errors(f"cannot save {target}", remedy):
        target.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".weights-", dir=output))
        try:
            policy.save_weights(temporary)
            for file in sorted(temporary.iterdir()):
                os.replace(file, target / file.name)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return target
