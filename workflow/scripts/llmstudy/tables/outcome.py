"""Whether a study has a result: a run in which every measurement of a model failed must not end like any other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from llmstudy.errors import StudyError
from llmstudy.files import atomic_write
from llmstudy.tables.records import read_records


def check(paths: Iterable[str], output: Path) -> None:
    """Write a line for each model, the number of its records by status.

    Raises:
        StudyError: no record of some model is ``ok``; the line has the first reason.
    """
    models: dict[str, list[dict]] = {}
    for record in read_records(paths):
        models.setdefault(record["identity"]["model"], []).append(record)
    counts = {name: Counter(record["status"] for record in records) for name, records in models.items()}
    lines = {
        name: ", ".join(f"{number} {status}" for status, number in count.items()) for name, count in counts.items()
    }
    if failed := [name for name, count in counts.items() if not count["ok"]]:
        first = next((record for record in models[failed[0]] if record["status"] != "skipped"), models[failed[0]][0])
        told = "; ".join(f"{name} has no record that is ok ({lines[name]})" for name in failed)
        raise StudyError(f"{told}. {first['path']}: {first['reason']}. REPORT.md has the others")
    with atomic_write(output) as file:
        file.writelines(f"{name}: {line}\n" for name, line in lines.items())
