"""Markdown that GitHub renders: tables, cells, and numbers with their intervals."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping

import pandas as pd

from llmstudy.report.study import Study
from llmstudy.tables.phrases import number

NOT_APPLICABLE = "n/a"
REASON_CHARACTERS = 90


def table(header: list[str], rows: Iterable[list[str]], align: str | None = None) -> str:
    """A Markdown table; ``align`` has l or r per column, the first left and the others right by default.

    Raises ValueError on an empty cell: what is missing must say why.
    """
    align = align or "l" + "r" * (len(header) - 1)
    lines = [header, [{"l": "---", "r": "---:"}[letter] for letter in align]]
    for row in rows:
        if len(row) != len(header) or not all(cell.strip() for cell in row):
            raise ValueError(f"a table row with a missing cell: {row}")
        lines.append([escape(cell) for cell in row])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def escape(text: str) -> str:
    """Text for a table cell: one line, no column breaks."""
    return " ".join(text.split()).replace("|", "\\|")


def value(x: float, unit: str = "") -> str:
    """A number with its unit; not applicable where there is none."""
    if pd.isna(x):
        return NOT_APPLICABLE
    return f"{number(float(x))}{unit}"


def percent(ratio: float) -> str:
    """A share as a percentage."""
    return NOT_APPLICABLE if pd.isna(ratio) else f"{100 * ratio:.1f} %"


def with_interval(x: float, low: float, high: float, show=number) -> str:
    """A number and its 95 % interval, or the number alone where it has none."""
    if pd.isna(x):
        return NOT_APPLICABLE
    if pd.isna(low) or pd.isna(high):
        return show(float(x))
    return f"{show(float(x))}<br>[{show(float(low))}, {show(float(high))}]"


def perplexity(x: float) -> str:
    """A perplexity or NLL with the digits in which precisions differ."""
    if pd.isna(x):
        return NOT_APPLICABLE
    return f"{x:.3f}" if x < 10 else f"{x:,.2f}"


def ratio(x: float) -> str:
    """A ratio with enough digits to tell it from 1."""
    return f"{x:.4f}" if 0.5 < x < 2 else number(x)


def loss(row: Mapping) -> str:
    """Perplexity lost against the reference, per cent, with its interval where there is one."""
    value, low, high = (100 * (row[column] - 1) for column in ("ppl_ratio", "ppl_ratio_low", "ppl_ratio_high"))
    return f"{number(value)} %" + ("" if pd.isna(low) else f" [{number(low)}, {number(high)}]")


def failure(row: Mapping) -> str:
    """Status and reason of a row that failed."""
    reason = textwrap.shorten(str(row["reason"] or ""), REASON_CHARACTERS, placeholder=" …")
    return f"`{row['status']}`: {plain(reason)}" if reason else f"`{row['status']}`"


def plain(text: str) -> str:
    """Text from outside (a reason, a generated sample) that must not become markup."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for mark in "\\`*_[]$~":
        text = text.replace(mark, f"\\{mark}")
    return text


def details(summary: str, body: str, open: bool = False) -> str:
    """A folded block; GitHub reads Markdown inside only after an empty line."""
    return f"<details{' open' if open else ''}>\n<summary>{html(summary)}</summary>\n\n{body}\n\n</details>"


def html(text: str) -> str:
    """Code spans as HTML, because Markdown is not read inside a summary."""
    parts = text.split("`")
    return "".join(f"<code>{part}</code>" if place % 2 else part for place, part in enumerate(parts))


def file(study: Study, table: str) -> str:
    """Link to the file of a table."""
    return f"[{table}.csv]({study.folder.as_posix()}/{table}.csv)"
