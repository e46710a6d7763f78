"""Perplexity with its interval, and its ratio to the reference's, paired token by token."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from llmstudy.report import selection
from llmstudy.report.figures import style
from llmstudy.report.study import Study

HEADLINE = (
    "95 % intervals by bootstrap over documents; the ratio is paired token by token, so its interval is far narrower"
)


def rows(study: Study) -> pd.DataFrame:
    """One row per model and precision, at the model's first corpus and protocol."""
    return selection.at_protocol(study)


def draw(rows: pd.DataFrame) -> Figure:
    """A row of panels per model: perplexity, and the ratio."""
    models = list(dict.fromkeys(rows["model"]))
    heights = [0.85 + 0.24 * (rows["model"] == model).sum() for model in models]
    figure, axes = style.panels(len(models), 2, heights, sharey="row")
    for line, model in zip(axes, models):
        own = style.sort(rows[rows["model"] == model])
        names = list(own["precision"])
        for axis, quantity in zip(line, ("ppl", "ppl_ratio")):
            style.name_rows(axis, names)
            _panel(axis, own, quantity)
        line[0].set_title(f"{model}, {own['corpus'].iloc[0]}, {own['protocol'].iloc[0]}")
        line[0].set_xlabel("perplexity per token")
        line[1].axvline(1, color=style.INK, linewidth=1)
        line[1].set_xlabel("perplexity ÷ reference's")
    style.headline(figure, HEADLINE)
    return figure


def _panel(axis, rows: pd.DataFrame, quantity: str) -> None:
    for place, row in enumerate(rows.to_dict("records")):
        if row["status"] != "ok":
            style.note(axis, place, row["status"])
        elif pd.notna(row[quantity]):
            low, high = row[f"{quantity}_low"], row[f"{quantity}_high"]
            style.interval(axis, row[quantity], low, high, place, style.colour(row["precision"]))
            if quantity == "ppl_ratio":
                where = (max(row[quantity], high), place)
                axis.annotate(
                    f"{row[quantity]:.4f}", where, (7, 0), textcoords="offset points", va="center", fontsize=8
                )
    axis.margins(x=0.12)
