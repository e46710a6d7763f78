"""Columns of tables: what each is called, how numbers are shown; tables are read and written by them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from llmstudy.files import atomic_write
from llmstudy.stats.estimate import Estimate
from llmstudy.stats.panels import Comparison

CONFIGURATION = ["model", "precision", "attention", "runtime"]
KEY = CONFIGURATION[1:]  # of a configuration among those of one model
IDENTITY = ["study", "model", "weights", "precision", "attention", "runtime", "device"]
WORKLOAD = ["batch", "prompt_tokens", "new_tokens"]
PROTOCOL = ["corpus", "protocol"]
# Text that is never missing; "NA" and "null" are words there.
TEXT = ("reason", "flags", "text", "reference_text", "kl_reason", "again", "against", "instead", "note", "sentence")
TEXT += ("ttft_rounds_ms", "tpot_rounds_ms", "e2e_rounds_ms", "tpot_verdict", "ttft_verdict", "e2e_verdict")
TEXT += ("memory_verdict", "ppl_verdict", "blocks", "bos", "uncounted")
UNITS = {"ms": "ms", "s": "s", "gib": "GiB", "mib": "MiB", "nats": "nats"}
TERMS = {word: word.upper() for word in ("ttft", "tpot", "itl", "mbu", "rss", "nll", "kv", "kl", "ppl")}
TERMS |= {"e2e": "end to end", "se": "SE of", "delta": "Δ", "top1": "top-1", "p999": "p99.9"}


@dataclass(frozen=True)
class Column:
    """A column of a table: its name in the CSV file with the unit at its end, and its heading in the report.

    The report shows it as ``text``, ``code`` (a name in monospace), ``count`` (a whole number, written as one),
    ``number`` (three significant digits), ``percent`` (a share 0 … 1), ``points`` (a difference of shares, in
    percentage points), ``ratio`` (near 1), ``perplexity``, ``nats``, ``signed`` (a difference) or ``p`` (a p-value).
    """

    name: str
    title: str = ""
    show: str = "number"


def interval(name: str, low: str, high: str, title: str, show: str = "number") -> list[Column]:
    """Return the columns of a quantity and of the two ends of its 95 % interval."""
    return [Column(name, title, show), Column(low, f"{title}, low", show), Column(high, f"{title}, high", show)]


def cells(estimate: Estimate | Comparison, name: str, low: str = "", high: str = "") -> dict[str, float]:
    """Return the cells of a quantity and of the two ends of its interval, by default ``<name>_low`` and ``_high``."""
    return {name: estimate.value, low or f"{name}_low": estimate.low, high or f"{name}_high": estimate.high}


def columns(names: str, before: Sequence[Column] = ()) -> list[Column]:
    """Return columns, ``before`` first, whose titles follow from their names: "peak load, GiB" of ``peak_load_gib``.
    What is not shown as a number says so: ``tokens:count``."""
    parts = (name.partition(":") for name in names.split())
    return [*before, *(Column(name, _title(name), show or "number") for name, _, show in parts)]


def pick(columns: Iterable[Column], names: str) -> list[Column]:
    """Return the columns of another table that have these names."""
    by_name = {column.name: column for column in columns}
    return [by_name[name] for name in names.split()]


def where(table: pd.DataFrame, values: Mapping) -> pd.DataFrame:
    """Return the rows of a table that have these values."""
    return table[(table[list(values)] == list(values.values())).all(axis=1)]


def _title(name: str) -> str:
    words, _, unit = name.rpartition("_")
    if unit in UNITS:
        return f"{_title(words)}, {UNITS[unit]}"
    return " ".join(TERMS.get(word, word) for word in name.split("_"))


SHARED = columns("study:text model:code weights:text precision:code attention:text runtime:text device:text")
SHARED += columns("status:code reason:text")
AT_WORKLOAD = columns("batch:count prompt_tokens:count new_tokens:count")
AT_PROTOCOL = columns("corpus:text protocol:text")


def write_table(rows: Iterable[Mapping], columns: Sequence[Column], path: Path) -> None:
    """Write rows as CSV with exactly these columns: floats with six significant digits, counts in full, what is
    missing as an empty cell."""
    table = pd.DataFrame(list(rows), columns=[column.name for column in columns])
    for column in columns:
        if column.show == "count":  # a missing cell would make floats of the others, and of 1290591 "1.29059e+06"
            table[column.name] = table[column.name].astype("float64").astype("Int64")
    with atomic_write(path) as file:
        table.to_csv(file, index=False, float_format="%.6g")


def read_table(path: Path) -> pd.DataFrame:
    """Read a table; text columns have no missing values, and a text that says NA stays one."""
    columns = pd.read_csv(path, nrows=0).columns
    missing = {column: [""] for column in columns if column not in TEXT}
    return pd.read_csv(path, keep_default_na=False, na_values=missing, dtype=dict.fromkeys(TEXT, str))


def number(value: float) -> str:
    """Return three significant digits, thousands separated, without an exponent above 0.0001."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if value == 0 or abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.1e}" if abs(value) < 1e-4 else f"{value:.3g}"


def listed(words: Iterable[str], last: str = "and") -> str:
    """Return words as a list in a sentence, each once: "a, b and c"."""
    words = list(dict.fromkeys(words))
    return f" {last} ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def percent(ratio: float) -> str:
    """Return a ratio as a signed change: "+2.1 %" for 1.021."""
    change = (ratio - 1) * 100
    if abs(change) >= 1000:
        return f"x {number(ratio)}"
    return f"{change:+.0f} %" if abs(change) >= 99.5 else f"{change:+.2g} %"
