"""Result CSVs that several processes fill at once, and their places in the README."""

from __future__ import annotations

import csv
import fcntl
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

README = Path(__file__).parents[1] / "README.md"


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


def write_readme(marker: str, text: str) -> None:
    """Replace what stands between the README's two markers `<!-- marker -->`."""
    if f"<!-- {marker} -->" not in README.read_text():
        raise SystemExit(f"the README has no place for this table: <!-- {marker} --> is missing")
    head, rest = README.read_text().split(f"<!-- {marker} -->")
    tail = rest.split(f"<!-- /{marker} -->")[1]
    whole = f"{head}<!-- {marker} -->\n\n{text}\n\n<!-- /{marker} -->{tail}"
    partial = README.with_name(f".{README.name}.{os.getpid()}")
    partial.write_text(whole)
    os.replace(partial, README)
