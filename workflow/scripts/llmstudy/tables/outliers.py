"""outliers.csv: one row per layer, linear and threshold; what LLM.int8() would keep in 16 bit.

Shares are fractions over the whole text: ``column_share`` of input columns that some token touches, ``row_share`` of
tokens that touch some column, ``entry_share`` of single activations. ``max_abs`` is the largest magnitude.
"""

from __future__ import annotations

from pathlib import Path

from llmstudy.tables.columns import SHARED
from llmstudy.tables.common import identity, read_records, write_table

COLUMNS = [
    *SHARED,
    "layer",
    "linear",
    "threshold",
    "columns",
    "max_abs",
    "column_share",
    "row_share",
    "entry_share",
    "tokens",
]


def write(paths: list[str], output: Path) -> None:
    """Aggregate outlier records."""
    rows = [row for record in read_records(paths) for row in rows_of(record)]
    write_table(rows, COLUMNS, output)


def rows_of(record: dict) -> list[dict]:
    """A row for every linear and threshold; one row with the status if nothing was measured."""
    results = record["results"]
    shared = identity(record) | {"tokens": results.get("tokens")}
    rows = []
    for entry in results.get("linears", []):
        own = {key: entry[key] for key in ("layer", "linear", "columns", "max_abs")}
        rows += [shared | own | at_threshold for at_threshold in entry["thresholds"]]
    return rows or [shared]
