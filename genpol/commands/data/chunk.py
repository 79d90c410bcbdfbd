"""`genpol data chunk`: action chunks as single actions, for libraries that know only those."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from offline.ranges import Size


@dataclass(frozen=True)
class DataChunk:
    """Rewrite a dataset so that each action is several in a row (for robomimic).

    Libraries that know only single actions then learn chunks: H actions of A numbers become one of
    H * A numbers.
    """

    data: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DATA")]
    """Dataset: a .hdf5 file, a LeRobot folder, minari:NAME, or module:function@PATH of a reader of
    yours."""
    output: Path
    """Robomimic-format HDF5 file to write."""
    action_chunk: Size = 4
    """Actions in a row that become one, at least 1."""
    overwrite: bool = False
    """Replace an existing file."""


def run(config: DataChunk) -> None:
    """Write the file whole or not at all, and say what is in it."""
    from tqdm import tqdm

    from offline.errors import InputError
    from robots.datasets.chunked import write_chunked
    from robots.datasets.open import open_dataset

    if config.output.is_dir():
        raise InputError(f'--output "{config.output}" is a folder; name a file in it')
    if config.output.exists() and not config.overwrite:
        raise InputError(f'"{config.output}" exists; pass another --output, or --overwrite')
    episodes = open_dataset(config.data)

    def progress(indices: range) -> tqdm:
        return tqdm(indices, unit="episode", leave=False, disable=len(indices) < 20, delay=2)

    written = write_chunked(episodes, config.action_chunk, config.output, progress=progress)
    print(
        f"{config.output}: {len(episodes)} episodes became {len(written)}, "
        f"{int(episodes.lengths.sum())} steps {int(written.lengths.sum())} decisions of "
        f"{config.action_chunk} x {episodes.spec.dim} = {written.spec.dim} numbers"
    )
