"""Columns of tables: what each is called, how the report shows it; tables are read and written by them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from llmstudy.files import atomic_write

CONFIGURATION = ["model", "precision", "attention", "runtime"]
IDENTITY = ["study", "model", "weights", "precision", "attention", "runtime", "device"]
WORKLOAD = ["batch", "prompt_tokens", "new_tokens"]
PROTOCOL = ["corpus", "protocol"]
# Text that is never missing; "NA" and "null" are words there.
TEXT = ("reason", "flags", "text", "reference_text", "kl_reason")
UNITS = {"ms": "ms", "s": "s", "gib": "GiB", "mib": "MiB", "nats": "nats"}
TERMS = {"ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "e2e": "end to end", "mbu": "MBU", "rss": "RSS", "nll": "NLL"}
TERMS |= {
    "kv": "KV",
    "kl": "KL",
    "se": "SE of",
    "ppl": "PPL",
    "delta": "Δ",
    "top1": "top-1",
    "top5": "top-5",
    "p999": "p99.9",
}


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        name: Name in the CSV file, with the unit at its end.
        title: Heading in the report; the name where it is empty.
        show: ``text``, ``code`` (a name in monospace), ``count`` (a whole number, written as one), ``number`` (three
            significant digits), ``percent`` (a share 0 … 1), ``points`` (a difference of shares, in percentage points),
            ``ratio`` (near 1), ``perplexity``, ``nats``, ``signed`` (a difference) or ``p`` (a p-value).
    """

    name: str
    title: str = ""
    show: str = "number"


def interval(name: str, low: str, high: str, title: str, show: str = "number") -> list[Column]:
    """Return the columns of a quantity and of the two ends of its 95 % interval."""
    return [Column(name, title, show), Column(low, f"{title}, low", show), Column(high, f"{title}, high", show)]


def columns(names: str, show: str = "number") -> list[Column]:
    """Return columns whose titles follow from their names: "peak load, GiB" of ``peak_load_gib``."""
    return [Column(name, _title(name), show) for name in names.split()]


def pick(columns: Iterable[Column], names: str) -> list[Column]:
    """Return the columns of another table that have these names."""
    by_name = {column.name: column for column in columns}
    return [by_name[name] for name in names.split()]


def _title(name: str) -> str:
    words, _, unit = name.rpartition("_")
    if unit in UNITS:
        return f"{_title(words)}, {UNITS[unit]}"
    return " ".join(TERMS.get(word, word) for word in name.split("_"))


SHARED = [
    *columns("study", "text"),
    *columns("model", "code"),
    *columns("weights", "text"),
    *columns("precision", "code"),
    *columns("attention runtime device", "text"),
    *columns("status", "code"),
    *columns("reason", "text"),
]
AT_WORKLOAD = columns("batch prompt_tokens new_tokens", "count")
AT_PROTOCOL = columns("corpus protocol", "text")


def write_table(rows: Iterable[Mapping], columns: Sequence[Column], path: Path, digits: int = 6) -> None:
    """Write rows as CSV with exactly these columns: floats with ``digits`` significant digits, counts in full, what is
    missing as an empty cell."""
    table = pd.DataFrame(list(rows), columns=[column.name for column in columns])
    for column in columns:
        if column.show == "count":  # a missing cell would make floats of the others, and of 1290591 "1.29059e+06"
            table[column.name] = table[column.name].astype("float64").astype("Int64")
    with atomic_write(path) as file:
        table.to_csv(file, index=False, float_format=f"%.{digits}g")


def read_table(path: Path) -> pd.DataFrame:
    """Read a table; text columns have no missing values, and a text that says NA stays one."""
    columns = pd.read_csv(path, nrows=0).columns
    missing = {column: [""] for column in columns if column not in TEXT}
    return pd.read_csv(path, keep_default_na=False, na_values=missing, dtype=dict.fromkeys(TEXT, str))


def text(cells: pd.Series) -> pd.Series:
    """Return a column of text with "" where a cell is missing (a column of missing cells alone is read as numbers)."""
    return cells.astype(object).where(cells.notna(), "")
