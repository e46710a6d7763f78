"""processes.csv: the times of one configuration at one workload in one process, a panel.

``ttft_ms``, ``tpot_ms`` and ``e2e_ms`` are medians over the rounds of the process; the times of every round are in
``ttft_rounds_ms``, ``tpot_rounds_ms`` and ``e2e_rounds_ms``, in the order of the rounds, the same for all
configurations of a ``group``. TPOT of a call is (t_last − t_first) / (n − 1). ``itl_p50_ms`` and ``itl_p90_ms`` are
percentiles of all inter-token times of the process. ``tokens_per_s`` counts the generated tokens of all rows of the
batch over the whole call. ``step_bytes`` is what a decode step must read: weights without the embedding table, and the
KV cache at the mean context. ``again`` marks the second call of the reference in each round. Where not all
configurations fit together, the reference has a row in each group.
"""

from __future__ import annotations

from statistics import fmean, median

import numpy as np
import pandas as pd

from llmstudy.stats.estimate import percentile
from llmstudy.tables import Sources
from llmstudy.tables.columns import AT_WORKLOAD, CONFIGURATION, KEY, SHARED, WORKLOAD, Column, columns
from llmstudy.tables.records import identity

QUANTITIES = ("ttft_ms", "tpot_ms", "e2e_ms")


def rounds(quantity: str) -> str:
    """Return the column with the rounds of a quantity: ``tpot_rounds_ms``."""
    return quantity.replace("_ms", "_rounds_ms")


COLUMNS = {
    "processes": [
        *SHARED,
        *AT_WORKLOAD,
        Column("process", "process", "count"),
        *columns("group:count again:text ttft_ms tpot_ms e2e_ms itl_p50_ms itl_p90_ms"),
        Column("tokens_per_s", "tokens/s, whole call"),
        *columns("rounds:count"),
        *(Column(rounds(name), f"{name}, by round", "text") for name in QUANTITIES),
        Column("copy_gb_s", "copy bandwidth, GB/s"),
        Column("read_gb_s", "read bandwidth, GB/s"),
        Column("step_bytes", "bytes a step", "count"),
        *columns("flags:text threads:count"),
    ]
}


def processes(sources: Sources) -> list[dict]:
    """Return a row for every configuration and workload that a panel was to call, called or not."""
    rows = []
    for record in sources.records:
        if record["status"] == "skipped":
            continue
        results, settings = record["results"], record["settings"]
        entries: dict[tuple, list] = {}
        for entry in results.get("entries", []):
            entries.setdefault(key_of(entry), []).append(entry)
        shared = {"process": record["identity"]["repeat"], "threads": record["provenance"].get("threads")}
        shared |= {f"{name}_gb_s": rate for name, rate in results.get("bandwidth_gb_s", {}).items()}
        for workload in settings["workloads"]:
            for number, names in enumerate(settings["configurations"]):
                configuration = dict(zip(KEY, names))
                for again in [False, True][: 1 + (number == 0)]:
                    key = key_of(configuration | {"again": again, "workload": workload})
                    for entry in entries.get(key, [] if again else [None]):
                        row = identity(record, entry) | configuration | workload | shared
                        row["again"] = "yes" if again else "no"
                        if not entry and record["status"] == "ok":
                            row |= {"status": "error", "reason": "the panel has no entry of this configuration"}
                        if entry and entry["status"] == "ok":
                            row |= timing(entry) | {"flags": flags(results["rounds"], entry)}
                        rows.append(row)
    return rows


def once(processes: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each process, configuration and workload: without the reference's second calls and groups."""
    return processes[processes["again"] == "no"].drop_duplicates([*CONFIGURATION, *WORKLOAD, "process"])


def key_of(entry: dict) -> tuple:
    """Return what distinguishes an entry of a panel."""
    names = tuple(entry[name] for name in [*KEY, "again"])
    return names + tuple(entry["workload"][name] for name in WORKLOAD)


def timing(entry: dict) -> dict:
    """Return the columns of one measured configuration."""
    calls, workload = entry["calls"], entry["workload"]
    gaps = np.array([gap for call in calls for gap in call["itl_ms"]])
    times = {
        "ttft_ms": [call["ttft_ms"] for call in calls],
        "tpot_ms": [fmean(call["itl_ms"]) for call in calls],
        "e2e_ms": [call["e2e_ms"] for call in calls],
    }
    columns: dict = {name: median(values) for name, values in times.items()}
    columns |= {rounds(name): " ".join(f"{value:.6g}" for value in values) for name, values in times.items()}
    if (kv_bytes := entry.get("step_kv_bytes")) is None:  # a record from before windows of attention were counted
        context = workload["prompt_tokens"] + workload["new_tokens"] / 2
        kv_bytes = entry["kv_bytes_per_token"] * workload["batch"] * context
    return columns | {
        "group": entry["group"],
        "itl_p50_ms": percentile(gaps, 50),
        "itl_p90_ms": percentile(gaps, 90),
        "tokens_per_s": 1e3 * workload["batch"] * workload["new_tokens"] / columns["e2e_ms"],
        "rounds": len(calls),
        "step_bytes": int(entry["step_weight_bytes"] + kv_bytes),
    }


def flags(all_rounds: list[dict], entry: dict) -> str:
    """Return what disturbed the rounds of an entry, and how many of them: "1 other GPU process (2 of 7 rounds)"."""
    own = [one for one in all_rounds if (one["group"], one["workload"]) == (entry["group"], entry["workload"])]
    found = [flag for one in own for flag in one["flags"]]
    kinds = dict.fromkeys(flag.split(" took ")[0] for flag in found)  # the share differs from round to round
    counts = {kind: sum(flag.startswith(kind) for flag in found) for kind in kinds}
    return "; ".join(f"{kind} ({count} of {len(own)} rounds)" for kind, count in counts.items())
