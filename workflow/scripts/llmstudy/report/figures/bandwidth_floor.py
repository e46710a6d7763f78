"""How far TPOT lies above its floor: the bytes that a step must read ÷ the copy bandwidth measured in the same job."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from llmstudy.report import selection
from llmstudy.report.figures import style
from llmstudy.report.study import Study
from llmstudy.tables.phrases import number

HEADLINE = "│ floor: bytes of weights and KV cache that a step must read ÷ measured copy bandwidth   ○ eager   □ graph"


def rows(study: Study) -> pd.DataFrame:
    """Per model, precision and runtime the fastest attention at the model's workload, with ``floor_ms``."""
    measured = selection.over_repeats(study, selection.at_headline(study, "processes"))
    if measured.empty:
        return measured
    measured["floor_ms"] = measured["step_bytes"] / measured["bandwidth_gb_s"] / 1e6
    return selection.fastest(measured.assign(status="ok"), ["model", "precision", "runtime"]).dropna(subset="floor_ms")


def draw(rows: pd.DataFrame) -> Figure:
    """One panel per model, one line per precision and runtime."""
    models = list(dict.fromkeys(rows["model"]))
    counts = [len(rows[rows["model"] == model]) for model in models]
    figure, axes = style.panels(len(models), 1, [0.75 + 0.21 * count for count in counts])
    for axis, model in zip(axes.flat, models):
        own = rows[rows["model"] == model]
        _panel(axis, style.sort(own, "runtime"))
        axis.set_title(style.title(model, own["weights"].iloc[0] == "synthetic"))
    axes[-1, 0].set_xlabel("time per output token, ms")
    style.headline(figure, HEADLINE)
    return figure


def _panel(axis, rows: pd.DataFrame) -> None:
    style.name_rows(axis, [f"{row.precision} {row.runtime}" for row in rows.itertuples()])
    for place, row in enumerate(rows.itertuples()):
        hue = style.colour(row.precision)
        axis.plot([row.floor_ms] * 2, [place - 0.32, place + 0.32], color=hue, linewidth=2)
        axis.plot([row.floor_ms, row.tpot_ms], [place, place], color=hue, linewidth=0.7)
        marker = style.RUNTIMES.get(row.runtime, "D")
        style.interval(axis, row.tpot_ms, row.tpot_ms_low, row.tpot_ms_high, place, hue, marker=marker)
        axis.annotate(
            f"{number(row.tpot_ms)} ms, {number(row.tpot_ms / row.floor_ms)} × floor",
            (np.fmax(row.tpot_ms, row.tpot_ms_high), place),
            (9, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    style.plain_log(axis)
    low, high = axis.get_xlim()
    axis.set_xlim(low, high * (high / low) ** 0.22)
