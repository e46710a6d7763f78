"""speed.csv: one row per configuration and workload; every mean and interval over processes is computed here.

``ttft_ms``, ``tpot_ms``, ``e2e_ms``, ``tokens_per_s`` and ``mbu`` are geometric means over the ``processes`` with
status ok, the ends of intervals Student's t on the log scale; other numbers are medians over processes. ``floor_ms``
is the shortest possible TPOT: ``step_bytes`` ÷ ``bandwidth_gb_s``. ``speedup`` is the TPOT of the reference precision
under runtime ``generate``, with the same attention and workload, ÷ TPOT; that configuration itself has 1 without an
interval. ``tpot_degrees`` are the degrees of freedom of the interval of TPOT.

Two processes per configuration say little about their spread, and large models are measured by one alone. What moves
a time from process to process is the machine and the way in which steps are launched: a captured graph repeats within
a per cent where steps launched one by one depend on the host. So the spread is pooled within a runtime, never over two.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace

import pandas as pd

from llmstudy.stats.estimate import without_interval
from llmstudy.stats.processes import Noise, pooled_noise, process_interval, ratio
from llmstudy.tables import Sources
from llmstudy.tables.columns import (
    AT_WORKLOAD,
    CONFIGURATION,
    IDENTITY,
    SHARED,
    WORKLOAD,
    Column,
    cells,
    columns,
    interval,
)

QUANTITIES = ("ttft_ms", "tpot_ms", "e2e_ms", "tokens_per_s")  # with an interval over processes
MEDIANS = ("itl_p50_ms", "itl_p90_ms", "cold_ms", "load_s", "compile_s", "bandwidth_gb_s", "joules_per_token")
GAINS = {"tpot": "speed", "ttft": "speed of the first token", "e2e": "speed of the call"}
COLUMNS = {
    "speed": [
        *SHARED,
        *AT_WORKLOAD,
        *columns("again:text processes:count"),
        *columns(" ".join(f"{name} {name}_min {name}_max" for name in QUANTITIES)),
        *columns("itl_p50_ms itl_p90_ms"),
        Column("bandwidth_gb_s", "bandwidth, GB/s"),
        Column("step_bytes", "bytes a step", "count"),
        *columns("mbu:percent floor_ms against:text"),
        *(
            column
            for name, title in GAINS.items()
            for column in (
                *interval(f"{name}_speedup", f"{name}_speedup_low", f"{name}_speedup_high", title),
                Column(f"{name}_verdict", f"{title}, verdict", "text"),
            )
        ),
        *interval("generate_speedup", "generate_speedup_low", "generate_speedup_high", "against the library"),
        *columns("flags:text"),
    ]
}
NEAR = ["model", "runtime", *WORKLOAD]
REPEATED = ["study", *CONFIGURATION]  # a process of its own


def speed(sources: Sources) -> list[dict]:
    """Return a row for every configuration and workload in processes.csv, measured or not."""
    processes = sources.tables["processes"]
    noise = {quantity: shared_noise(processes, quantity) for quantity in QUANTITIES}
    groups = dict(list(processes.groupby([*CONFIGURATION, *WORKLOAD], sort=False)))
    rows = []
    for key, repeats in groups.items():
        model, _, attention, _, *workload = key
        base = (model, sources.reference(model), attention, "generate", *workload)
        measured, reference = ok(repeats), ok(groups.get(base, repeats[:0]))
        row = repeats.iloc[0][[*IDENTITY, *WORKLOAD]].to_dict() | outcome(repeats) | {"processes": len(measured)}
        if len(measured):
            row |= times(measured, noise)
            gain = without_interval(1.0)
            if key != base:
                shared = [noise["tpot_ms"].of(side.iloc[0]) if len(side) else None for side in (reference, measured)]
                gain = ratio(reference["tpot_ms"], measured["tpot_ms"], *shared)
            row |= cells(gain, "speedup", "speedup_low", "speedup_high") | {"speedup_p": gain.p}
        rows.append(row)
    return rows


def ok(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that were measured."""
    return rows[rows["status"] == "ok"]


def outcome(rows: pd.DataFrame) -> dict:
    """Return status and reason of repeats: ``ok`` if any is, with a note on those that failed, else the first."""
    failed = rows[rows["status"] != "ok"]
    if failed.empty:
        return {"status": "ok", "reason": ""}
    first = failed.iloc[0][["status", "reason"]].to_dict()
    if len(failed) == len(rows):
        return first
    return {"status": "ok", "reason": f"{len(failed)} of {len(rows)} repeats failed ({': '.join(first.values())})"}


def times(measured: pd.DataFrame, noise: Mapping[str, SharedNoise]) -> dict:
    """Return means, intervals and medians over the measured processes of a configuration at a workload."""
    shared = {quantity: noise[quantity].of(measured.iloc[0]) for quantity in QUANTITIES}
    columns: dict = {"tpot_degrees": shared["tpot_ms"] and shared["tpot_ms"].degrees}
    for quantity in QUANTITIES:
        mean = process_interval(measured[quantity], shared[quantity])
        columns |= cells(mean, quantity, f"{quantity}_low", f"{quantity}_high")
    columns |= {name: measured[name].median() for name in MEDIANS}
    columns |= {"mbu": process_interval(measured["mbu"]).value, "step_bytes": int(measured["step_bytes"].median())}
    columns["floor_ms"] = columns["step_bytes"] / columns["bandwidth_gb_s"] / 1e6
    for name in ("flags", "attention_kernels"):
        words = {word for cell in measured[name].dropna() for word in str(cell).split("; ") if word}
        columns[name] = "; ".join(sorted(words))
    return columns


@dataclass(frozen=True)
class SharedNoise:
    """Noise of one quantity between the processes of a study, or of several studies of one machine: by (model, runtime,
    batch, prompt tokens, new tokens), and by runtime over all models and workloads."""

    near: Mapping[tuple[Hashable, ...], Noise | None]
    far: Mapping[str, Noise]

    def of(self, row: Mapping) -> Noise | None:
        """Return the noise of a configuration at a workload: that of its model, else of the study; None if unknown."""
        return self.near.get(tuple(row[column] for column in NEAR)) or self.far.get(row["runtime"])


def shared_noise(processes: pd.DataFrame, quantity: str) -> SharedNoise:
    """Return the noise of a column of processes.csv, of one study or of several below each other.

    Workloads of one process share what distinguishes it from the next, so the noise of a whole study has only the
    degrees of freedom of its processes, however many workloads they measured.
    """

    def pooled(rows: pd.DataFrame) -> Noise | None:
        return pooled_noise(sample for _, sample in rows.groupby([*REPEATED, *WORKLOAD])[quantity])

    measured = processes[(processes["status"] == "ok") & processes[quantity].notna()]
    far = {}
    for runtime, rows in measured.groupby("runtime"):
        if noise := pooled(rows):
            most = rows.groupby([*REPEATED, *WORKLOAD]).size().groupby(level=REPEATED).max()
            far[runtime] = replace(noise, degrees=int((most - 1).sum()))
    return SharedNoise({key: pooled(rows) for key, rows in measured.groupby(NEAR)}, far)
