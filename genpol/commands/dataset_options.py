"""What every command that learns from a dataset is told beside how to learn."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from genpol.commands.wandb_options import WandbOptions
from offline.ranges import Count, Size, Threads


@dataclass(frozen=True, kw_only=True)
class DatasetRunOptions(WandbOptions):
    """Which dataset, where to learn, where to leave the result, and how to go on."""

    data: str | None = None
    """Dataset: a .hdf5 file, a LeRobot folder, minari:NAME, or module:function@PATH of a reader of
    yours. `genpol data info` describes it. Default: none, a new run needs one."""
    success: str | None = None
    """Who says which episodes succeeded: all, last-reward, a FILE.csv of labels, or module:function
    of each episode. Default: labels.csv in the folder of --data, else what the dataset says."""
    image_size: Size | None = None
    """Height and width that pictures are resized to, at least 1. Default: as they are stored."""
    language_model: str | None = None
    """Sentence encoder that shows the learner the instructions: "shipped", or a folder. Default:
    none, instructions are not used."""
    device: str | None = None
    """Device of the networks: cpu, cuda, cuda:1, mps or auto. Default: auto, which is cuda where
    there is one, else cpu."""
    threads: Threads | None = None
    """Threads of PyTorch on the CPU, at least 1. Default: $OMP_NUM_THREADS, else one for small
    networks, and for images or wide layers as many as a measurement at the start finds faster."""
    output: Path
    """Run folder."""
    resume: Path | None = None
    """Run folder to go on with, bit for bit. Default: a new run."""
    checkpoint_every: Count = 1000
    """Gradient steps between checkpoints, at least 1. Ctrl-C and SIGTERM also leave one."""
    keep_checkpoints: Count = 2
    """Checkpoints that are kept, at least 1."""
