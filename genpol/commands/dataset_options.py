"""What every command that learns from a dataset is told beside how to learn."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class DatasetRunOptions:
    """Which dataset, where to learn, and where to leave the result."""

    data: str
    """Dataset: a .hdf5 file, a LeRobot folder, minari:NAME, or module:function@PATH of a reader of
    yours. `genpol data info` describes it."""
    language_model: str | None = None
    """Sentence encoder that shows the learner the instructions: "shipped", or a folder. Default:
    none, instructions are not used."""
    device: str | None = None
    """Device of the networks: cpu, cuda, cuda:1 or mps. Default: cuda where there is one, else
    cpu."""
    output: Path
    """Run folder."""
    wandb: Literal["online", "offline", "disabled"] | None = None
    """Where wandb logs. Default: online when logged in, else offline."""
