"""Columns that name what a row of the study's tables is about."""

import pandas as pd

CONFIGURATION = ["model", "precision", "attention", "runtime"]
IDENTITY = ["study", "model", "weights", "precision", "attention", "runtime", "device"]
WORKLOAD = ["batch", "prompt_tokens", "new_tokens"]
PROTOCOL = ["corpus", "protocol"]


def text(cells: pd.Series) -> pd.Series:
    """A column of text, "" where a cell is missing (a column of missing cells alone is read as numbers)."""
    return cells.astype(object).where(cells.notna(), "")
