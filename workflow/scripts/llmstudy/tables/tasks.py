"""tasks.csv: one row per model, precision and task of lm-eval, a group's documents taken together.

``accuracy`` with its Wilson interval. Against the reference precision on the same documents: ``accuracy_change`` with
its paired interval; ``answers_changed``, among them ``correct_to_wrong`` and ``wrong_to_correct`` (a wrong answer can
change into another wrong one); ``mcnemar_p`` exact and unadjusted, ``mcnemar_p_holm`` over all precisions and tasks of
the model, and whether the two precisions are ``distinguishable`` by it at 5 %. The reference has no such cells.
"""

from __future__ import annotations

import numpy as np

from llmstudy.stats.estimate import CONFIDENCE, holm
from llmstudy.stats.proportions import paired_change, wilson
from llmstudy.tables import Sources
from llmstudy.tables.columns import SHARED, Column, columns, interval
from llmstudy.tables.records import identity, read_arrays

COLUMNS = {
    "tasks": [
        *SHARED,
        *columns("task metric", "text"),
        *columns("documents", "count"),
        *interval("accuracy", "accuracy_low", "accuracy_high", "accuracy", "percent"),
        *interval("accuracy_change", "accuracy_change_low", "accuracy_change_high", "change, points", "points"),
        *columns("answers_changed correct_to_wrong wrong_to_correct", "count"),
        Column("mcnemar_p", "p (McNemar)", "p"),
        Column("mcnemar_p_holm", "adjusted p", "p"),
        *columns("distinguishable", "text"),
    ]
}
OTHER_DOCUMENTS = "not the documents of the reference: measure both again"


def tasks(sources: Sources) -> list[dict]:
    """Return a row for every task that a record was to measure, with p-values adjusted over each model."""
    arrays = {
        record["identity"]["model"]: read_arrays(record) for record in sources.records if sources.is_reference(record)
    }
    rows = []
    for record in sources.records:
        reference = None if sources.is_reference(record) else arrays.get(record["identity"]["model"], {})
        rows += rows_of(record, reference)
    for model in dict.fromkeys(row["model"] for row in rows):
        adjust([row for row in rows if row["model"] == model and "mcnemar_p" in row])
    return rows


def rows_of(record: dict, reference: dict[str, np.ndarray] | None) -> list[dict]:
    """Return the rows of one record.

    ``reference`` has the arrays of the reference; None for the reference itself, empty if it was not measured.
    """
    entries = {entry["task"]: entry for entry in record["results"].get("tasks", [])}
    arrays = read_arrays(record)
    rows = []
    for task in record["settings"]["tasks"]:
        entry = entries.get(task)
        row = identity(record, entry) | {"task": task}
        if entry and entry["status"] == "ok":
            correct = arrays[f"{task}/correct"]
            low, high = wilson(int(correct.sum()), len(correct))
            row |= {"metric": entry["metric"], "documents": len(correct), "accuracy": correct.mean()}
            row |= {"accuracy_low": low, "accuracy_high": high}
            if reference and f"{task}/correct" in reference:
                row |= change(reference, arrays, task)
        rows.append(row)
    return rows


def change(reference: dict[str, np.ndarray], arrays: dict[str, np.ndarray], task: str) -> dict:
    """Return the columns that compare with the reference, document by document."""
    if not np.array_equal(reference[f"{task}/document"], arrays[f"{task}/document"]):
        return {"status": "error", "reason": OTHER_DOCUMENTS}
    before, after = reference[f"{task}/correct"] == 1, arrays[f"{task}/correct"] == 1
    lost, gained = int((before & ~after).sum()), int((~before & after).sum())
    difference = paired_change(int((before & after).sum()), lost, gained, int((~before & ~after).sum()))
    return {
        "accuracy_change": difference.value,
        "accuracy_change_low": difference.low,
        "accuracy_change_high": difference.high,
        "answers_changed": int((reference[f"{task}/answer"] != arrays[f"{task}/answer"]).sum()),
        "correct_to_wrong": lost,
        "wrong_to_correct": gained,
        "mcnemar_p": difference.p,
    }


def adjust(rows: list[dict]) -> None:
    """Adjust the p-values of one model for their number, and say which differences count."""
    for row, p in zip(rows, holm(np.array([row["mcnemar_p"] for row in rows])), strict=True):
        row |= {"mcnemar_p_holm": p, "distinguishable": "yes" if p < 1 - CONFIDENCE else "no"}
