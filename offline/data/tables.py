"""`Table`: rows of arrays, and which of them a file does not hold yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Table:
    """What is saved by its rows, so that only those that have changed need saving.

    Its owner writes into the arrays and sets `changed`. Whoever saves the rows clears it. Rows
    beyond those in use count as changed, because nobody saves them before they are used.
    """

    arrays: Mapping[str, np.ndarray]
    """By name, each (R, ...)."""
    changed: np.ndarray
    """(R,) bool, whether a row was written since it was last saved."""
    used: int
    """How many rows are in use: the first ones."""

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return sum(array.nbytes // max(len(array), 1) for array in self.arrays.values())
