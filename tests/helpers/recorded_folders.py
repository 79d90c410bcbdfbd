"""A recording as far as `genpol improve` looks at it: one file of decisions for each episode."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet

from robots.datasets.recorded import Facts, beside, facts_as_metadata


def add_episode(
    folder: Path, index: int, *, success: bool | None, versions: list[str] | None = None
) -> None:
    """An episode of three decisions, whose chunks have three actions but for the last."""
    path = beside(folder, "decisions", index, "parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = Facts(f"id-{index}", index, 0.0, "success", success, versions=versions or [])
    table = pa.table({"steps": [3, 3, 1], "source": ["policy"] * 3})
    parquet.write_table(table.replace_schema_metadata(facts_as_metadata(facts)), path)
