"""Columns that name what a row of the study's tables is about."""

from collections.abc import Mapping

import pandas as pd

CONFIGURATION = ["model", "precision", "attention", "runtime"]
IDENTITY = ["study", "model", "weights", "precision", "attention", "runtime", "device"]
SHARED = [*IDENTITY, "status", "reason"]  # what every table begins with
WORKLOAD = ["batch", "prompt_tokens", "new_tokens"]
PROTOCOL = ["corpus", "protocol"]


def text(cells: pd.Series) -> pd.Series:
    """A column of text, "" where a cell is missing (a column of missing cells alone is read as numbers)."""
    return cells.astype(object).where(cells.notna(), "")


def nearest_workload(table: pd.DataFrame, workload: Mapping[str, int]) -> dict[str, int]:
    """Of the workloads in `table` with the same prompts the one with the nearest number of new tokens; `workload`
    itself where there is none. What a few tokens more change of memory is their KV cache alone."""
    same = table[(table["batch"] == workload["batch"]) & (table["prompt_tokens"] == workload["prompt_tokens"])]
    found = {column: int(workload[column]) for column in WORKLOAD}
    counts = same["new_tokens"].dropna().astype(int)
    if counts.empty:
        return found
    return found | {"new_tokens": min(counts, key=lambda tokens: abs(tokens - found["new_tokens"]))}
