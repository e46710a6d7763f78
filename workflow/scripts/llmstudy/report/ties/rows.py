"""Choosing the rows of the tables that a sentence speaks of, and wording numbers and places.

Nothing here knows a sentence. All functions take ``tables: dict[str, DataFrame]`` with the promised columns and
answer with an empty frame where a table, a column or a row is missing, so that a partial study still renders.
"""

import re
from collections.abc import Iterable, Mapping

import pandas as pd

from llmstudy.stats.processes import process_interval
from llmstudy.tables.columns import IDENTITY, WORKLOAD

Tables = Mapping[str, pd.DataFrame]

PLACE = ["study", "model", "weights", "device"]
UNQUANTISED = [(precision, runtime) for runtime in ("graph", "generate") for precision in ("bf16", "fp16", "fp32")]

_ACCELERATOR = re.compile(r"cuda|nvidia|gpu|instinct", re.IGNORECASE)


def good_rows(tables: Tables, table: str, *columns: str) -> pd.DataFrame:
    """Rows of ``table`` with status ``ok`` and a value in each of ``columns``, plus a boolean ``accelerator``."""
    wanted = [*IDENTITY, *columns]
    frame = tables.get(table)
    if frame is None or not {*wanted, "status"} <= set(frame.columns):
        return pd.DataFrame(columns=[*wanted, "accelerator"])
    kept = frame[frame["status"] == "ok"].dropna(subset=list(columns)).copy()
    kept["accelerator"] = [bool(_ACCELERATOR.search(str(device))) for device in kept["device"]]
    return kept


def over_repeats(tables: Tables, table: str, *columns: str, optional: tuple[str, ...] = ()) -> pd.DataFrame:
    """Geometric mean over the repeats of each identity and workload, as everywhere in the report; ``repeats`` counts
    them; ``optional`` may be NaN."""
    frame = good_rows(tables, table, *WORKLOAD, *columns)
    keys = [*IDENTITY, *WORKLOAD, "accelerator"]
    values = [*columns, *optional]
    if frame.empty:
        return pd.DataFrame(columns=[*keys, *values, "repeats"])
    kept = [*keys, *values, *({"line"} & set(frame.columns))]
    frame = frame.reindex(columns=kept).astype(dict.fromkeys(values, float))
    groups = frame.groupby(keys, dropna=False)
    means = groups[values].agg(lambda column: process_interval(column).value)
    lines = {"line": groups["line"].min()} if "line" in frame else {}
    return means.assign(repeats=groups.size(), **lines).reset_index()


def fastest_attention(frame: pd.DataFrame, column: str) -> pd.DataFrame:
    """One row per place, workload, precision and runtime: the attention kernel with the smallest ``column``."""
    keys = [*PLACE, *WORKLOAD, "precision", "runtime"]
    return frame.sort_values(column, kind="stable").drop_duplicates(keys)


def of_kind(frame: pd.DataFrame, kinds: Iterable[tuple[str, str]]) -> pd.DataFrame:
    """Rows of the first (precision, runtime) in ``kinds`` that has any; an empty frame if none has."""
    for precision, runtime in kinds:
        found = frame[(frame["precision"] == precision) & (frame["runtime"] == runtime)]
        if not found.empty:
            return found
    return frame.iloc[:0]


def paired(frame: pd.DataFrame, on: list[str], lefts: Iterable, rights: Iterable) -> pd.DataFrame:
    """Inner join of the first two kinds that meet in a same ``on``; the right side's columns end in ``_other``."""
    rights = list(rights)
    for left in lefts:
        for right in rights:
            joined = of_kind(frame, [left]).merge(of_kind(frame, [right]), on=on, suffixes=("", "_other"))
            if not joined.empty:
                return joined
    return pd.DataFrame()


def leading(frame: pd.DataFrame, *columns: str) -> pd.Series | None:
    """The row that comes first when accelerators precede CPUs, then by ``columns``; ``-name`` sorts downwards."""
    if frame.empty:
        return None
    names = ["accelerator", *(column.removeprefix("-") for column in columns)]
    rising = [False, *(not column.startswith("-") for column in columns)]
    return frame.sort_values(names, ascending=rising, kind="stable").iloc[0]


def place(row: pd.Series) -> str:
    """Study, model (with its label where the weights are synthetic) and device of a row."""
    label = " with synthetic weights" if row["weights"] == "synthetic" else ""
    return f"study `{row['study']}`, `{row['model']}`{label} on `{row['device']}`"


def link(row: pd.Series, table: str) -> str:
    """Markdown link from REPORT.md to the row in its CSV file; to the file where the row does not know its line."""
    line = row.get("line")
    place = f"?plain=1#L{line:.0f}" if pd.notna(line) else ""
    return f"[{table}.csv](results/{row['study']}/{table}.csv{place})"


def processes(count: float) -> str:
    """How many processes a mean was taken over, in words."""
    return "one process" if count == 1 else f"mean of {int(count)} processes"


def workload(row: pd.Series) -> str:
    """Batch, prompt tokens and new tokens of a row, in words."""
    return f"batch {int(row['batch'])}, {int(row['prompt_tokens'])} + {int(row['new_tokens'])} tokens"


def attention_pair(frame: pd.DataFrame, column: str) -> pd.Series | None:
    """An attention that stores the score matrix joined with the tiled one of smallest ``column``, longest prompt first.

    Only unquantised precisions in the ``eager`` runtime, where every kernel can be chosen.
    """
    frame = of_kind(frame, [kind for kind in UNQUANTISED if kind[1] == "generate"])
    keys = [*PLACE, *WORKLOAD, "precision", "runtime", "accelerator"]
    stored = frame[frame["attention"].isin(["eager", "sdpa-math"])]
    tiled = frame[~frame["attention"].isin(["eager", "sdpa-math"])].sort_values(column).drop_duplicates(keys)
    return leading(stored.merge(tiled, on=keys, suffixes=("", "_other")), "-prompt_tokens", "batch", f"-{column}")
