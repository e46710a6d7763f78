"""Records as tables read them: identity, what was planned but not measured, the arrays beside a record."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from llmstudy.errors import StudyError
from llmstudy.runner import record as records
from llmstudy.tables.columns import IDENTITY

GIB = 2**30


def read_records(paths: Iterable[str]) -> list[dict]:
    """Return all records, each with the ``path`` of its file; raise StudyError for records of a model on weights that
    were replaced meanwhile."""
    found = [records.read(Path(path)) | {"path": Path(path)} for path in paths]
    first: dict[str, dict] = {}
    for record in found:
        if weights := record.get("provenance", {}).get("weights"):
            other = first.setdefault(record["identity"]["model"], record)
            if other["provenance"]["weights"] != weights:
                raise StudyError(
                    f"{record['path']} and {other['path'].name} are of different weights under one name; measure again "
                    "without measure: nothing, or delete the older one"
                )
    return found


def identity(record: dict, entry: dict | None = None) -> dict:
    """Return the columns that every table has; the status of an entry (one workload) replaces that of its record."""
    outcome = entry if entry and entry.get("status") else record
    columns = {key: record["identity"][key] for key in IDENTITY}
    return columns | {"status": outcome["status"], "reason": outcome["reason"]}


def planned_workloads(record: dict) -> list[tuple[dict, dict | None]]:
    """Return each workload of the record's settings with its entry in the results, None where it has none."""
    measured = {tuple(entry["workload"].values()): entry for entry in record["results"].get("workloads", [])}
    return [(workload, measured.get(tuple(workload.values()))) for workload in record["settings"]["workloads"]]


def by_key(record: dict | None, results: str, *keys: str) -> dict[tuple, dict]:
    """Return the entries of a list in a record's results by their keys; none without a record or what it measured."""
    entries = record["results"].get(results, []) if record else []
    return {tuple(entry[key] for key in keys): entry for entry in entries}


def read_arrays(path: Path, prefix: str = "") -> dict[str, np.ndarray]:
    """Return the arrays beside a record's file whose key begins with ``prefix``, by the rest of their key; none where
    the measurement failed and left no file or an empty one."""
    path = path.with_suffix(".npz")
    if not path.exists() or not path.stat().st_size:
        return {}
    with np.load(path) as stored:
        return {key.removeprefix(prefix): stored[key] for key in stored.files if key.startswith(prefix)}
