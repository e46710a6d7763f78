"""crossover.csv: where one precision, or one attention kernel, overtakes another.

One row per pair and grid: precisions along batch sizes in tokens/s against the reference, attention kernels along
prompt lengths in TTFT against the study's first kernel, both from processes.csv; and kernels alone along context
lengths in the time of a prefill and of a decode step, from the records behind attention.csv. ``x`` with its 95 %
interval is in the unit of the grid, and ``text`` says it in words. Intervals are over processes; those of kernels alone
are over the repeats of one process, so they do not know how processes differ.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd

from llmstudy.stats.crossover import CrossOver, cross_over
from llmstudy.tables import Sources
from llmstudy.tables.columns import AT_WORKLOAD, CONFIGURATION, SHARED, WORKLOAD, columns
from llmstudy.tables.records import identity

COLUMNS = {
    "crossover": [
        *SHARED,
        *AT_WORKLOAD,
        *columns("reference along quantity kind", "text"),
        *columns("x low high"),
        *columns("changes", "count"),
        *columns("text", "text"),
    ]
}
PHASES = ("prefill", "decode")


def crossover(sources: Sources) -> list[dict]:
    """Return every cross-over of a study."""
    study, processes = sources.study, sources.tables["processes"]
    references = {model: headline["reference"] for model, headline in study["headline"].items()}
    rows = rows_of(processes, references, study["attention"][0])
    return rows + kernel_rows(sources.of_kind("attention"), study["kernels"][0])


def rows_of(processes: pd.DataFrame, references: Mapping[str, str], attention: str) -> list[dict]:
    """Return the cross-overs of whole models; none where the study has a single batch size or prompt length."""
    kernels = dict.fromkeys(references, attention)
    return [
        *cross_overs(processes, along="batch", differing="precision", reference=references),
        *cross_overs(processes, along="prompt_tokens", differing="attention", reference=kernels, quantity="ttft_ms"),
    ]


def kernel_rows(records: list[dict], kernel: str) -> list[dict]:
    """Return the cross-overs of attention kernels alone; none where fewer than two contexts have both."""
    times = pd.DataFrame([row for record in records for row in times_of(record)])
    if times.empty:
        return []
    kernels = dict.fromkeys(times["model"], kernel)
    return [
        row
        for phase in PHASES
        for row in cross_overs(times, along="context", differing="attention", reference=kernels, quantity=f"{phase}_ms")
    ]


def times_of(record: dict) -> list[dict]:
    """Return a row per repeat of every measured point of an attention record, its time in ``<phase>_ms``."""
    empty = dict.fromkeys([*WORKLOAD, *(f"{phase}_ms" for phase in PHASES)])
    return [
        identity(record, point) | empty | {"batch": 1, "context": point["context"], f"{point['phase']}_ms": time_ms}
        for point in record["results"].get("points", [])
        for time_ms in point.get("time_ms", [])
    ]


def cross_overs(
    processes: pd.DataFrame,
    *,
    along: str,
    differing: str,
    reference: Mapping[str, str],
    quantity: str = "tokens_per_s",
) -> list[dict]:
    """Return every cross-over in processes.csv, or in a table like it with a row per repeat.

    Pairs agree in all else, missing cells of a workload included, and share at least two grid points with status ok.

    Args:
        processes: Table of one study.
        along: Column of the grid, positive numbers.
        differing: Column that distinguishes the two sides, ``precision`` or ``attention``.
        reference: Value of that column, per model, with which the others are compared.
        quantity: Rate to compare, or a time (a name that ends in ``_ms``), which is inverted.
    """
    fixed = [column for column in [*CONFIGURATION, *WORKLOAD] if column not in (along, differing)]
    measured = processes[(processes["status"] == "ok") & processes[quantity].notna()]
    rows = []
    for key, group in measured.groupby(fixed, sort=False, dropna=False):
        same = group.iloc[0][["study", "weights", "device", "status", "reason"]].to_dict() | dict(zip(fixed, key))
        sides = {name: _series(side, along, quantity) for name, side in group.groupby(differing, sort=False)}
        base_name = reference[same["model"]]
        base = sides.pop(base_name, {})
        for name, side in sides.items():
            grid = sorted(base.keys() & side.keys())
            if len(grid) < 2:
                continue
            crossing = cross_over(grid, [base[x] for x in grid], [side[x] for x in grid])
            row = same | {differing: name, "reference": base_name, "along": along, "quantity": quantity}
            row |= {column: getattr(crossing, column) for column in ("kind", "x", "low", "high", "changes")}
            rows.append(row | {"text": sentence(crossing, grid)})
    return rows


def _series(rows: pd.DataFrame, along: str, quantity: str) -> dict[float, np.ndarray]:
    values = rows[quantity].astype(float)
    rates = 1 / values if quantity.endswith("_ms") else values
    return {x: sample.to_numpy() for x, sample in rates.groupby(rows[along])}


def sentence(crossing: CrossOver, grid: list[float]) -> str:
    """Return a cross-over in words: "overtakes at 12 (95 % interval 9.1 to beyond 32)"."""
    first, last = grid[0], grid[-1]
    if crossing.kind == "behind throughout":
        return f"behind throughout: none up to {last:g}"
    if crossing.kind == "ahead throughout":
        return f"ahead throughout, from {first:g} to {last:g}"
    words = f"{crossing.kind} at {_plain(crossing.x)}"
    if not math.isnan(crossing.low):
        low = f"below {first:g}" if crossing.low == 0 else _plain(crossing.low)
        high = f"beyond {last:g}" if math.isinf(crossing.high) else _plain(crossing.high)
        words += f" (95 % interval {low} to {high})"
    if crossing.changes > 1:
        words += f", the first of {crossing.changes} changes"
    return words


def _plain(x: float) -> str:
    """Return three digits, or all before the point: never an exponent."""
    return f"{x:.0f}" if x >= 99.95 else f"{x:.3g}"
