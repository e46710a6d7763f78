"""Attention kernels alone: time and memory of prefill, and time of a decode step, against the context."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from llmstudy.report.figures import style
from llmstudy.report.study import Study

PANELS = (
    ("prefill", "time_ms", "prefill time, ms"),
    ("prefill", "extra_mib", "prefill workspace, MiB"),
    ("decode", "time_ms", "decode step, ms"),
)
HEADLINE = "bars: range over repeats; both axes logarithmic"


def rows(study: Study) -> pd.DataFrame:
    """A row per model, kernel, context and phase."""
    table = study.table("attention")
    if table.empty:
        return table
    return table[(table["status"] == "ok") & table["time_ms"].notna()]


def draw(rows: pd.DataFrame) -> Figure:
    """A row of panels per model; memory only where the device counts it."""
    models = list(dict.fromkeys(rows["model"]))
    kernels = list(dict.fromkeys(rows["attention"]))
    shown = [panel for panel in PANELS if (rows.loc[rows["phase"] == panel[0], panel[1]] > 0).any()]
    figure, axes = style.panels(len(models), len(shown), 2.9)
    for line, model in zip(axes, models):
        for axis, (phase, quantity, label) in zip(line, shown):
            own = rows[(rows["model"] == model) & (rows["phase"] == phase) & (rows[quantity] > 0)]
            _panel(axis, own, quantity, kernels)
            axis.set_ylabel(label)
        line[0].set_title(style.title(model, rows.loc[rows["model"] == model, "weights"].iloc[0] == "synthetic"))
    style.headline(figure, HEADLINE)
    return figure


def _panel(axis, rows: pd.DataFrame, quantity: str, kernels: list[str]) -> None:
    ends = []
    for kernel in kernels:
        own = rows[rows["attention"] == kernel].sort_values("context")
        if own.empty:
            continue
        hue = style.SERIES[kernels.index(kernel) % len(style.SERIES)]
        error = None
        if quantity == "time_ms":
            error = [own["time_ms"] - own["time_low_ms"], own["time_high_ms"] - own["time_ms"]]
        axis.errorbar(own["context"], own[quantity], yerr=error, color=hue, marker="o", markersize=4)
        ends.append((own["context"].iloc[-1], own[quantity].iloc[-1], kernel, hue))
    axis.set_xscale("log", base=2)
    contexts = sorted(set(rows["context"].astype(int)))
    axis.set_xticks(contexts, [f"{context // 1024}k" if context >= 1024 else str(context) for context in contexts])
    axis.minorticks_off()
    style.plain_log(axis, "y")
    axis.grid(axis="both")
    axis.set_xlabel("context, tokens")
    if ends:
        style.label_right(axis, *map(list, zip(*ends)))
