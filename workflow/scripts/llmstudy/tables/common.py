"""What all tables share: the identity columns, and rows for what was planned but not measured."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from llmstudy.files import atomic_write
from llmstudy.runner import record as records
from llmstudy.tables.columns import IDENTITY

TEXT = ("reason", "flags", "text", "reference_text")
GIB = 2**30


def read_records(paths: Iterable[str]) -> list[dict]:
    """All records, each with the path that it came from."""
    return [records.read(Path(path)) | {"path": Path(path)} for path in paths]


def identity(record: dict, entry: dict | None = None) -> dict:
    """The columns that every table has; an entry with a status of its own (one workload) overrules the record's."""
    columns = {key: record["identity"][key] for key in IDENTITY}
    told = entry if entry and entry.get("status") else record
    return columns | {"status": told["status"], "reason": told["reason"]}


def planned_workloads(record: dict) -> list[tuple[dict, dict | None]]:
    """(workload, its entry or None) for every workload that the record was asked for."""
    measured = {tuple(entry["workload"].values()): entry for entry in record["results"].get("workloads", [])}
    return [(workload, measured.get(tuple(workload.values()))) for workload in record["settings"]["workloads"]]


def write_table(rows: list[dict], columns: list[str], path: Path) -> None:
    """Write rows as CSV with exactly these columns; a cell that does not apply is empty."""
    table = pd.DataFrame(rows, columns=columns)
    with atomic_write(path) as file:
        table.to_csv(file, index=False, float_format="%.6g")


def read_table(path: Path) -> pd.DataFrame:
    """Read a table back; text columns have no missing values, and a text that says NA stays one."""
    columns = pd.read_csv(path, nrows=0).columns
    missing = {column: [""] for column in columns if column not in TEXT}
    return pd.read_csv(path, keep_default_na=False, na_values=missing, dtype=dict.fromkeys(TEXT, str))
