"""processes.csv: the times of one process at one workload, as its record has them.

``ttft_ms``, ``tpot_ms`` and ``e2e_ms`` are medians over the timed calls of the process; TPOT of a call is
(t_last − t_first) / (n − 1). ``itl_p50_ms`` and ``itl_p90_ms`` are percentiles of all its inter-token times.
``tokens_per_s`` counts the generated tokens of all rows of the batch over the whole call. ``step_bytes`` is what a
decode step must read: weights without the embedding table, and the KV cache at the mean context. ``mbu`` is
``step_bytes`` ÷ TPOT ÷ the copy bandwidth measured in the same process.
"""

from __future__ import annotations

from statistics import fmean, median

import numpy as np

from llmstudy.stats.estimate import percentile
from llmstudy.tables import Sources
from llmstudy.tables.columns import AT_WORKLOAD, SHARED, Column, columns
from llmstudy.tables.records import identity, planned_workloads

COLUMNS = {
    "processes": [
        *SHARED,
        *AT_WORKLOAD,
        *columns("process:count group:count again:text ttft_ms tpot_ms e2e_ms itl_p50_ms itl_p90_ms"),
        Column("tokens_per_s", "tokens/s, whole call"),
        *columns("rounds:count ttft_rounds_ms:text tpot_rounds_ms:text e2e_rounds_ms:text"),
        Column("copy_gb_s", "copy, GB/s"),
        Column("read_gb_s", "read, GB/s"),
        Column("step_bytes", "bytes a step", "count"),
        *columns("flags:text threads:count"),
    ]
}
UNEVEN = 0.2  # (largest - smallest) / median of the end-to-end times


def processes(sources: Sources) -> list[dict]:
    """Return a row for every workload that a process was to measure, measured or not."""
    rows = []
    for record in sources.records:
        results, threads = record["results"], record["provenance"].get("threads")
        for workload, entry in planned_workloads(record):
            row = identity(record, entry) | workload | {"repeat": record["identity"]["repeat"], "threads": threads}
            row |= {key: results.get(key) for key in ("load_s", "bandwidth_gb_s")}
            if entry and entry["status"] == "ok":
                row |= timing(entry, results, workload) | {"flags": "; ".join(flags(entry, threads))}
            rows.append(row)
    return rows


def flags(entry: dict, threads: int) -> list[str]:
    """Return the flags of a measured workload, and more if the load average shows other work or if its timed calls lie
    so far apart that their median says little."""
    found, before = list(entry["flags"]), entry["conditions"]["before"]
    # On a GPU too: a step that waits for launches is as slow as the host. The measurement's threads count in the load.
    if before["load_average"] > threads + 1:
        found.append(f"load average {before['load_average']:.1f} on {before['cores']} cores")
    times = [run["e2e_ms"] for run in entry["runs"]]
    spread = (max(times) - min(times)) / median(times)
    return found + [f"timed calls {100 * spread:.0f} % apart"] * (spread > UNEVEN)


def timing(entry: dict, results: dict, workload: dict) -> dict:
    """Return the columns of one measured workload."""
    runs = entry["runs"]
    gaps = np.array([gap for run in runs for gap in run["itl_ms"]])
    tpot_ms = median(fmean(run["itl_ms"]) for run in runs)
    e2e_ms = median(run["e2e_ms"] for run in runs)
    context = workload["prompt_tokens"] + workload["new_tokens"] / 2
    step_bytes = results["step_weight_bytes"] + results["kv_bytes_per_token"] * workload["batch"] * context
    return {key: entry[key] for key in ("cold_ms", "compile_s")} | {
        "ttft_ms": median(run["ttft_ms"] for run in runs),
        "tpot_ms": tpot_ms,
        "itl_p50_ms": percentile(gaps, 50),
        "itl_p90_ms": percentile(gaps, 90),
        "e2e_ms": e2e_ms,
        "tokens_per_s": 1e3 * workload["batch"] * workload["new_tokens"] / e2e_ms,
        "mbu": step_bytes / (tpot_ms / 1e3) / (results["bandwidth_gb_s"] * 1e9),
        "joules_per_token": entry["joules_per_token"] or None,  # 0 in records that took "no more than idling" for none
        "runs": len(runs),
        "step_bytes": int(step_bytes),
        "attention_kernels": "; ".join(entry["attention_kernels"]),
    }
