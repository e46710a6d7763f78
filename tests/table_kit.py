"""Records written by hand, and the tables that the workflow makes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from llmstudy import tables
from llmstudy.runner import record as records
from llmstudy.tables.columns import SHARED, read_table

OOM = {"status": "oom", "reason": "CUDA out of memory"}
AT = {"batch": 1, "prompt_tokens": 128, "new_tokens": 32}
AGAIN = "again"
STUDY = {
    "headline": {"m": {"reference": "fp32"}},
    "workloads": {"m": [AT]},
    "dense": ["fp32", "bf16"],
    "runtime": "generate",
    "attention": ["eager"],
    "kernels": ["eager"],
    "limits": {},
    "margin_percent": {"speed": 10.0, "memory": 10.0, "perplexity": 1.0},
    "capacity": {"contexts": [1024, 2048], "device_gib": 40.0},
}


def configuration(name: str) -> tuple[str, str, str]:
    """Return precision, attention and runtime of ``bf16`` or ``bf16.sdpa.graph``."""
    return tuple(name.split(".")) if "." in name else (name, "sdpa", "generate")


def write_record(folder: Path, kind: str, results: dict, settings: dict | None = None, arrays=None, **changes) -> str:
    """Write a record and its arrays, and return its path as a rule's input gives it; ``changes`` go to its identity,
    ``status``, ``reason`` and ``provenance`` to itself."""
    identity = {"study": "tiny", "kind": kind, "model": "m", "weights": "real", "precision": "fp32"}
    identity |= {"attention": "sdpa", "runtime": "generate", "repeat": 0, "device": "cpu"}
    content = {"schema": records.SCHEMA, "status": "ok", "reason": "", "provenance": {"threads": 2}}
    content |= {"settings": settings or {}, "results": results}
    for key, value in changes.items():
        (content if key in content else identity)[key] = value
    name = f"{identity['precision']}.{identity['attention']}.{identity['runtime']}.r{identity['repeat']}.json"
    path = folder / "records" / kind / identity["model"] / name
    records.write(content | {"identity": identity}, path)
    path.with_suffix(".npz").touch()  # what a measurement that failed leaves
    if arrays:
        np.savez_compressed(path.with_suffix(".npz"), **arrays)
    return str(path)


def panel(
    folder: Path, *groups: dict, number=0, workload=AT, ttft_ms=None, planned=(), bandwidth=(15.0, 20.0), **changes
) -> str:
    """Write the record of a panel and return its path.

    A group has for each configuration the TPOT of every round, or an outcome; its first is the reference, ``again`` the
    second calls of that. ``ttft_ms`` is 5 unless it has another for a configuration; ``planned`` are without an entry.
    """
    names = list(dict.fromkeys(name for group in groups for name in group if name != AGAIN))
    entries = []
    for place, group in enumerate(groups):
        for name, times in group.items():
            own = configuration(names[0] if name == AGAIN else name)
            entries.append(dict(zip(("precision", "attention", "runtime"), own)) | {"again": name == AGAIN})
            entries[-1] |= {"workload": workload, "group": place, "status": "ok", "reason": ""}
            if isinstance(times, dict):
                entries[-1] |= times
                continue
            first, gaps = (ttft_ms or {}).get(name, 5.0), workload["new_tokens"] - 1
            calls = [{"ttft_ms": first, "itl_ms": [ms] * gaps, "e2e_ms": first + ms * gaps} for ms in times]
            entries[-1] |= {"step_weight_bytes": 100_000_000, "kv_bytes_per_token": 1000, "calls": calls}
    results = {"bandwidth_gb_s": dict(zip(("copy", "read"), bandwidth)), "rounds": [], "entries": entries}
    settings = {"workloads": [workload], "configurations": [list(configuration(one)) for one in [*names, *planned]]}
    return write_record(folder, "panel", results, settings, repeat=number, **changes)


def make(folder: Path, name: str, records=(), sources: dict[str, pd.DataFrame] | None = None, **study) -> pd.DataFrame:
    """Make a table below ``folder`` as the workflow does, of records and of the tables in ``sources`` or made before;
    return what the report reads."""
    for source, table in (sources or {}).items():
        table.to_csv(folder / f"{source}.csv", index=False)
    paths = {source: folder / f"{source}.csv" for source in tables.TABLES[name].tables}
    tables.make(name, list(records), paths, STUDY | study, folder / f"{name}.csv")
    table = read_table(folder / f"{name}.csv")
    assert list(table.columns) == [column.name for column in tables.columns_of(name)]
    assert list(table.columns[: len(SHARED)]) == [column.name for column in SHARED]
    return table


def only(table: pd.DataFrame, **values) -> pd.Series:
    """Return the one row with these values."""
    for column, value in values.items():
        table = table[table[column] == value]
    assert len(table) == 1
    return table.iloc[0]
