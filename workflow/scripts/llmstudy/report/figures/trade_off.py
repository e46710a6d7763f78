"""Speed, memory and quality in one picture: TPOT across, memory upwards, the change of perplexity in words."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from llmstudy.report import selection
from llmstudy.report.figures import style
from llmstudy.report.study import Study
from llmstudy.tables.phrases import percent

HEADLINE = (
    "○ runtime eager   □ runtime graph   filled: on the Pareto front "
    "(no other is at least as good in speed, memory and perplexity)"
)


def rows(study: Study) -> pd.DataFrame:
    """Per model, precision and runtime the fastest attention, where speed and memory were measured."""
    summary = study.table("summary")
    ok = summary[(summary["status"] == "ok") & summary["tpot_ms"].notna() & summary["memory_gib"].notna()]
    return selection.fastest(ok, ["model", "precision", "runtime"])


def draw(rows: pd.DataFrame) -> Figure:
    """One panel per model."""
    return style.by_model(rows, 3.0, _panel, HEADLINE)


def _panel(axis, rows: pd.DataFrame) -> None:
    labels = []
    for precision in style.in_order(rows["precision"]):
        own = rows[rows["precision"] == precision].sort_values("tpot_ms")
        hue = style.colour(precision)
        axis.plot(own["tpot_ms"], own["memory_gib"], color=hue, linewidth=0.8)
        for row in own.itertuples():
            style.interval(
                axis,
                row.tpot_ms,
                row.tpot_low_ms,
                row.tpot_high_ms,
                row.memory_gib,
                hue,
                marker=style.RUNTIMES.get(row.runtime, "D"),
                markerfacecolor=hue if row.pareto else "none",
                markersize=7,
            )
        last = own.iloc[-1]
        labels.append((last["tpot_ms"], last["memory_gib"], precision + _loss(last), hue))
    axis.set_ylim(0, rows["memory_gib"].max() * 1.08)
    style.plain_log(axis)
    bars = " (95 % interval)" if rows["tpot_low_ms"].notna().any() else ""
    axis.set_xlabel(f"time per output token, ms{bars}")
    axis.set_ylabel("peak memory, GiB")
    axis.set_title(style.title(rows["model"].iloc[0], rows["weights"].iloc[0] == "synthetic"))
    style.label_right(axis, *map(list, zip(*labels)))


def _loss(row: pd.Series) -> str:
    if row["verdict"] == "reference" or pd.isna(row["ppl_ratio"]):
        return ""
    return f"  PPL {percent(row['ppl_ratio'])}"
