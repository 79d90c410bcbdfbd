"""What every command that learns from a dataset is told beside how to learn."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from genpol.commands.wandb_options import WandbOptions
from offline.ranges import Count, Positive, Size, Threads


@dataclass(frozen=True, kw_only=True)
class DatasetRunOptions(WandbOptions):
    """Which dataset, where to learn, where to leave the result, and how to go on."""

    data: tuple[str, ...] = ()
    """Datasets: .hdf5 files, LeRobot folders, recordings of `genpol serve --record`, minari:NAME,
    or module:function@PATH of a reader of yours. `genpol data info` describes one. Each gives its
    share of every batch, see --data-weights. Default: none, a new run needs one."""
    data_weights: tuple[Positive, ...] = ()
    """Share of every batch that each --data gives, in any unit, above 0. Default: equal shares,
    whatever the datasets' sizes."""
    success: tuple[str, ...] = ()
    """Who says which episodes succeeded: all, last-reward, a FILE.csv of labels, or module:function
    of each episode. One for all --data, or one for each, where "data" is the default. Default:
    labels.csv in the folder of --data, else what the dataset says."""
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

    def __post_init__(self) -> None:
        object.__setattr__(self, "data", paths(self.data))
        object.__setattr__(self, "success", paths(self.success))


def paths(data: str | Path | Iterable[str | Path] | None) -> tuple[str, ...]:
    """One dataset, several or none, as Python may name them, as a tuple."""
    if data is None:
        return ()
    return (str(data),) if isinstance(data, str | Path) else tuple(map(str, data))


def written(data: tuple[str, ...]) -> str | list[str] | None:
    """Datasets as config.json and a model's document have them: the name of one, as ever."""
    return list(data) if len(data) > 1 else next(iter(data), None)


def named(data: tuple[str, ...]) -> str:
    """Datasets as a message names them."""
    return " ".join(data)
