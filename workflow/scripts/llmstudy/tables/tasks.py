"""tasks.csv: one row per model, precision and task of lm-eval, a group's documents taken together.

``accuracy`` with its Wilson interval. Against the reference precision on the same documents: ``accuracy_change`` with
its paired interval; ``answers_changed``, among them ``correct_to_wrong`` and ``wrong_to_correct`` (a wrong answer can
change into another wrong one); ``mcnemar_p`` exact and unadjusted, ``mcnemar_p_holm`` over all precisions and tasks of
the model, and whether the two precisions are ``distinguishable`` by it at 5 %. The reference's own cells are empty.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from llmstudy.stats.estimate import CONFIDENCE
from llmstudy.stats.multiplicity import holm
from llmstudy.stats.proportions import paired_change, wilson
from llmstudy.tables.columns import SHARED
from llmstudy.tables.common import identity, read_records, write_table

COLUMNS = [
    *SHARED,
    "task",
    "metric",
    "documents",
    "accuracy",
    "accuracy_low",
    "accuracy_high",
    "accuracy_change",
    "accuracy_change_low",
    "accuracy_change_high",
    "answers_changed",
    "correct_to_wrong",
    "wrong_to_correct",
    "mcnemar_p",
    "mcnemar_p_holm",
    "distinguishable",
]
OTHER_DOCUMENTS = "not the documents of the reference: measure both again"


def write(paths: list[str], references: dict[str, str], output: Path) -> None:
    """Aggregate task records; ``references`` names each model's reference precision."""
    records = read_records(paths)
    arrays = {
        record["identity"]["model"]: read_arrays(record)
        for record in records
        if record["identity"]["precision"] == references[record["identity"]["model"]]
    }
    rows = []
    for record in records:
        model, precision = record["identity"]["model"], record["identity"]["precision"]
        rows += rows_of(record, None if precision == references[model] else arrays.get(model, {}))
    for model in references:
        adjust([row for row in rows if row["model"] == model and "mcnemar_p" in row])
    write_table(rows, COLUMNS, output)


def read_arrays(record: dict) -> dict[str, np.ndarray]:
    """The per-document arrays beside a record, empty if nothing was measured."""
    path = record["path"].with_suffix(".npz")
    if not path.exists() or not path.stat().st_size:
        return {}
    with np.load(path) as stored:
        return dict(stored)


def rows_of(record: dict, reference: dict[str, np.ndarray] | None) -> list[dict]:
    """A row for every task that was asked for; ``reference`` is None for the reference itself, and empty if it has
    nothing to compare with."""
    entries = {entry["task"]: entry for entry in record["results"].get("tasks", [])}
    own = read_arrays(record)
    rows = []
    for task in record["settings"]["tasks"]:
        entry = entries.get(task)
        row = identity(record, entry) | {"task": task}
        if entry and entry["status"] == "ok":
            correct = own[f"{task}/correct"]
            low, high = wilson(int(correct.sum()), len(correct))
            row |= {"metric": entry["metric"], "documents": len(correct), "accuracy": correct.mean()}
            row |= {"accuracy_low": low, "accuracy_high": high}
            if reference and f"{task}/correct" in reference:
                row |= compare(reference, own, task)
        rows.append(row)
    return rows


def compare(reference: dict[str, np.ndarray], own: dict[str, np.ndarray], task: str) -> dict:
    """What changed in a task, document by document."""
    if not np.array_equal(reference[f"{task}/document"], own[f"{task}/document"]):
        return {"status": "error", "reason": OTHER_DOCUMENTS}
    before, after = reference[f"{task}/correct"] == 1, own[f"{task}/correct"] == 1
    lost, gained = int((before & ~after).sum()), int((~before & after).sum())
    change = paired_change(int((before & after).sum()), lost, gained, int((~before & ~after).sum()))
    return {
        "accuracy_change": change.value,
        "accuracy_change_low": change.low,
        "accuracy_change_high": change.high,
        "answers_changed": int((reference[f"{task}/answer"] != own[f"{task}/answer"]).sum()),
        "correct_to_wrong": lost,
        "wrong_to_correct": gained,
        "mcnemar_p": change.p,
    }


def adjust(rows: list[dict]) -> None:
    """Adjust the p-values of one model for their number, and say which differences count."""
    for row, p in zip(rows, holm(np.array([row["mcnemar_p"] for row in rows])), strict=True):
        row |= {"mcnemar_p_holm": p, "distinguishable": "yes" if p < 1 - CONFIDENCE else "no"}
