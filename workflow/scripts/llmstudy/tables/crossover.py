"""crossover.csv: where one precision, or one attention kernel, overtakes another.

One row per pair and grid: precisions along batch sizes in tokens/s against the reference, attention kernels along
prompt lengths in TTFT against the study's first kernel, both from processes.csv; and kernels alone along context lengths
in the time of a prefill and of a decode step, from the records behind attention.csv. ``x`` with its 95 % interval is in
the unit of the grid, and ``text`` says it in words. Intervals are over processes; those of kernels alone are over the
repeats of one process, so they do not know how processes differ.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from llmstudy.stats.crossover import cross_overs
from llmstudy.tables.columns import SHARED, WORKLOAD
from llmstudy.tables.common import identity, read_records, read_table, write_table

FOUND = ["reference", "along", "quantity", "kind", "x", "low", "high", "changes", "text"]
COLUMNS = [*SHARED, *WORKLOAD, *FOUND]
PHASES = ("prefill", "decode")


def write(
    latency: Path, kernels_alone: list[str], references: dict[str, str], attention: str, kernel: str, output: Path
) -> None:
    """Find every cross-over of a study.

    latency        its processes.csv
    kernels_alone  its attention records; empty if the study has none
    references     model → the precision that the others are compared with
    attention      the kernel that the others are compared with in whole models
    kernel         and alone
    """
    rows = rows_of(read_table(latency), references, attention) + rows_alone(read_records(kernels_alone), kernel)
    write_table(rows, COLUMNS, output)


def rows_of(latency: pd.DataFrame, references: dict[str, str], attention: str) -> list[dict]:
    """Cross-overs of whole models; none where the study has a single batch size or prompt length."""
    kernels = dict.fromkeys(references, attention)
    return identified(
        latency,
        cross_overs(latency, along="batch", differing="precision", reference=references),
        cross_overs(latency, along="prompt_tokens", differing="attention", reference=kernels, quantity="ttft_ms"),
    )


def rows_alone(records: list[dict], kernel: str) -> list[dict]:
    """Cross-overs of attention kernels alone; none where fewer than two contexts were measured with both."""
    times = pd.DataFrame([row for record in records for row in times_of(record)])
    if times.empty:
        return []
    kernels = dict.fromkeys(times["model"], kernel)
    return identified(
        times,
        *(
            cross_overs(times, along="context", differing="attention", reference=kernels, quantity=f"{phase}_ms")
            for phase in PHASES
        ),
    )


def times_of(record: dict) -> list[dict]:
    """A row per repeat of every point of an attention record that was measured, its time in ``<phase>_ms``."""
    empty = dict.fromkeys([*WORKLOAD, *(f"{phase}_ms" for phase in PHASES)])
    return [
        identity(record, point) | empty | {"batch": 1, "context": point["context"], f"{point['phase']}_ms": time_ms}
        for point in record["results"].get("points", [])
        for time_ms in point.get("time_ms", [])
    ]


def identified(measured: pd.DataFrame, *found: pd.DataFrame) -> list[dict]:
    """Cross-overs with the columns that every table has, those of their model in ``measured``."""
    origin = measured.drop_duplicates("model").set_index("model")[["study", "weights", "device"]]
    return [
        row | origin.loc[row["model"]].to_dict() | {"status": "ok", "reason": ""}
        for table in found
        for row in table.to_dict("records")
    ]
