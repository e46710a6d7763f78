"""KL divergence of every precision between two rulers: the reference run again, and a deliberately bad precision."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from llmstudy.report import selection
from llmstudy.report.figures import style
from llmstudy.report.study import Study
from llmstudy.tables.phrases import number

HEADLINE = "● mean with its 95 % interval   │ 99th percentile over tokens   shaded: below the reference run again"
# Below this a mean is rounding of the stored reference; a logarithmic axis needs an end.
SMALLEST_NATS = 1e-9


def rows(study: Study) -> pd.DataFrame:
    """One row per model and precision with a divergence, and ``is_reference``."""
    at_protocol = selection.at_protocol(study)
    if at_protocol.empty:
        return at_protocol
    kept = at_protocol[(at_protocol["status"] == "ok") & at_protocol["kl_nats"].notna()]
    references = kept["model"].map({model: study.headline(model)["reference"] for model in study.models})
    return kept.assign(is_reference=kept["precision"] == references)


def draw(rows: pd.DataFrame) -> Figure:
    """One panel per model, least divergence first."""
    models = list(dict.fromkeys(rows["model"]))
    heights = [0.75 + 0.26 * (rows["model"] == model).sum() for model in models]
    figure, axes = style.panels(len(models), 1, heights)
    for axis, model in zip(axes.flat, models):
        _panel(axis, rows[rows["model"] == model].sort_values("kl_nats"))
        axis.set_title(model)
    axes[-1, 0].set_xlabel("KL divergence from the reference, nats per token")
    style.headline(figure, HEADLINE)
    return figure


def _panel(axis, rows: pd.DataFrame) -> None:
    again = " again: noise floor"
    style.name_rows(axis, [row.precision + again * row.is_reference for row in rows.itertuples()])
    for place, row in enumerate(rows.itertuples()):
        hue = style.colour(row.precision)
        mean, low, high, tail = (
            max(x, SMALLEST_NATS) for x in (row.kl_nats, row.kl_low_nats, row.kl_high_nats, row.kl_p99_nats)
        )
        axis.plot([mean, tail], [place, place], color=hue, linewidth=0.6)
        style.interval(axis, mean, low, high, place, hue)
        style.interval(axis, tail, tail, tail, place, hue, marker="|", markersize=9)
        axis.annotate(number(row.kl_nats), (tail, place), (8, 0), textcoords="offset points", va="center", fontsize=8)
    axis.set_xscale("log")
    left, right = axis.get_xlim()
    axis.set_xlim(left, right * (right / left) ** 0.08)
    floor = rows.loc[rows["is_reference"], "kl_high_nats"].max()
    if floor > left:
        axis.axvspan(left, floor, color=style.INK, alpha=0.18, linewidth=0)
