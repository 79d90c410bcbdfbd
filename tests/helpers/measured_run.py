"""Runs one epoch in a process of its own, and says how far its memory grew.

    python measured_run.py OPTIONS_AS_JSON [PASSES]

Prints {"grown": bytes, "seconds": of the epoch}: the peak resident set, less what it was once all
libraries were there. With PASSES the epoch is drawn, rewarded and scored in full, and ends after so
many passes of training, by which the peak of an epoch is reached. Linux only.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from torch import Tensor


class Enough(Exception):
    """As many passes as were asked for are done."""


class Passes:
    """Backward passes, at most so many."""

    def __init__(self, most: int) -> None:
        self.left = most

    def __call__(self, values: Tensor, cotangent: Tensor) -> None:
        Tensor.backward(values, cotangent)
        self.left -= 1
        if not self.left:
            raise Enough


def main() -> None:
    import diffusers
    import peft
    import transformers
    from diffusers.loaders import single_file  # what loading a pipeline imports by and by

    from genpol.commands.finetune.command import build, complete
    from genpol.commands.finetune.options import Finetune
    from genpol.runs.measure import read_peak, reset_peak
    from genpol.runs.quiet import hush

    assert diffusers and peft and transformers and single_file
    options: dict[str, Any] = json.loads(sys.argv[1])
    classes = ("AutoencoderKL", "UNet2DConditionModel", "StableDiffusionXLPipeline")
    assert all(getattr(diffusers, name) for name in classes) and transformers.CLIPTextModel
    hush()
    config = complete(Finetune(**options))
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    before = pages * os.sysconf("SC_PAGE_SIZE")
    assert reset_peak("cpu"), "the peak of this process cannot be read"
    tuner, _ = build(config)
    if len(sys.argv) > 2:
        tuner.backward = Passes(int(sys.argv[2]))
    start = time.perf_counter()
    with contextlib.suppress(Enough):
        tuner.run_epoch()
    seconds = time.perf_counter() - start
    print(json.dumps({"grown": read_peak("cpu") * 1e6 - before, "seconds": seconds}))


if __name__ == "__main__":
    main()
