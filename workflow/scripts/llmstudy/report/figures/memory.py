"""Memory of every precision by what takes it, at the workload of the summary."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from llmstudy.report import selection
from llmstudy.report.figures import style
from llmstudy.report.study import Study
from llmstudy.runner.provenance import device_memory_gib
from llmstudy.tables.memory import peak_gib
from llmstudy.tables.columns import CONFIGURATION
from llmstudy.tables.phrases import number

COMPONENTS = {
    "linears_gib": "linears",
    "embeddings_gib": "embeddings",
    "head_gib": "head",
    "other_gib": "other",
    "kv_cache_gib": "KV cache",
    "workspace_gib": "workspace",
}
# Parts below this share of the peak in every stack (norms) are thinner than a line.
VISIBLE = 0.003
# A device's limit far beyond the bars would squeeze them.
LIMIT_SHOWN_UP_TO = 2.5
WRITTEN = 0.09  # what a number behind a bar takes of a panel's width


def rows(study: Study) -> pd.DataFrame:
    """Per model and precision its fastest configuration, with ``peak_gib`` and ``limit_gib``, the device's memory.

    Configurations that failed stay, so that the figure can say so; a model of which nothing was measured does not.
    """
    chosen = selection.fastest(study.table("summary"), ["model", "precision"])
    memory = selection.at_headline(study, "memory")
    if memory.empty:
        return memory
    limit_gib = min(map(device_memory_gib, study.provenance["environments"]), default=float("inf"))
    memory = memory.assign(peak_gib=peak_gib(memory), limit_gib=limit_gib)
    found = chosen[CONFIGURATION].merge(memory, on=CONFIGURATION)
    measured = found.loc[found["status"] == "ok", "model"]
    return found[found["model"].isin(measured)]


def draw(rows: pd.DataFrame) -> Figure:
    """One panel per model, one stack per precision."""
    models = list(dict.fromkeys(rows["model"]))
    counts = [(rows["model"] == model).sum() for model in models]
    figure, axes = style.panels(len(models), 1, [0.75 + 0.3 * count for count in counts])
    shown = [name for name in COMPONENTS if (rows[name] > VISIBLE * rows["peak_gib"]).any()]
    for axis, model in zip(axes.flat, models):
        own = rows[rows["model"] == model]
        _panel(axis, style.sort(own), shown)
        axis.set_title(style.title(model, own["weights"].iloc[0] == "synthetic"))
    axes[-1, 0].set_xlabel("GiB")
    handles = [(style.SERIES[place], COMPONENTS[name]) for place, name in enumerate(shown)]
    style.key(figure, handles, "◆ highest peak")
    return figure


def _panel(axis, rows: pd.DataFrame, shown: list[str]) -> None:
    style.name_rows(axis, list(rows["precision"]), coloured=False)  # here colours stand for components
    highest, limit = rows["peak_gib"].max(), rows["limit_gib"].iloc[0]
    width = (max(limit, highest) if limit < LIMIT_SHOWN_UP_TO * highest else highest) * 1.12
    for place, row in enumerate(rows.to_dict("records")):
        if row["status"] != "ok":
            style.note(axis, place, row["status"])
            continue
        start = 0.0
        for series, name in enumerate(shown):
            axis.barh(place, row[name], left=start, height=0.62, color=style.SERIES[series], linewidth=0)
            start += row[name]
        axis.plot([row["peak_gib"]], [place], marker="D", color=style.INK, markersize=5)
        text = f"{number(row['peak_gib'])} GiB"
        end = (max(start, row["peak_gib"]), place)
        if crosses(end[0], limit, width):
            where = {"xytext": (-8, 0), "ha": "right", "color": "white"}
        else:
            where = {"xytext": (8, 0)}
        axis.annotate(text, end, textcoords="offset points", va="center", fontsize=8, **where)
    axis.set_xlim(0, width)
    if limit <= width:
        axis.axvline(limit, color=style.INK, linestyle="--")
        axis.text(limit, -0.62, f"device {number(limit)} ", ha="right", va="bottom", fontsize=8)


def crosses(end: float, limit: float, width: float) -> bool:
    """Whether a number written behind a bar's end would run through the line of the device's limit."""
    return end <= limit < end + WRITTEN * width
