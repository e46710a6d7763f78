"""crossover.csv: where one precision, or one attention kernel, overtakes another.

One row per pair and grid: precisions along batch sizes in tokens/s against the reference, attention kernels along
prompt lengths in TTFT against the study's first kernel, both from processes.csv; and kernels alone along context
lengths in the time of a prefill and of a decode step, from the records behind attention.csv. ``x`` with its 95 %
interval is in the unit of the grid, and ``text`` says it in words. Intervals are over processes; those of kernels alone
are over the repeats of one process, so they do not know how processes differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pandas as pd

from llmstudy.stats.crossover import CrossOver, cross_over
from llmstudy.tables import Sources
from llmstudy.tables.columns import AT_WORKLOAD, CONFIGURATION, SHARED, WORKLOAD, columns
from llmstudy.tables.processes import once
from llmstudy.tables.records import identity

COLUMNS = {
    "crossover": columns(
        "reference:text along:text quantity:text kind:text x low high changes:count text:text", SHARED + AT_WORKLOAD
    )
}
PHASES = ("prefill", "decode")


def crossover(sources: Sources) -> list[dict]:
    """Return every cross-over of a study: none where it has a single batch size, prompt length or common context."""
    study, processes = sources.study, once(sources.tables["processes"])
    rows = cross_overs(processes, "tokens_per_s", "batch", "precision", sources.reference)
    rows += cross_overs(processes, "ttft_ms", "prompt_tokens", "attention", lambda _: study["attention"][0])
    empty = dict.fromkeys([*WORKLOAD, *(f"{phase}_ms" for phase in PHASES)])
    times = [
        identity(record, point) | empty | {"batch": 1, "context": point["context"], f"{point['phase']}_ms": time_ms}
        for record in sources.of_kind("attention")
        for point in record["results"].get("points", [])
        for time_ms in point.get("time_ms", [])
    ]
    for phase in PHASES if times else ():
        repeats = pd.DataFrame(times)
        rows += cross_overs(repeats, f"{phase}_ms", "context", "attention", lambda _: study["kernels"][0])
    return rows


def cross_overs(
    processes: pd.DataFrame, quantity: str, along: str, differing: str, reference: Callable[[str], str]
) -> list[dict]:
    """Return every cross-over in processes.csv, or in a table like it with a row per repeat.

    ``quantity`` is a rate, or a time (a name that ends in ``_ms``), which is inverted; ``along`` is the column of the
    grid, of positive numbers. Pairs differ in the column ``differing``, whose value in the side to be compared with
    ``reference`` returns for a model; they agree in all else, missing cells of a workload included, and share at least
    two grid points with status ok.
    """
    fixed = [column for column in [*CONFIGURATION, *WORKLOAD] if column not in (along, differing)]
    measured = processes[(processes["status"] == "ok") & processes[quantity].notna()]
    rates = measured[quantity].astype(float)
    measured = measured.assign(rate=1 / rates if quantity.endswith("_ms") else rates)
    rows = []
    for key, group in measured.groupby(fixed, sort=False, dropna=False):
        same = group.iloc[0][["study", "weights", "device", "status", "reason"]].to_dict() | dict(zip(fixed, key))
        sides = {
            name: {x: sample.to_numpy() for x, sample in side.groupby(along)["rate"]}
            for name, side in group.groupby(differing, sort=False)
        }
        base_name = reference(same["model"])
        base = sides.pop(base_name, {})
        for name, side in sides.items():
            grid = sorted(base.keys() & side.keys())
            if len(grid) < 2:
                continue
            crossing = cross_over(grid, [base[x] for x in grid], [side[x] for x in grid])
            row = same | {differing: name, "reference": base_name, "along": along, "quantity": quantity}
            rows.append(row | vars(crossing) | {"text": sentence(crossing, grid)})
    return rows


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
