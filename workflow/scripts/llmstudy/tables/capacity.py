"""capacity.csv: the largest batch that fits the device at each context, predicted by the fitted memory model.

``largest_batch`` with its predicted peak ``fits_gib``, and ``first_too_large`` with ``too_large_gib``; ``largest_ok``
and ``smallest_oom`` are what memory.csv really saw at that context, empty where none was tried. A configuration with
too few measured workloads has no row.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from llmstudy.statistics.capacity import capacities, measured_frontier
from llmstudy.statistics.columns import CONFIGURATION
from llmstudy.tables.common import IDENTITY, read_records, read_table, write_table

PREDICTED = ["context_tokens", "largest_batch", "fits_gib", "first_too_large", "too_large_gib"]
COLUMNS = [*IDENTITY, "device_gib", *PREDICTED, "largest_ok", "smallest_oom"]


def write(memory: Path, records: list[str], contexts: list[int], device_gib: float | None, output: Path) -> None:
    """Predict the frontier of every configuration.

    memory      the study's memory.csv
    records     its memory records, which know the device's size
    contexts    prompt plus new tokens
    device_gib  memory of the device; None takes the measured one's
    """
    if device_gib is None:
        device_gib = min((size_of(record) for record in read_records(records)), default=0.0)
    write_table(rows_of(read_table(memory), contexts, device_gib), COLUMNS, output)


def size_of(record: dict) -> float:
    """Memory of the device that a record was measured on: of one GPU, else of the host; infinite if it does not say."""
    provenance = record["provenance"]
    return provenance.get("gpu", provenance).get("memory_gib", provenance.get("host_memory_gib", float("inf")))


def rows_of(memory: pd.DataFrame, contexts: list[int], device_gib: float) -> list[dict]:
    """A row per configuration and context."""
    predicted = capacities(memory, contexts, device_gib)
    rows = []
    for key, table in predicted.groupby(CONFIGURATION, sort=False):
        own = memory[(memory[CONFIGURATION] == list(key)).all(axis=1)]
        frontier = table.merge(measured_frontier(own), on="context_tokens", how="left")
        shared = own.iloc[0][["study", "weights", "device"]].to_dict()
        rows += [
            row | shared | {"status": "ok", "reason": "", "device_gib": device_gib}
            for row in frontier.to_dict("records")
        ]
    return rows
