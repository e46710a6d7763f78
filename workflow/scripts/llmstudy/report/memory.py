"""Tables of memory."""

from __future__ import annotations

import pandas as pd

from llmstudy.report import markdown, selection
from llmstudy.report.figures.style import sort
from llmstudy.report.study import Study
from llmstudy.tables.columns import CONFIGURATION

COLUMNS = {
    "weights_gib": "weights",
    "kv_cache_gib": "KV cache",
    "workspace_gib": "workspace",
    "peak_load_gib": "peak, load",
    "peak_prefill_gib": "peak, prefill",
    "peak_decode_gib": "peak, decode",
    "peak_reserved_gib": "reserved",
    "peak_rss_gib": "host RSS",
}


def table(study: Study, model: str) -> str | None:
    """A model at its workload, the fastest configuration of each precision; None if memory was not measured."""
    memory = selection.at_headline(study, "memory")
    if memory.empty:
        return None
    chosen = selection.fastest(study.of_model("summary", model), ["precision"])[CONFIGURATION]
    return _table(sort(chosen.merge(memory, on=CONFIGURATION)), ["precision", "attention", "runtime"])


def workloads(study: Study, model: str) -> str | None:
    """The same configurations at the other workloads; None if there are none."""
    memory = study.of_model("memory", model)
    if memory.empty:
        return None
    chosen = selection.fastest(study.of_model("summary", model), ["precision"])[CONFIGURATION]
    others = chosen.merge(memory[~selection.of_workload(memory, study.headline(model))], on=CONFIGURATION)
    return _table(sort(others, *selection.WORKLOAD), ["precision", "attention", "runtime", *selection.WORKLOAD])


def _table(rows: pd.DataFrame, names: list[str]) -> str | None:
    if rows.empty:
        return None
    shown = [column for column in COLUMNS if rows[column].notna().any()] or list(COLUMNS)[:1]
    header = [*(name.replace("_", " ") for name in names), *(f"{COLUMNS[column]}, GiB" for column in shown)]
    lines = []
    for _, row in rows.iterrows():
        told = [f"`{row['precision']}`", *(str(row[name]) for name in names[1:])]
        if row["status"] != "ok":
            lines.append([*told, markdown.failure(row), *[f"`{row['status']}`"] * (len(shown) - 1)])
        else:
            lines.append([*told, *(markdown.value(row[column]) for column in shown)])
    return markdown.table(header, lines, "l" * 3 + "r" * (len(header) - 3))
