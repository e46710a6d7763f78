"""Throughput against batch size: where one precision overtakes another."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from llmstudy.report import selection
from llmstudy.report.figures import style
from llmstudy.report.study import Study

HEADLINE = "fastest attention of each precision   ○ and line: runtime eager   □ and dashes: runtime graph"
LINES = {"generate": "-", "graph": "--"}


def rows(study: Study) -> pd.DataFrame:
    """Per model the prompt length with most batch sizes; per precision, runtime and batch the fastest attention."""
    measured = selection.over_repeats(study, study.table("processes"))
    if measured.empty:
        return measured
    measured = selection.fastest(measured.assign(status="ok"), ["model", "precision", "runtime", *selection.WORKLOAD])
    parts = []
    for _, own in measured.groupby("model", sort=False):
        batches = own.groupby(["prompt_tokens", "new_tokens"])["batch"].nunique()
        if batches.max() > 1:
            prompt, new = batches.idxmax()
            parts.append(own[(own["prompt_tokens"] == prompt) & (own["new_tokens"] == new)])
    return pd.concat(parts) if parts else measured.iloc[:0]


def draw(rows: pd.DataFrame) -> Figure:
    """One panel per model."""
    return style.by_model(rows, 3.1, _panel, HEADLINE)


def _panel(axis, rows: pd.DataFrame) -> None:
    ends = []
    for (precision, runtime), own in style.sort(rows).groupby(["precision", "runtime"], sort=False):
        own, hue = own.sort_values("batch"), style.colour(precision)
        error = [own["tokens_per_s"] - own["tokens_per_s_low"], own["tokens_per_s_high"] - own["tokens_per_s"]]
        marker, line = style.RUNTIMES.get(runtime, "D"), LINES.get(runtime, ":")
        fill = hue if runtime == "graph" else "none"
        axis.errorbar(
            own["batch"],
            own["tokens_per_s"],
            yerr=error,
            color=hue,
            marker=marker,
            linestyle=line,
            markerfacecolor=fill,
        )
        ends.append((own["batch"].iloc[-1], own["tokens_per_s"].iloc[-1], f"{precision} {runtime}", hue))
    style.plain_log(axis)
    style.plain_log(axis, "y")
    axis.set_xticks(sorted(set(rows["batch"])))
    axis.minorticks_off()
    first = rows.iloc[0]
    axis.set_title(style.title(first["model"], first["weights"] == "synthetic"))
    axis.set_xlabel(f"batch (prompt {first['prompt_tokens']}, {first['new_tokens']} new tokens)")
    axis.set_ylabel("tokens/s")
    axis.grid(axis="both")
    style.label_right(axis, *map(list, zip(*ends)))
