"""Diagnostics: what explains speed and loss, in three figures."""

from __future__ import annotations

from functools import partial

import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure

from llmstudy.report import style
from llmstudy.report.study import Claim, Study
from llmstudy.tables.columns import number
from llmstudy.tables.diagnostics import ALL

PAPER = 6.0  # LLM.int8()'s own threshold (Dettmers et al. 2022, section 3.2)
TICKS = [0, 0.1, 1, 10, 100]
PANELS = (
    ("prefill", "time_ms", "prefill time, ms"),
    ("prefill", "extra_mib", "prefill workspace, MiB"),
    ("decode", "time_ms", "decode step, ms"),
)


def kernels(study: Study) -> Claim | None:
    """Claim what a fused attention kernel saves of time and memory at the longest context that several ran."""
    rows = attention_rows(study)
    rows = rows[rows["phase"] == "prefill"]
    rows = rows[rows.groupby(["model", "context"])["attention"].transform("nunique") > 1]
    if rows.empty:
        return None
    row = rows.loc[rows["context"].astype(float).idxmax()]
    own = rows[(rows["model"] == row["model"]) & (rows["context"] == row["context"])].sort_values("time_ms")
    best, worst = own.iloc[0], own.iloc[-1]
    factor = number(worst["time_ms"] / best["time_ms"])
    text = (
        f"One layer's attention over {best['context']:,.0f} tokens of {study.label(best['model'])} takes "
        f"`{best['attention']}` {number(best['time_ms'])} ms and `{worst['attention']}` {number(worst['time_ms'])} ms."
    )
    if worst["extra_mib"] > 0 and best["extra_mib"] > 0:
        text += (
            f" Beside its inputs it takes {number(best['extra_mib'])} MiB instead of {number(worst['extra_mib'])}: the "
            "scores are never written."
        )
    heading = f"An attention kernel is worth up to {factor} × at {best['context']:,.0f} tokens"
    return Claim(heading, f"{text} The model's other work is not in it ({study.file('attention')}).", "attention")


def outliers_rows(study: Study) -> pd.DataFrame:
    """Return a row per model, layer and linear layer, at the threshold of the paper or the one nearest to it."""
    rows = study.measured("outliers", "threshold")
    distance = (rows["threshold"] - PAPER).abs()
    return rows[distance == distance.groupby(rows["model"]).transform("min")]


def draw_outliers(rows: pd.DataFrame) -> Figure:
    """The share of input columns with an outlier: a heat map for each model, linear layers in forward order."""
    return style.stacked(rows, lambda own: 2.4, _outliers, "share of input columns with an outlier")


def _outliers(axis: Axes, rows: pd.DataFrame) -> None:
    shares = rows.pivot_table(index="linear", columns="layer", values="column_share", sort=False) * 100
    seaborn.heatmap(
        shares[sorted(shares)],
        ax=axis,
        cmap="viridis",
        # From none to all: most linear layers have next to no such column, and a linear scale would show no difference.
        norm=SymLogNorm(0.1, vmin=0, vmax=100),
        cbar_kws={"label": "% of input columns", "fraction": 0.04, "pad": 0.02, "ticks": TICKS, "format": "%g"},
    )
    threshold, tokens = rows.iloc[0][["threshold", "tokens"]]
    axis.set_title(style.title(rows, f"an activation over {threshold:g} anywhere in {tokens:,.0f} tokens"))
    axis.set(xlabel="layer", ylabel="")
    axis.tick_params(length=0)
    axis.tick_params(axis="y", rotation=0)


def sensitivity_rows(study: Study) -> pd.DataFrame:
    """Return a row per rounded part of a model."""
    return study.measured("sensitivity", "kl_nats")


def draw_sensitivity(rows: pd.DataFrame) -> Figure:
    """Draw what rounding one part to int8 costs: per model a panel along the layers, one over kinds of linear layer."""
    text = "KL divergence from the unrounded model when this part alone is rounded to int8; bars: 95 % over documents"
    return style.stacked(rows, lambda own: 2.6, _sensitivity, text, columns=2)


def _sensitivity(left: Axes, right: Axes, rows: pd.DataFrame) -> None:
    rows = rows.astype({"layer": str, "linear": str})
    layers = rows[(rows["linear"] == ALL) & (rows["layer"] != ALL)].astype({"layer": float}).sort_values("layer")
    error = style.beyond(layers, "kl_nats", "kl_low_nats", "kl_high_nats")
    left.errorbar(layers["layer"], layers["kl_nats"], yerr=error, fmt="o", color=style.INK, markersize=4)
    left.set_ylim(bottom=0)
    left.grid(axis="y")
    left.set(xlabel="layer, all its linear layers", ylabel="KL divergence, nats per token")
    left.set_title(style.title(rows, f"{rows['tokens'].iloc[0]:,.0f} tokens"))
    for row in layers.nlargest(2, "kl_nats").itertuples():
        style.beside(left, row.layer, row.kl_nats, f"layer {row.layer:.0f}", xytext=(6, 4))
    kinds = rows[(rows["layer"] == ALL) & (rows["linear"] != ALL)].sort_values("kl_nats", ascending=False)
    style.name_rows(right, list(kinds["linear"]), colored=False)
    for place, row in enumerate(kinds.itertuples()):
        style.interval(right, row.kl_nats, row.kl_low_nats, row.kl_high_nats, place, style.INK)
        style.beside(right, max(row.kl_nats, row.kl_high_nats), place, number(row.kl_nats))
    right.set_xlim(0, right.get_xlim()[1] * 1.15)
    right.locator_params(axis="x", nbins=5)
    right.set_xlabel("KL divergence, nats per token; this linear layer everywhere")


def attention_rows(study: Study) -> pd.DataFrame:
    """Return a row per model, kernel, context and phase."""
    return study.measured("attention", "time_ms")


def draw_attention(rows: pd.DataFrame) -> Figure:
    """Attention kernels alone against the context: a line of panels for each model; memory where the device counts."""
    panels = [panel for panel in PANELS if (rows.loc[rows["phase"] == panel[0], panel[1]] > 0).any()]
    text = f"{style.title(rows)}: one layer's attention; bars: range over repeats; at the right end the value there"
    return style.stacked(rows, lambda own: 2.9, partial(_attention, panels=panels), text, columns=len(panels))


def _attention(*line, panels: list[tuple[str, str, str]]) -> None:
    *axes, rows = line
    for axis, (phase, quantity, label) in zip(axes, panels):
        shown = rows[(rows["phase"] == phase) & (rows[quantity] > 0)].sort_values("context")
        labels = []
        for kernel, own in shown.groupby("attention", sort=False):
            hue = style.color(kernel)
            error = style.beyond(own, "time_ms", "time_low_ms", "time_high_ms") if quantity == "time_ms" else None
            axis.errorbar(own["context"], own[quantity], yerr=error, color=hue, marker="o", markersize=4)
            last = own.iloc[-1]
            labels.append((last["context"], last[quantity], f"{kernel}  {number(last[quantity])}", hue))
        axis.set_xscale("log", base=2)
        contexts = sorted(set(shown["context"].astype(int)))
        axis.set_xticks(contexts, [f"{context // 1024}k" if context >= 1024 else str(context) for context in contexts])
        axis.minorticks_off()
        style.plain_log(axis, "y")
        axis.grid(axis="both")
        axis.set_xlabel("context, tokens")
        axis.set_title(label)
        style.label_right(axis, labels)
