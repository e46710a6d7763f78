"""Records written by hand, and the tables that the workflow makes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from llmstudy import tables
from llmstudy.runner import record as records
from llmstudy.tables.columns import SHARED, read_table

OOM = {"status": "oom", "reason": "CUDA out of memory"}
STUDY = {
    "headline": {"m": {"reference": "fp32"}},
    "attention": ["eager"],
    "kernels": ["eager"],
    "limits": {},
    "smallest_effect_percent": {"tpot": 3.0, "memory": 3.0, "ppl": 0.5},
    "capacity": {"contexts": [1024, 2048], "device_gib": 40.0},
}


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
