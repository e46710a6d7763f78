"""TTFT and TPOT of every precision, a row of panels per model, a column per attention and runtime."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from llmstudy.report import selection
from llmstudy.report.figures import style
from llmstudy.report.study import Study

MARKERS = {"tpot_ms": "o", "ttft_ms": ">"}
HEADLINE = "● TPOT   ▷ TTFT   bars: 95 % interval over processes, where the study repeats any"


def rows(study: Study) -> pd.DataFrame:
    """A row per configuration at its model's workload, with intervals; failed ones keep their status."""
    measured = selection.over_repeats(study, selection.at_headline(study, "processes"))
    if measured.empty:
        return measured
    keys = ["model", "weights", "precision", "attention", "runtime", "status"]
    return study.table("summary")[keys].merge(measured.drop(columns="weights"), how="left", on=selection.CONFIGURATION)


def draw(rows: pd.DataFrame) -> Figure:
    """All panels of a model share the axis."""
    models = list(dict.fromkeys(rows["model"]))
    kinds = list(rows[["runtime", "attention"]].drop_duplicates().itertuples(index=False, name=None))
    names = {model: style.in_order(rows.loc[rows["model"] == model, "precision"]) for model in models}
    heights = [0.9 + 0.22 * len(names[model]) for model in models]
    width = max(style.WIDTH, 1.6 + 2.2 * len(kinds))
    figure, axes = style.panels(len(models), len(kinds), heights, width, sharex="row", sharey="row")
    for line, model in zip(axes, models):
        for axis, (runtime, attention) in zip(line, kinds):
            own = rows[(rows["model"] == model) & (rows["runtime"] == runtime) & (rows["attention"] == attention)]
            if own.empty:  # a model that the study runs in fewer ways than others
                axis.remove()
                continue
            _panel(axis, own, names[model])
            axis.set_title(f"{attention}, {runtime}")
            axis.set_xlabel("ms")
        style.plain_log(line[0])
        synthetic = (rows.loc[rows["model"] == model, "weights"] == "synthetic").any()
        line[0].set_ylabel(style.title(model, synthetic).replace(" (", "\n("))
    style.headline(figure, HEADLINE)
    return figure


def _panel(axis, rows: pd.DataFrame, names: list[str]) -> None:
    style.name_rows(axis, names)
    for place, precision in enumerate(names):
        found = rows[rows["precision"] == precision]
        if found.empty or found["status"].iloc[0] != "ok":
            style.note(axis, place, "not in the study" if found.empty else found["status"].iloc[0])
            continue
        row, hue = found.iloc[0], style.colour(precision)
        for quantity, marker in MARKERS.items():
            fill = hue if quantity == "tpot_ms" else "none"
            low, high = row[f"{quantity}_low"], row[f"{quantity}_high"]
            style.interval(axis, row[quantity], low, high, place, hue, marker=marker, markerfacecolor=fill)
