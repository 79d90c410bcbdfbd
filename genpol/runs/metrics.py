"""metrics.csv: one row per log step, first column `step`, columns that may grow."""

from __future__ import annotations

import csv
import errno
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from offline.errors import InputError
from offline.files import write_beside


class MetricsCsv:
    """A growing table of numbers that survives being killed at any moment.

    Each row is one unbuffered write, so it is in the file when `log` returns. A line torn by a
    kill is dropped when the file is opened again. A new column rewrites the file (beside, then
    renamed) with blanks in the older rows. Cells are `repr(float)`, which reads back bit for bit.
    """

    def __init__(self, path: Path) -> None:
        """Open `path`, or create it empty.

        Raises:
            InputError: `path` is some other table, without `step` as its first column.
        """
        self.path = path
        self.columns = ["step"]
        path.touch()
        self._file = open(path, "r+b", buffering=0)
        self._write_all(self._read())

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append a row, or add to the last one if it has the same step.

        Args:
            step: the row's step, at least 0 and not below the last row's.
            metrics: name to number, anything `float()` accepts.

        Raises:
            ValueError: `step` goes backwards.
            OSError: the disk refuses.
        """
        if self._row and step < int(self._row["step"]):
            raise ValueError(f"step {step} after step {self._row['step']} in {self.path}")
        same = self._row.get("step") == str(step)
        row = dict(self._row) if same else {"step": str(step)}
        row |= {name: _cell(value) for name, value in metrics.items()}

        if all(name in self.columns for name in row):
            start = self._row_start if same else self._row_end
            self._write_row(start, row)
        else:
            rows = self._read()
            self._write_all((rows[:-1] if same else rows) + [row])

    def truncate(self, step: int) -> None:
        """Drop the rows after `step`, those that a resumed run will write again."""
        self._write_all([row for row in self._read() if int(row["step"]) <= step])

    def close(self) -> None:
        self._file.close()

    @property
    def empty(self) -> bool:
        return not self._row

    def _read(self) -> list[dict[str, str]]:
        """The complete rows on disk; sets `columns`."""
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1].decode("utf-8", errors="replace").replace("\0", "")
        lines = list(csv.reader(io.StringIO(whole)))
        if not lines:
            return []
        if lines[0][:1] != ["step"]:
            raise InputError(
                f'{self.path} does not start with a column "step", so it is not this run\'s table: '
                "move it away or pass another --output"
            )
        columns = lines[0]
        self.columns = columns + [name for name in self.columns if name not in columns]
        return [
            dict(zip(columns, cells, strict=True))
            for cells in lines[1:]
            if len(cells) == len(columns) and cells[0].isdecimal()
        ]

    def _write_all(self, rows: Sequence[Mapping[str, str]]) -> None:
        if rows:
            self.columns += [name for name in rows[-1] if name not in self.columns]
        head = [_line(self.columns)] + [self._row_line(row) for row in rows]
        write_beside(self.path, b"".join(head))
        self._file.close()  # of the file that was just replaced
        self._file = open(self.path, "r+b", buffering=0)
        self._row = dict(rows[-1]) if rows else {}
        self._row_end = sum(map(len, head))
        self._row_start = self._row_end - len(head[-1])

    def _write_row(self, start: int, row: dict[str, str]) -> None:
        line = self._row_line(row)
        self._file.seek(start)
        if self._file.write(line) != len(line):  # a raw write may stop short on a full disk
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._file.truncate()
        self._row, self._row_start, self._row_end = row, start, start + len(line)

    def _row_line(self, row: Mapping[str, str]) -> bytes:
        return _line([row.get(name, "") for name in self.columns])


def _cell(value: float) -> str:
    return str(int(value)) if isinstance(value, int) else repr(float(value))


def _line(cells: Sequence[str]) -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(cells)
    return buffer.getvalue().encode()
