"""What rounding one part of the model to int8 costs: layer by layer, and kind of linear by kind."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from llmstudy.report import selection
from llmstudy.report.figures import style
from llmstudy.report.study import Study
from llmstudy.tables.diagnostics import ALL

HEADLINE = (
    "KL divergence from the unrounded model when this part alone is rounded to int8; bars: 95 % over documents\n"
    "shaded: what any change of a model in 16 bit does, since it moves every rounding after it"
)
HUE = style.PRECISIONS["llm-int8"]


def rows(study: Study) -> pd.DataFrame:
    """A row per part of a model."""
    return selection.rounded_parts(study)


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
    error = [rows["kl_nats"] - rows["kl_low_nats"], rows["kl_high_nats"] - rows["kl_nats"]]
    axis.errorbar(rows["layer"], rows["kl_nats"], yerr=error, fmt="o", color=HUE, elinewidth=1.5, markersize=4)
    axis.set_ylim(bottom=0)
    axis.axhspan(0, _floor(rows), color=style.INK, alpha=0.2, linewidth=0)
    axis.grid(axis="y")
    axis.set(xlabel="layer, all its linears", ylabel="KL divergence, nats per token")


def _linears(axis, rows: pd.DataFrame) -> None:
    rows = rows.sort_values("kl_nats", ascending=False)
    for place, row in enumerate(rows.itertuples()):
        style.interval(axis, row.kl_nats, row.kl_low_nats, row.kl_high_nats, place, HUE)
    axis.set_yticks(range(len(rows)), rows["linear"])
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.set_xlim(left=0)
    axis.axvspan(0, _floor(rows), color=style.INK, alpha=0.2, linewidth=0)
    axis.locator_params(axis="x", nbins=5)
    axis.set_xlabel("KL divergence, nats per token; this linear in all layers")


def _floor(rows: pd.DataFrame) -> float:
    return 0.0 if rows.empty else rows["floor_nats"].fillna(0.0).iloc[0]
