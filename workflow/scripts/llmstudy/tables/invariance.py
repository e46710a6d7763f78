"""invariance.csv: one row per precision, batch size and neighbours of the same prompt.

Differences are against the prompt alone; ``copies`` are neighbours equal to it, ``others 1`` … other texts.
"""

from __future__ import annotations

from pathlib import Path

from llmstudy.tables.columns import SHARED
from llmstudy.tables.common import identity, read_records, write_table

MEASURED = ["batch", "neighbours", "max_abs_delta_logit", "mean_abs_delta_logit", "top1_changes"]
COLUMNS = [*SHARED, *MEASURED, "positions"]


def write(paths: list[str], output: Path) -> None:
    """Aggregate invariance records."""
    rows = [row for record in read_records(paths) for row in rows_of(record)]
    write_table(rows, COLUMNS, output)


def rows_of(record: dict) -> list[dict]:
    """A row for every batch; one row with the status if nothing was measured."""
    results = record["results"]
    rows = [
        identity(record, entry) | {key: entry.get(key) for key in MEASURED} | {"positions": results["positions"]}
        for entry in results.get("batches", [])
    ]
    return rows or [identity(record)]
