"""generations.csv: one row per precision and prompt, beside the reference's text.

``first_divergence_token`` counts generated tokens from 0; empty where the texts never differ.
"""

from __future__ import annotations

from pathlib import Path

from llmstudy.stats.text import distinct_n, first_divergence, repetition_rate
from llmstudy.tables.columns import SHARED
from llmstudy.tables.common import identity, read_records, write_table

COLUMNS = [
    *SHARED,
    "prompt",
    "text",
    "reference_text",
    "first_divergence_token",
    "new_tokens",
    "distinct_2",
    "repetition_4",
]


def write(paths: list[str], reference: str, output: Path) -> None:
    """Aggregate sample records; ``reference`` is the precision whose text stands beside each."""
    records = read_records(paths)
    references = {
        record["identity"]["model"]: {entry["prompt"]: entry for entry in record["results"].get("prompts", [])}
        for record in records
        if record["identity"]["precision"] == reference
    }
    rows = [row for record in records for row in rows_of(record, references.get(record["identity"]["model"], {}))]
    write_table(rows, COLUMNS, output)


def rows_of(record: dict, references: dict[str, dict]) -> list[dict]:
    """A row for every prompt that the record was asked for, generated or not."""
    entries = {entry["prompt"]: entry for entry in record["results"].get("prompts", [])}
    rows = []
    for prompt in record["settings"]["prompts"]:
        entry, reference = entries.get(prompt), references.get(prompt)
        row = identity(record) | {"prompt": prompt, "reference_text": reference and reference["text"]}
        if entry:
            row |= {
                "status": "ok",
                "reason": "",
                "text": entry["text"],
                "new_tokens": len(entry["tokens"]),
                "distinct_2": distinct_n(entry["tokens"], 2),
                "repetition_4": repetition_rate(entry["tokens"], 4),
            }
            if reference:
                row["first_divergence_token"] = first_divergence(reference["tokens"], entry["tokens"])
        rows.append(row)
    return rows
