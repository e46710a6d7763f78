"""Markdown that GitHub renders: tables made of data frames and of the declarations of their columns, and cells."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import pandas as pd

from llmstudy.tables import columns_of, every
from llmstudy.tables.columns import Column, number

NOT_APPLICABLE = "n/a"
REASON_CHARACTERS = 90
LEFT = ("text", "code", "markdown")  # aligned left; numbers stand right
BRIEF = ("agreement", "mean")  # left out in the names of an interval's ends: top1_low of top1_agreement


def table(rows: pd.DataFrame, names: Sequence[str | Column], values: Sequence[str | Column]) -> str | None:
    """Return a Markdown table; None without rows.

    Titles, alignment and format of columns are those of their declaration. The ends of an interval share the cell of
    their quantity. A column of ``values`` without any value is left out. Where a row failed, the first of ``values``
    that is missing says how and why, the others how.

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
        failed = row.get("status", "ok") != "ok"
        gaps = iter([failure(row)] if failed else [])
        rest = f"`{row['status']}`" if failed else NOT_APPLICABLE
        lines.append([cell(row, column) or NOT_APPLICABLE for column in names])
        lines[-1] += [cell(row, column) or next(gaps, rest) for column in values]
    columns = [*names, *values]
    return grid([column.title for column in columns], lines, "".join("rl"[column.show in LEFT] for column in columns))


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


def ends_of(name: str, present: Iterable[str]) -> tuple[str, str] | None:
    """Return the columns with the ends of a quantity's interval, of those that are present; None if it has none."""
    stem, _, last = name.rpartition("_")
    candidates = [f"{name}_low", f"{stem}_low_{last}"] + [f"{stem}_low"] * (last in BRIEF)
    low = next((column for column in candidates if column in present), None)
    return low and (low, low.replace("_low", "_high"))


def cell(row: Mapping, column: Column) -> str:
    """Return a value as text, with its interval below where it has one; empty where it is missing."""
    if not _present(row[column.name]):
        return ""
    show, ends = FORMATS[column.show], ends_of(column.name, row.keys())
    text = show(row[column.name])
    if not ends or pd.isna(row[ends[0]]):
        return text
    return f"{text}<br>[{show(row[ends[0]])}, {show(row[ends[1]])}]"


def _present(values: Any) -> Any:
    """Return whether a value, or each of a column, is there; a text may be empty."""
    return pd.notna(values) & (values != "")


def percent(share: float) -> str:
    """Return a share as a percentage."""
    return f"{number(100 * share)} %"


def perplexity(x: float) -> str:
    """Return a perplexity or NLL with the digits in which precisions differ."""
    return f"{x:.3f}" if x < 10 else f"{x:,.2f}"


def signed(x: float) -> str:
    """Return a difference."""
    return f"+{number(x)}" if x > 0 else number(x)


def loss(row: Mapping) -> str:
    """Return the perplexity lost against the reference, in per cent, with its interval where it has one."""
    value, low, high = (100 * (row[name] - 1) for name in ("ppl_ratio", "ppl_ratio_low", "ppl_ratio_high"))
    return f"{number(value)} %" + ("" if pd.isna(low) else f" [{number(low)}, {number(high)}]")


def configuration(row: Mapping) -> str:
    """Return the name of a configuration: "`int8-fused` (sdpa-flash, graph)"."""
    return f"`{row['precision']}` ({row['attention']}, {row['runtime']})"


def failure(row: Mapping) -> str:
    """Return status and reason of a row that failed."""
    reason = "" if pd.isna(row["reason"]) else textwrap.shorten(row["reason"], REASON_CHARACTERS, placeholder=" …")
    return f"`{row['status']}`: {plain(reason)}" if reason else f"`{row['status']}`"


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


FORMATS: dict[str, Callable[[Any], str]] = {
    "text": plain,
    "code": "`{}`".format,
    "markdown": str,
    "count": "{:,.0f}".format,
    "number": number,
    "nats": number,
    "percent": percent,
    "points": lambda share: signed(100 * share),
    "ratio": lambda x: f"{x:.4f}" if 0.5 < x < 2 else number(x),
    "perplexity": perplexity,
    "signed": signed,
    "p": "{:.2g}".format,
}
