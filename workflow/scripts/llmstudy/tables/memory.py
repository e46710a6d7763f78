"""memory.csv: one row per configuration and workload, GiB (2³⁰ bytes).

Peaks are the CUDA allocator's on a GPU; on a CPU the growth of the process's peak RSS over its state before loading.
``workspace_gib`` is what the decode peak has above weights and KV cache.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from llmstudy.tables import Sources
from llmstudy.tables.columns import AT_WORKLOAD, SHARED, WORKLOAD, columns
from llmstudy.tables.records import GIB, identity, planned_workloads

PEAKS = ("peak_load_gib", "peak_prefill_gib", "peak_decode_gib")
COMPONENTS = ("embeddings", "linears", "norms", "head", "other")
COLUMNS = {
    "probes": columns(
        "load_s cold_ms compile_s memory_gib weights_gib kv_cache_gib workspace_gib peak_load_gib peak_prefill_gib "
        "peak_decode_gib peak_rss_gib peak_reserved_gib driver_gib kv_cache_measured_prefill_gib "
        + " ".join(f"{name}_gib" for name in COMPONENTS)
        + " attention_kernels:text",
        SHARED + AT_WORKLOAD,
    )
}


def memory(sources: Sources) -> list[dict]:
    """Return a row for every workload that a record was to measure, measured or not."""
    rows = []
    for record in sources.records:
        results, shared = record["results"], {}
        if weights := results.get("weights"):
            shared = {f"{name}_gib": sum(weights[name].values()) / GIB for name in COMPONENTS}
            shared["weights_gib"] = sum(shared.values())
        if "load" in results:
            shared["peak_load_gib"] = peak(results["load"])
        for workload, entry in planned_workloads(record):
            row = identity(record, entry) | workload | shared
            if entry and entry["status"] == "ok":
                row |= peaks(entry, results["load"], shared["weights_gib"])
            rows.append(row)
    return rows


def peaks(entry: dict, load: dict, weights_gib: float) -> dict:
    """Return the columns of one measured workload."""
    decode = entry["decode"]
    kv_cache_gib = entry["kv_cache_bytes"] / GIB
    return {
        "kv_cache_gib": kv_cache_gib,
        "kv_cache_measured_prefill_gib": entry.get("kv_cache_measured_prefill_bytes", math.nan) / GIB,
        "workspace_gib": max(0.0, peak(decode) - weights_gib - kv_cache_gib),
        "peak_prefill_gib": peak(entry["prefill"]),
        "peak_decode_gib": peak(decode),
        "peak_rss_gib": max(phase["peak_rss_bytes"] for phase in (load, entry["prefill"], decode)) / GIB,
        "peak_reserved_gib": decode.get("peak_reserved_bytes", math.nan) / GIB,
        "driver_gib": driver_gib(decode),
    }


def peak(reading: dict) -> float:
    """Return the peak of a phase in GiB: that of the device's allocator, else the growth of the host process."""
    return reading.get("peak_allocated_bytes", reading["peak_rss_growth_bytes"]) / GIB


def driver_gib(reading: dict) -> float | None:
    """Return what the driver counts for the process in GiB; None where that is less than the process had allocated:
    then some memory was given back before the driver was read."""
    driver = reading.get("driver_bytes")
    return None if driver is None or driver < reading["peak_allocated_bytes"] else driver / GIB


def peak_gib(memory: pd.DataFrame, phases: Sequence[str] = PEAKS) -> pd.Series:
    """Return the peak memory of each row of memory.csv in GiB: the highest of its phases, or the host RSS where there
    are none. See ``peaks_that_count`` for a CPU."""
    highest = peaks_that_count(memory, phases).max(axis=1)
    return highest.fillna(memory.reindex(columns=["peak_rss_gib"])["peak_rss_gib"].astype(float))


def peaks_that_count(memory: pd.DataFrame, phases: Sequence[str]) -> pd.DataFrame:
    """Return the peaks of the phases in GiB, loading left out on a CPU: while it reads, the growth of the process holds
    pages of the mapped weight file, which the kernel can take back, and none where the file is used as it is."""
    peaks = memory.reindex(columns=list(phases)).astype(float)
    if "device" in memory and "peak_load_gib" in peaks:
        peaks["peak_load_gib"] = peaks["peak_load_gib"].where(memory["device"] != "cpu")
    return peaks


def nearest_workload(table: pd.DataFrame, workload: Mapping[str, int]) -> dict[str, int]:
    """Return the workload in ``table`` with the same batch and prompt and the nearest number of new tokens, or
    ``workload`` itself where there is none. A few new tokens more add their KV cache alone to memory."""
    same = table[(table["batch"] == workload["batch"]) & (table["prompt_tokens"] == workload["prompt_tokens"])]
    wanted = {column: int(workload[column]) for column in WORKLOAD}
    counts = same["new_tokens"].dropna().astype(int)
    if counts.empty:
        return wanted
    return wanted | {"new_tokens": min(counts, key=lambda tokens: abs(tokens - wanted["new_tokens"]))}
