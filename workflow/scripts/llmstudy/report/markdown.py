"""Markdown that GitHub renders: tables made of data frames and of the declarations of their columns, and cells."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from itertools import chain
from typing import Any

import pandas as pd

from llmstudy.tables import columns_of, every
from llmstudy.tables.columns import IDENTITY, Column, listed, number
from llmstudy.tables.columns import percent as change

NONE = "–"
REASON_CHARACTERS = 90
LEFT = ("text", "code", "markdown")  # aligned left; numbers stand right
BRIEF = ("agreement", "mean")  # left out in the names of an interval's ends: top1_low of top1_agreement
FAILED = {
    "oom": "does not fit: memory ran out",
    "overflow": "is not finite",
    "timeout": "took longer than a job may take",
    "unsupported": "does not run here",
    "error": "failed",
}
# Statuses whose reason is for developers alone; details.md has it.
PLAIN = ("oom", "timeout")


def table(rows: pd.DataFrame, names: Sequence[str | Column], values: Sequence[str | Column]) -> str | None:
    """Return a Markdown table; None without rows.

    Titles, alignment and format of columns are those of their declaration. The ends of an interval, or of a range,
    share the cell of their quantity. A column of ``values`` without any value is left out. Where a row failed, the
    first of ``values`` that is missing says why.

    Args:
        rows: A row for each line, with ``status`` and ``reason`` if some may have failed.
        names: Columns that say what a row is about; a ``Column`` that no table declares may stand for its name.
        values: Columns that were measured.
    """
    if rows.empty:
        return None
    names, values = ([declared(column) for column in columns] for columns in (names, values))
    values = [column for column in values if _present(rows[column.name]).any()] or values[:1]
    lines = []
    for _, row in rows.iterrows():
        gaps = iter([failure(row)] if row.get("status", "ok") != "ok" else [])
        lines.append([cell(row, column) or NONE for column in names])
        lines[-1] += [cell(row, column) or next(gaps, NONE) for column in values]
    columns = [*names, *values]
    return grid([column.title for column in columns], lines, "".join("rl"[column.show in LEFT] for column in columns))


def listing(rows: pd.DataFrame, names: Sequence[str], columns: Iterable[Column]) -> str | None:
    """Return a whole table: what a row is about, then each of the columns that has a value."""
    own = [column for column in columns if column.name not in [*names, *IDENTITY, "status", "reason"]]
    ends = set(chain.from_iterable((ends_of(column.name, rows) or ("", ""))[:2] for column in own))
    return table(rows, names, [column for column in own if column.name not in ends])


def grid(header: list[str], rows: Iterable[list[str]], align: str | None = None) -> str:
    """Return a Markdown table of texts; ``align`` has l or r per column, by default l for the first and r for others.

    Raises:
        ValueError: a cell is empty: what is missing must say why.
    """
    align = align or "l" + "r" * (len(header) - 1)
    lines = [header, [{"l": "---", "r": "---:"}[letter] for letter in align]]
    for row in rows:
        if len(row) != len(header) or not all(text.strip() for text in row):
            raise ValueError(f"a table row with a missing cell: {row}")
        lines.append([" ".join(text.split()).replace("|", "\\|") for text in row])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@cache
def declarations() -> dict[str, Column]:
    """Return every column of every table by name."""
    return {column.name: column for name in every() for column in columns_of(name)}


def declared(column: str | Column) -> Column:
    """Return the declaration of a column that is given by name."""
    return column if isinstance(column, Column) else declarations()[column]


def ends_of(name: str, present: Iterable[str]) -> tuple[str, str, str] | None:
    """Return the columns with the ends of a quantity's interval, and how they are shown: "[{}, {}]"; those of its range
    over processes, "({} – {})", where it has no interval; None if it has neither."""
    stem, _, last = name.rpartition("_")
    for candidate in [f"{name}_low", f"{stem}_low_{last}"] + [f"{stem}_low"] * (last in BRIEF):
        if candidate in present:
            return candidate, candidate.replace("_low", "_high"), "[{}, {}]"
    return (f"{name}_min", f"{name}_max", "({} – {})") if f"{name}_min" in present else None


def cell(row: Mapping, column: Column) -> str:
    """Return a value as text, with its interval or range below where it has one; empty where it is missing."""
    if not _present(row[column.name]):
        return ""
    show, ends = FORMATS[column.show], ends_of(column.name, row.keys())
    text = show(row[column.name])
    if not ends or pd.isna(row[ends[0]]) or row[ends[0]] == row[ends[1]]:
        return text
    return f"{text}<br>{ends[2].format(show(row[ends[0]]), show(row[ends[1]]))}"


def _present(values: Any) -> Any:
    """Return whether a value, or each of a column, is there; a text may be empty."""
    return pd.notna(values) & (values != "")


def percent(share: float) -> str:
    """Return a share as a percentage."""
    return f"{number(100 * share)} %"


def times(row: Mapping, name: str) -> str:
    """Return a ratio of speeds with its interval: "1.79 × [1.74, 1.85]"."""
    text = f"{number(row[name])} ×"
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return text if pd.isna(low) else f"{text} [{number(low)}, {number(high)}]"


def span(values: pd.Series, unit: str = "") -> str:
    """Return the least and the largest of some numbers, once if they read alike: "0.77 to 0.89 ×"."""
    ends = dict.fromkeys([number(values.min()), number(values.max())]) if len(values) else []
    return f"{' to '.join(ends)}{unit}" if ends else NONE


def loss(row: Mapping) -> str:
    """Return the change of perplexity against the reference, with its interval: "+1.9 % [+1.6 %, +2.1 %]"."""
    text, low, high = change(row["ppl_ratio"]), row["ppl_ratio_low"], row["ppl_ratio_high"]
    return text if pd.isna(low) else f"{text} [{change(low)}, {change(high)}]"


def configuration(row: Mapping) -> str:
    """Return the name of a configuration: "`int8-fused` (sdpa-flash, graph)"."""
    return f"`{row['precision']}` ({row['attention']}, {row['runtime']})"


def coded(name: str) -> str:
    """Return the name of a configuration in a table as `configuration` writes it."""
    precision, _, rest = name.partition(" ")
    return f"`{precision}` {rest}"


def failure(row: Mapping) -> str:
    """Return why a row has no number, in a user's words."""
    words = FAILED.get(row["status"], row["status"])
    if pd.isna(row["reason"]) or not row["reason"] or row["status"] in PLAIN:
        return words
    return f"{words}: {plain(textwrap.shorten(row['reason'], REASON_CHARACTERS, placeholder=' …'))}"


