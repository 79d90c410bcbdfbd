"""Parquet files and their columns, checked as they are read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from offline.arrays import check_kind, single
from offline.errors import InputError, shown


@contextmanager
def open_parquet(path: Path) -> Iterator[Any]:
    """A parquet file, open; damage becomes an InputError here too."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise InputError('LeRobot datasets need pyarrow: pip install "genpol[data]"') from error
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            yield file
    except (OSError, pyarrow.ArrowException, MemoryError, UnicodeDecodeError) as error:
        raise InputError(f'cannot read "{path}": {shown(str(error), 160)}') from error


def as_matrix(column: Any, where: str, name: str) -> np.ndarray:
    """(T, D) float32 from a column of numbers or of lists (of fixed length or not).

    Raises:
        InputError: it holds something else, nothing in some rows, or rows of different lengths.
    """
    rows = len(column)
    while hasattr(column, "flatten") and hasattr(column.type, "value_type"):
        lengths: list[Any] = getattr(
            column, "value_lengths", list
        )()  # none where all are of one length
        if column.null_count or len(set(lengths)) > 1:
            raise InputError(f'{where}: "{shown(name)}" has rows of different lengths')
        column = column.flatten()
    if column.null_count:
        raise InputError(f'{where}: "{shown(name)}" has rows without a value')
    values = np.asarray(column.to_numpy(zero_copy_only=False))
    check_kind(values.dtype, where, name)
    if not rows or len(values) % rows:
        raise InputError(f'{where}: "{shown(name)}" has {len(values)} numbers in {rows} rows')
    return single(values).reshape(rows, -1)
