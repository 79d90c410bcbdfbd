"""Result CSVs that several processes fill at once, and their places on pages for readers."""

from __future__ import annotations

import csv
import fcntl
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS_PAGE = Path(__file__).parents[1] / "docs" / "RESULTS.md"


class Table:
    """The rows of a CSV; appended under a lock, so that several processes may fill one table."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.path, self.columns = path, tuple(columns)

    def rows(self) -> list[dict[str, str]]:
        if not self.path.exists():
            return []
        with open(self.path, newline="") as file:
            return list(csv.DictReader(file))

    def has(self, **key: Any) -> bool:
        return any(all(row[k] == str(v) for k, v in key.items()) for row in self.rows())

    def add(self, *rows: dict[str, Any]) -> None:
        """Append rows, all or (but for a kill within milliseconds) none."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a", newline="") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            writer = csv.DictWriter(file, self.columns, lineterminator="\n")
            if file.tell() == 0:
                writer.writeheader()
            for row in rows:
                writer.writerow(
                    {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()}
                )


def write_block(marker: str, text: str, page: Path = RESULTS_PAGE) -> None:
    """Replace what stands on the page between `<!-- marker -->` and `<!-- /marker -->`.

    Raises:
        SystemExit: the page has no such place.
    """
    if f"<!-- {marker} -->" not in page.read_text():
        raise SystemExit(f"{page.name} has no place for this table: <!-- {marker} --> is missing")
    head, rest = page.read_text().split(f"<!-- {marker} -->")
    tail = rest.split(f"<!-- /{marker} -->")[1]
    whole = f"{head}<!-- {marker} -->\n\n{text}\n\n<!-- /{marker} -->{tail}"
    partial = page.with_name(f".{page.name}.{os.getpid()}")
    partial.write_text(whole)
    os.replace(partial, page)
