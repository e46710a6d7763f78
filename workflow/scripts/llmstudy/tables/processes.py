"""processes.csv: one row per configuration, workload and repeat.

``ttft_ms``, ``tpot_ms`` and ``e2e_ms`` are medians over the runs of one process; TPOT of a run is
(t_last − t_first) / (n − 1). ``itl_p50_ms`` and ``itl_p90_ms`` are percentiles of all inter-token times of the
process. ``tokens_per_s`` counts generated tokens of all rows of the batch over the whole call. ``mbu`` is the bytes
that a decode step must read (weights without the embedding table, KV cache at the mean context) ÷ TPOT ÷ the copy
bandwidth measured in the same process.
"""

from __future__ import annotations

from pathlib import Path
from statistics import fmean, median

import numpy as np

from llmstudy.measure.conditions import busy
from llmstudy.stats.percentile import percentile_if_supported
from llmstudy.tables.columns import SHARED, WORKLOAD
from llmstudy.tables.common import identity, planned_workloads, read_records, write_table

COLUMNS = [
    *SHARED,
    *WORKLOAD,
    "repeat",
    "ttft_ms",
    "tpot_ms",
    "itl_p50_ms",
    "itl_p90_ms",
    "e2e_ms",
    "tokens_per_s",
    "cold_ms",
    "load_s",
    "compile_s",
    "bandwidth_gb_s",
    "mbu",
    "joules_per_token",
    "flags",
    "runs",
    "step_bytes",
    "attention_kernels",
    "threads",
]

UNEVEN = 0.2  # (largest - smallest) / median of the end-to-end times


def write(paths: list[str], output: Path) -> None:
    """Aggregate latency records."""
    rows = [row for record in read_records(paths) for row in rows_of(record)]
    write_table(rows, COLUMNS, output)


def rows_of(record: dict) -> list[dict]:
    """A row for every workload that the record was asked for, measured or not."""
    results = record["results"]
    rows = []
    for workload, entry in planned_workloads(record):
        row = identity(record, entry) | workload | {"repeat": record["identity"]["repeat"]}
        row |= {key: results.get(key) for key in ("load_s", "bandwidth_gb_s")}
        row["threads"] = record["provenance"].get("threads")
        if entry and entry["status"] == "ok":
            row |= timing(entry, results, workload)
            flags = entry["flags"] + busy(entry["conditions"]["before"], row["threads"]) + uneven(entry["runs"])
            row["flags"] = "; ".join(flags)
        rows.append(row)
    return rows


def uneven(runs: list[dict]) -> list[str]:
    """A flag if the timed calls of one process lie far apart, so that their median says little."""
    times = [run["e2e_ms"] for run in runs]
    spread = (max(times) - min(times)) / median(times)
    return [f"timed calls {100 * spread:.0f} % apart"] if spread > UNEVEN else []


def timing(entry: dict, results: dict, workload: dict) -> dict:
    """The columns of one measured workload."""
    runs = entry["runs"]
    between = np.array([gap for run in runs for gap in run["itl_ms"]])
    tpot_ms = median(fmean(run["itl_ms"]) for run in runs)
    e2e_ms = median(run["e2e_ms"] for run in runs)
    context = workload["prompt_tokens"] + workload["new_tokens"] / 2
    step_bytes = results["step_weight_bytes"] + results["kv_bytes_per_token"] * workload["batch"] * context
    return {
        "ttft_ms": median(run["ttft_ms"] for run in runs),
        "tpot_ms": tpot_ms,
        "itl_p50_ms": percentile_if_supported(between, 50),
        "itl_p90_ms": percentile_if_supported(between, 90),
        "e2e_ms": e2e_ms,
        "tokens_per_s": 1e3 * workload["batch"] * workload["new_tokens"] / e2e_ms,
        "cold_ms": entry["cold_ms"],
        "compile_s": entry["compile_s"],
        "mbu": step_bytes / (tpot_ms / 1e3) / (results["bandwidth_gb_s"] * 1e9),
        "joules_per_token": entry["joules_per_token"] or None,  # 0 in records that took "no more than idling" for none
        "runs": len(runs),
        "step_bytes": int(step_bytes),
        "attention_kernels": "; ".join(entry["attention_kernels"]),
    }