def plain(text: Any) -> str:
    """Return text from outside (a reason, a generated text) so that it cannot become markup."""
    text = str(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for mark in "\\`*_[]$~":
        text = text.replace(mark, f"\\{mark}")
    return text


def details(summary: str, body: str | None, open: bool = False) -> str | None:
    """Return a folded block, None without a body; GitHub reads Markdown inside only after an empty line."""
    if body is None:
        return None
    parts = summary.split("`")  # Markdown is not read inside a summary
    title = "".join(f"<code>{part}</code>" if place % 2 else part for place, part in enumerate(parts))
    return f"<details{' open' * open}>\n<summary>{title}</summary>\n\n{body}\n\n</details>"


def named(names: Iterable[str], last: str = "and") -> str:
    """Return names as a list in a sentence: "`a`, `b` and `c`"."""
    return listed((f"`{name}`" for name in names), last)


FORMATS: dict[str, Callable[[Any], str]] = {
    "text": plain,
    "code": "`{}`".format,
    "markdown": str,
    "count": "{:,.0f}".format,
    "number": number,
    "nats": number,
    "percent": percent,
    "points": lambda share: FORMATS["signed"](100 * share),
    "ratio": lambda x: f"{x:.4f}" if 0.5 < x < 2 else number(x),
    "perplexity": lambda x: f"{x:.3f}" if x < 10 else f"{x:,.2f}",  # the digits in which precisions differ
    "signed": lambda x: f"+{number(x)}" if x > 0 else number(x),
    "p": "{:.2g}".format,
}
