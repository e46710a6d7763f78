"""LLM.int8() over its outlier threshold: decode time against the loss of perplexity."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from llmstudy.report.figures import style
from llmstudy.report.study import Study

HEADLINE = (
    "threshold 0: no decomposition, inf: outliers looked for and none found   "
    "bars: 95 % interval of the loss, range of the time"
)


def rows(study: Study) -> pd.DataFrame:
    """A row per model and threshold with quality and decode time."""
    table = study.table("sweep")
    if table.empty:
        return table
    return table[(table["status"] == "ok") & table["tpot_ms"].notna() & table["ppl_ratio"].notna()]


def draw(rows: pd.DataFrame) -> Figure:
    """One panel per model, those thresholds that look for outliers joined in rising order."""
    figure, axes = style.grid(list(dict.fromkeys(rows["model"])), 3.2)
    for model, axis in axes.items():
        own = rows[rows["model"] == model].sort_values("threshold")
        hue = style.colour(own["precision"].iloc[0])
        loss = 100 * (own["ppl_ratio"] - 1)
        across = [own["tpot_ms"] - own["tpot_low_ms"], own["tpot_high_ms"] - own["tpot_ms"]]
        upwards = [100 * (own["ppl_ratio"] - own["ppl_ratio_low"]), 100 * (own["ppl_ratio_high"] - own["ppl_ratio"])]
        axis.errorbar(own["tpot_ms"], loss, xerr=across, yerr=upwards, color=hue, fmt="o", elinewidth=0.8)
        searched = own["threshold"] > 0
        axis.plot(own.loc[searched, "tpot_ms"], loss[searched], color=hue)
        axis.set_title(f"{model}, {own['blocks'].iloc[0]}")
        axis.set_xlabel("time per output token, ms")
        axis.set_ylabel("perplexity lost, %")
        axis.grid(axis="both")
        for threshold, at in zip(own["threshold"], zip(own["tpot_ms"], loss)):
            axis.annotate(f"{threshold:g}", at, (5, 5), textcoords="offset points", fontsize=8)
    style.headline(figure, HEADLINE)
    return figure
