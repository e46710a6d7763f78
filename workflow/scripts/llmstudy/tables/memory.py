"""memory.csv: one row per configuration and workload, GiB (2³⁰ bytes).

Peaks are the CUDA allocator's on a GPU; on a CPU the growth of the process's peak RSS over its state before loading.
``workspace_gib`` is what the decode peak has above weights and KV cache.
"""

from __future__ import annotations

from pathlib import Path

from llmstudy.tables.columns import SHARED, WORKLOAD
from llmstudy.tables.common import GIB, identity, planned_workloads, read_records, write_table

COMPONENTS = ("embeddings", "linears", "norms", "head", "other")
COLUMNS = [
    *SHARED,
    *WORKLOAD,
    "weights_gib",
    "kv_cache_gib",
    "workspace_gib",
    "peak_load_gib",
    "peak_prefill_gib",
    "peak_decode_gib",
    "peak_rss_gib",
    "peak_reserved_gib",
    "driver_gib",
    "kv_cache_measured_prefill_gib",
    *(f"{component}_gib" for component in COMPONENTS),
]


def write(paths: list[str], output: Path) -> None:
    """Aggregate memory records."""
    rows = [row for record in read_records(paths) for row in rows_of(record)]
    write_table(rows, COLUMNS, output)


def rows_of(record: dict) -> list[dict]:
    """A row for every workload that the record was asked for, measured or not."""
    results = record["results"]
    shared = weights_columns(results["weights"]) if "weights" in results else {}
    if "load" in results:
        shared["peak_load_gib"] = peak(results["load"])
    rows = []
    for workload, entry in planned_workloads(record):
        row = identity(record, entry) | workload | shared
        if entry and entry["status"] == "ok":
            row |= peaks(entry, results["load"], shared["weights_gib"])
        rows.append(row)
    return rows


def weights_columns(weights: dict[str, dict[str, int]]) -> dict:
    """Weights in all and by component."""
    columns = {f"{name}_gib": sum(weights[name].values()) / GIB for name in COMPONENTS}
    return columns | {"weights_gib": sum(columns.values())}


def peaks(entry: dict, load: dict, weights_gib: float) -> dict:
    """The columns of one measured workload."""
    decode = entry["decode"]
    kv_cache_gib = entry["kv_cache_bytes"] / GIB
    return {
        "kv_cache_gib": kv_cache_gib,
        "kv_cache_measured_prefill_gib": _gib(entry.get("kv_cache_measured_prefill_bytes")),
        "workspace_gib": max(0.0, peak(decode) - weights_gib - kv_cache_gib),
        "peak_prefill_gib": peak(entry["prefill"]),
        "peak_decode_gib": peak(decode),
        "peak_rss_gib": max(phase["peak_rss_bytes"] for phase in (load, entry["prefill"], decode)) / GIB,
        "peak_reserved_gib": _gib(decode.get("peak_reserved_bytes")),
        "driver_gib": driver_gib(decode),
    }


def peak(reading: dict) -> float:
    """The peak of a phase: the device allocator's, else the host's growth."""
    return reading.get("peak_allocated_bytes", reading["peak_rss_growth_bytes"]) / GIB


def driver_gib(reading: dict) -> float | None:
    """What the driver counts for the process; None where that is less than the process had allocated: then some of the
    memory was given back before it was read."""
    driver = reading.get("driver_bytes")
    return None if driver is None or driver < reading["peak_allocated_bytes"] else driver / GIB


def _gib(count: int | None) -> float | None:
    return None if count is None else count / GIB
