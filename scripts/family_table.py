"""Train every family with every objective, tiny and random: the table in docs/OBJECTIVES.md.

    python -m scripts.family_table              # fills docs/results/families.csv, writes the table
    python -m scripts.family_table sd flux      # these families alone, as one process of several
    python -m scripts.family_table --report     # the table alone, from the committed rows

A row is one cell (scripts/family_cells.py), and a row that is there is skipped. Remove a row, or
the file, to fill it anew. The slow tests fill cells anew and compare.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import get_type_hints

from offline.threads import use_threads
from scripts.family_cells import COLUMNS, FAMILIES, FORWARD, OBJECTIVES, SAME, YES, cell
from scripts.results_table import Table, write_block

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "OBJECTIVES.md"
TABLE = Table(DOCS / "results" / "families.csv", COLUMNS)
TRAIN = ("lora", "full")
Row = dict[str, str]


def keys(family: str) -> Iterator[dict[str, str]]:
    """The cells of a family."""
    for algorithm, train in itertools.product(OBJECTIVES, TRAIN):
        yield {"family": family, "algorithm": algorithm, "train": train}


def fill(families: list[str]) -> None:
    """Run the cells that have no row."""
    for family in families:
        for key in keys(family):
            if not TABLE.has(**key):
                row = cell(**key)
                TABLE.add(row)
                print(" ".join(key.values()), "-", verdict({k: str(v) for k, v in row.items()}))


def verdict(row: Row) -> str:
    """ "yes", or the first thing that is not as it should be."""
    for column in ("trains", "resumes", "reloads"):
        if row[column] != YES:
            return f"{column}: {row[column]}"
    if row["algorithm"] not in FORWARD and not float(row["ratio_error"]) <= SAME:
        return f"ratio error {row['ratio_error']}"
    return YES


def text() -> str:
    """The table for readers: a line a family, a column an objective."""
    rows = TABLE.rows()
    head = ["pipeline", *(f"`{name}`" for name in OBJECTIVES), "ratio error", "pixels apart"]
    lines = [" | ".join(head), " | ".join(["---"] * len(head))]
    for family in FAMILIES:
        mine = [row for row in rows if row["family"] == family]
        said = [summary([r for r in mine if r["algorithm"] == name]) for name in OBJECTIVES]
        worst = (largest(mine, column) for column in ("ratio_error", "reload_error"))
        pipeline = get_type_hints(FAMILIES[family])["return"].__name__
        lines.append(" | ".join([f"`{pipeline}`", *said, *worst]))
    return "\n".join(f"| {line} |" for line in lines)


def summary(rows: list[Row]) -> str:
    """Both ways of training in one cell."""
    found = {row["train"]: verdict(row) for row in rows}
    if set(found) != set(TRAIN):
        return "not run"
    wrong = [f"{train}: {said}" for train, said in found.items() if said != YES]
    return "; ".join(wrong).replace("|", "/") or YES


def largest(rows: list[Row], column: str) -> str:
    numbers = [float(row[column]) for row in rows if row[column]]
    return f"{max(numbers):.0e}".replace("0e+00", "0") if numbers else ""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("families", nargs="*", help=f"of {', '.join(FAMILIES)}; all without any")
    parser.add_argument("--report", action="store_true", help="write the table alone")
    arguments = parser.parse_args()
    if strange := set(arguments.families) - set(FAMILIES):
        parser.error(f"no family of these: {', '.join(sorted(strange))}")
    use_threads(1)
    if not arguments.report:
        fill(arguments.families or list(FAMILIES))
    write_block("families", text(), PAGE)
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
