"""The options of wandb, the same in every command that leaves a run folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# For the group "run" of help.
WANDB = ("wandb", "wandb_project", "wandb_name", "wandb_tags")


@dataclass(frozen=True, kw_only=True)
class WandbOptions:
    """Whether, and under which names, a run is shown in wandb; `genpol.runs.run` reads them."""

    wandb: Literal["online", "offline", "disabled"] | None = None
    """Where wandb logs. Default: online when logged in, else offline."""
    wandb_project: str = "genpol"
    """Project of the run in wandb."""
    wandb_name: str | None = None
    """Name of the run in wandb. Default: the name of the folder in --output."""
    wandb_tags: tuple[str, ...] = ()
    """Tags of the run in wandb, one or more. Default: none."""
