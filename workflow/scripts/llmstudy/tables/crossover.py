"""crossover.csv: where one precision, or one attention kernel, overtakes another, from latency.csv.

One row per pair and grid: precisions along batch sizes in tokens/s against the reference, attention kernels along
prompt lengths in TTFT against the study's first kernel. ``x`` with its 95 % interval is in the unit of the grid, and
``text`` says it in words.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from llmstudy.statistics.crossover import cross_overs
from llmstudy.tables.common import IDENTITY, WORKLOAD, read_table, write_table

FOUND = ["reference", "along", "quantity", "kind", "x", "low", "high", "changes", "text"]
COLUMNS = [*IDENTITY, *WORKLOAD, *FOUND]


def write(latency: Path, references: dict[str, str], attention: str, output: Path) -> None:
    """Find every cross-over of a study.

    latency     its latency.csv
    references  model → the precision that the others are compared with
    attention   the kernel that the others are compared with
    """
    write_table(rows_of(read_table(latency), references, attention), COLUMNS, output)


def rows_of(latency: pd.DataFrame, references: dict[str, str], attention: str) -> list[dict]:
    """Cross-overs of both kinds; none where the study has a single batch size or prompt length."""
    kernels = dict.fromkeys(references, attention)
    tables = [
        cross_overs(latency, along="batch", differing="precision", reference=references),
        cross_overs(latency, along="prompt_tokens", differing="attention", reference=kernels, quantity="ttft_ms"),
    ]
    origin = latency.drop_duplicates("model").set_index("model")[["study", "weights", "device"]]
    return [
        row | origin.loc[row["model"]].to_dict() | {"status": "ok", "reason": ""}
        for table in tables
        for row in table.to_dict("records")
    ]
