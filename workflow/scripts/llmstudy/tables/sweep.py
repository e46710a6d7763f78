"""sweep.csv: one row per outlier threshold of LLM.int8(), its quality beside its decode time.

Columns of quality are those of quality.csv over the beginning of the same text; ``tpot_ms`` is the median over the runs
of one process, ``tpot_low_ms`` and ``tpot_high_ms`` their range. Threshold 0 means no decomposition; ``inf`` a search
that finds nothing.
"""

from __future__ import annotations

from pathlib import Path
from statistics import fmean, median

from llmstudy.tables.columns import SHARED, WORKLOAD
from llmstudy.tables.common import identity, read_records, write_table
from llmstudy.tables.quality import COLUMNS as QUALITY
from llmstudy.tables.quality import Arrays, distances, perplexities

COLUMNS = [
    *SHARED,
    "threshold",
    *(column for column in QUALITY if column not in SHARED),
    *WORKLOAD,
    "tpot_ms",
    "tpot_low_ms",
    "tpot_high_ms",
    "runs",
]


def write(paths: list[str], quality: list[str], reference: str, output: Path) -> None:
    """Aggregate sweep records; ``quality`` holds the quality records, ``reference`` names the one to pair with."""
    references = {
        record["identity"]["model"]: record
        for record in read_records(quality)
        if record["identity"]["precision"] == reference
    }
    rows = [row_of(record, references.get(record["identity"]["model"])) for record in read_records(paths)]
    rows.sort(key=lambda row: (row["model"], row["threshold"]))
    write_table(rows, COLUMNS, output)


def row_of(record: dict, reference: dict | None) -> dict:
    """The row of one threshold."""
    results = record["results"]
    row = identity(record) | {"threshold": float(record["settings"]["threshold"])}
    for entry in results.get("protocols", []):
        own = Arrays(record).of(entry)
        other = Arrays(reference).of(entry)
        beginning = {key: values[: len(own["nll"])] for key, values in other.items()}
        row |= {"corpus": entry["corpus"], "protocol": entry["protocol"]}
        row |= perplexities(entry, own) | distances(own, beginning)
    if results.get("runs"):
        tpot = [fmean(run["itl_ms"]) for run in results["runs"]]
        row |= record["settings"]["workload"]
        row |= {"tpot_ms": median(tpot), "tpot_low_ms": min(tpot), "tpot_high_ms": max(tpot), "runs": len(tpot)}
    return row
