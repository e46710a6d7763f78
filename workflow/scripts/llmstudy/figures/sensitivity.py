"""What rounding one part of the model to int8 costs: layer by layer, and kind of linear by kind."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from llmstudy.figures import style
from llmstudy.studies import Study
from llmstudy.tables.sensitivity import ALL

HEADLINE = "change of NLL when this part alone is rounded to int8, with its 95 % interval over documents"
HUE = style.PRECISIONS["llm-int8"]


def rows(study: Study) -> pd.DataFrame:
    """A row per part of a model."""
    table = study.table("sensitivity")
    if table.empty:
        return table
    return table[(table["status"] == "ok") & table["delta_nll"].notna()]


def draw(rows: pd.DataFrame) -> Figure:
    """Per model one panel along the layers and one over the kinds of linear."""
    models = list(dict.fromkeys(rows["model"]))
    figure, axes = style.panels(len(models), 2, 2.6)
    for (left, right), model in zip(axes, models):
        own = rows[rows["model"] == model].astype({"layer": str, "linear": str})
        _layers(left, own[(own["linear"] == ALL) & (own["layer"] != ALL)])
        _linears(right, own[(own["layer"] == ALL) & (own["linear"] != ALL)])
        left.set_title(model)
    style.headline(figure, HEADLINE)
    return figure


def _layers(axis, rows: pd.DataFrame) -> None:
    rows = rows.astype({"layer": float}).sort_values("layer")
    error = [rows["delta_nll"] - rows["delta_nll_low"], rows["delta_nll_high"] - rows["delta_nll"]]
    axis.errorbar(rows["layer"], rows["delta_nll"], yerr=error, fmt="o", color=HUE, elinewidth=1.5, markersize=4)
    axis.axhline(0, color=style.INK, linewidth=0.8)
    axis.grid(axis="y")
    axis.set(xlabel="layer, all its linears", ylabel="Δ NLL, nats per token")


def _linears(axis, rows: pd.DataFrame) -> None:
    rows = rows.sort_values("delta_nll", ascending=False)
    for place, row in enumerate(rows.itertuples()):
        style.interval(axis, row.delta_nll, row.delta_nll_low, row.delta_nll_high, place, HUE)
    axis.set_yticks(range(len(rows)), rows["linear"])
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.axvline(0, color=style.INK, linewidth=0.8)
    axis.set_xlabel("Δ NLL, nats per token; this linear in all layers")
