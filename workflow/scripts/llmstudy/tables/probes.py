"""probes.csv: one row per configuration and workload, alone in a process; GiB (2³⁰ bytes).

``load_s``, ``compile_s`` and ``cold_ms`` are the time of loading, of preparing the runtime and of the first call. Peaks
are the CUDA allocator's on a GPU; on a CPU the growth of the process's peak RSS over its state before loading, one
reading of a process. ``workspace_gib`` is what the decode peak has above weights and KV cache. ``memory_gib`` is what
verdicts weigh: on a GPU what the driver counts for the process (as nvidia-smi shows), else what the allocator reserved;
on a CPU weights and KV cache, which are exact, where the peak would be a reading of chance. ``quantized_share`` is the
share of the decoder's weights that are stored in fewer than 16 bits; biases and norms are not counted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import pandas as pd

from llmstudy.tables import Sources
from llmstudy.tables.columns import AT_WORKLOAD, SHARED, WORKLOAD, Column, columns
from llmstudy.tables.records import GIB, identity, planned_workloads

PEAKS = ("peak_load_gib", "peak_prefill_gib", "peak_decode_gib")
COMPONENTS = ("embeddings", "linears", "norms", "head", "other")
# Below 1 some weights of the decoder stay in 16 or 32 bits: experts in one tensor, which a library does not replace.
QUANTIZED = Column("quantized_share", "weights of the decoder in fewer than 16 bits", "percent")
COLUMNS = {
    "probes": [
        *columns("load_s cold_ms compile_s", SHARED + AT_WORKLOAD),
        QUANTIZED,
        Column("memory_gib", "memory, GiB"),
        *columns(
            "weights_gib kv_cache_gib workspace_gib peak_load_gib peak_prefill_gib peak_decode_gib peak_rss_gib "
            "peak_reserved_gib driver_gib kv_cache_measured_prefill_gib "
            + " ".join(f"{name}_gib" for name in COMPONENTS)
            + " attention_kernels:text"
        ),
    ]
}


def probes(sources: Sources) -> list[dict]:
    """Return a row for every workload that a record was to try, tried or not."""
    rows = []
    for record in sources.records:
        results = record["results"]
        shared = {name: results.get(name) for name in ("load_s", QUANTIZED.name)}
        if weights := results.get("weights"):
            shared |= {f"{name}_gib": sum(weights[name].values()) / GIB for name in COMPONENTS}
            shared["weights_gib"] = sum(shared[f"{name}_gib"] for name in COMPONENTS)
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
    decode, prefill = entry["decode"], entry["prefill"]
    kv_cache_gib = entry["kv_cache_bytes"] / GIB
    reserved = [phase["peak_reserved_bytes"] / GIB for phase in (prefill, decode) if "peak_reserved_bytes" in phase]
    driver = [gib for phase in (prefill, decode) if (gib := driver_gib(phase)) is not None]
    return {
        "cold_ms": entry.get("cold_ms"),
        "compile_s": entry.get("compile_s"),
        "memory_gib": max(driver or reserved or [weights_gib + kv_cache_gib]),
        "kv_cache_gib": kv_cache_gib,
        "kv_cache_measured_prefill_gib": entry.get("kv_cache_measured_prefill_bytes", math.nan) / GIB,
        "workspace_gib": max(0.0, peak(decode) - weights_gib - kv_cache_gib),
        "peak_prefill_gib": peak(prefill),
        "peak_decode_gib": peak(decode),
        "peak_rss_gib": max(phase["peak_rss_bytes"] for phase in (load, prefill, decode)) / GIB,
        "peak_reserved_gib": max(reserved, default=math.nan),
        "driver_gib": max(driver, default=math.nan),
        "attention_kernels": "; ".join(entry["attention_kernels"]),
    }


def peak(reading: dict) -> float:
    """Return the peak of a phase in GiB: that of the device's allocator, else the growth of the host process."""
    return reading.get("peak_allocated_bytes", reading["peak_rss_growth_bytes"]) / GIB


def driver_gib(reading: dict) -> float | None:
    """Return what the driver counts for the process in GiB; None on a CPU, and where that is less than the process had
    allocated: then some memory was given back before the driver was read."""
    driver = reading.get("driver_bytes")
    return None if driver is None or driver < reading["peak_allocated_bytes"] else driver / GIB


def nearest_workload(table: pd.DataFrame, workload: Mapping[str, int]) -> dict[str, int]:
    """Return the workload in ``table`` with the same batch and prompt and the nearest number of new tokens, or
    ``workload`` itself where there is none. A few new tokens more add their KV cache alone to memory."""
    same = table[(table["batch"] == workload["batch"]) & (table["prompt_tokens"] == workload["prompt_tokens"])]
    wanted = {column: int(workload[column]) for column in WORKLOAD}
    counts = same["new_tokens"].dropna().astype(int)
    if counts.empty:
        return wanted
    return wanted | {"new_tokens": min(counts, key=lambda tokens: abs(tokens - wanted["new_tokens"]))}
