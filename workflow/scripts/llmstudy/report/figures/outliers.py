"""Outlier ledger of LLM.int8(): the share of input columns that some token drives over the threshold."""

from __future__ import annotations

import pandas as pd
import seaborn
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure

from llmstudy.report.figures import style
from llmstudy.report.study import Study

# LLM.int8()'s own threshold (Dettmers et al. 2022, section 3.2).
PAPER = 6.0
TICKS = [0, 0.1, 1, 10, 100]


def rows(study: Study) -> pd.DataFrame:
    """A row per model, layer and linear, at the threshold of the paper or the one nearest to it."""
    table = study.table("outliers")
    if table.empty:
        return table
    ok = table[(table["status"] == "ok") & table["threshold"].notna()]
    distance = (ok["threshold"] - PAPER).abs()
    return ok[distance == distance.groupby(ok["model"]).transform("min")]


def draw(rows: pd.DataFrame) -> Figure:
    """One heat map per model: layers across, linears down in the order of the forward pass."""
    models = list(dict.fromkeys(rows["model"]))
    figure, axes = style.panels(len(models), 1, 2.4)
    for axis, model in zip(axes.flat, models):
        own = rows[rows["model"] == model]
        shares = own.pivot_table(index="linear", columns="layer", values="column_share", sort=False) * 100
        seaborn.heatmap(
            shares[sorted(shares)],
            ax=axis,
            cmap="viridis",
            # From none to all: most linears have next to no such column, and a linear scale would show no difference.
            norm=SymLogNorm(0.1, vmin=0, vmax=100),
            linewidths=0,
            rasterized=False,
            cbar_kws={"label": "% of input columns", "fraction": 0.04, "pad": 0.02, "ticks": TICKS, "format": "%g"},
        )
        first = own.iloc[0]
        axis.set_title(
            f"{model}: columns with an activation over {first['threshold']:g} anywhere in {first['tokens']:,.0f} tokens"
        )
        axis.set(xlabel="layer", ylabel="")
        axis.tick_params(length=0)
        axis.tick_params(axis="y", rotation=0)
    return figure
