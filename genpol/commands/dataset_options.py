"""What every command that learns from a dataset is told beside how to learn."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class DatasetRunOptions:
    """Which dataset, where to learn, and where to leave the result."""

    data: str
    """Dataset: a .hdf5 file, a LeRobot folder, or minari:NAME; see `genpol data info`."""
    language_model: str | None = None
    """Show the learner the instructions: "shipped", or a folder of a sentence encoder."""
    device: str | None = None
    """cpu, cuda, cuda:1, mps; default cuda where there is one."""
    output: Path
    """Run folder."""
    wandb: Literal["online", "offline", "disabled"] | None = None
    """Where wandb logs; default online when logged in, else offline."""
