"""Memory: tables by component and phase, the largest batch that fits, and a figure of what takes it."""

from __future__ import annotations

from functools import partial

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from llmstudy.report import markdown, style
from llmstudy.report.study import Study, fastest, ordered
from llmstudy.tables.capacity import device_memory_gib
from llmstudy.tables.columns import CONFIGURATION, WORKLOAD, Column, number
from llmstudy.tables.memory import peak_gib

PHASES = ["weights_gib", "kv_cache_gib", "workspace_gib", "peak_load_gib", "peak_prefill_gib", "peak_decode_gib"]
PHASES += ["peak_reserved_gib", "peak_rss_gib"]
COMPONENTS = ["linears_gib", "embeddings_gib", "head_gib", "other_gib", "kv_cache_gib", "workspace_gib"]
VISIBLE = 0.003  # parts below this share of the peak in every stack (norms) are thinner than a line
LIMIT_SHOWN_UP_TO = 2.5  # a device's limit far beyond the bars would squeeze them
WRITTEN = 0.09  # what a number behind a bar takes of a panel's width


def table(study: Study, model: str, elsewhere: bool = False) -> str | None:
    """Return the fastest configuration of each precision at the headline workload, or at all others."""
    chosen = fastest(study.table("summary", model), ["precision"])[CONFIGURATION]
    rows = chosen.merge(study.at_headline("memory", model, elsewhere), on=CONFIGURATION)
    names = [*CONFIGURATION[1:], *(WORKLOAD if elsewhere else [])]
    return markdown.table(ordered(rows, *(WORKLOAD if elsewhere else [])), names, PHASES)


def capacity(study: Study) -> str | None:
    """Return the largest batch that fits at each context, and what verified it."""
    rows = ordered(study.table("capacity"))
    predicted = [Column("context_tokens", "context", "count"), "largest_batch", Column("fits_gib", "its peak, GiB")]
    predicted += ["device_gib", Column("usable_gib", "of it usable, GiB")]
    verified = [Column("verified_fits", "verified: ran", "count")]
    verified += [Column("verified_oom", "verified: out of memory", "count"), "prediction"]
    return markdown.table(rows, CONFIGURATION, [*predicted, *verified])


def capacity_verified(study: Study) -> str | None:
    """Return how many predictions of capacity held on the device, which missed and by what; None if none was run."""
    rows = study.table("capacity")
    rows = rows[rows["prediction"].notna()]
    judged = rows[rows["prediction"].isin(["held", "missed"])]
    texts = []
    if len(judged):
        texts.append(
            f"Predictions run on the device: {(judged['prediction'] == 'held').sum()} of {len(judged)} held, which "
            "means that a batch 3 % below the predicted one ran and one 5 % above it ran out of memory, in whole "
            "sequences. The verifying process lets the allocator's segments grow (`expandable_segments`): fragments of "
            "its default can take a fifth of the device."
        )
    for _, row in judged[judged["prediction"] == "missed"].iterrows():
        fits, too_large = row["verified_fits"], row["verified_oom"]
        ran = f"{fits:.0f} ran" if fits > 0 else "none that was tried ran"
        failed = "none that was tried ran out of memory" if pd.isna(too_large) else f"{too_large:.0f} did not"
        where = f"`{row['model']}` {markdown.configuration(row)} at {row['context_tokens']:.0f} tokens"
        texts.append(f"Missed: {where} was predicted to fit {row['largest_batch']:.0f}; {ran}, {failed}.")
    failed = rows.drop(judged.index).fillna({"prediction_reason": ""})
    for (status, reason), same in failed.groupby(["prediction", "prediction_reason"]):
        texts.append(f"{len(same)} not verified: `{status}`: {markdown.plain(reason)}.")
    return " ".join(texts) or None


def memory_rows(study: Study) -> pd.DataFrame:
    """Return per model and precision its fastest configuration, with ``peak_gib`` and ``limit_gib``, the device's.

    Configurations that failed stay, so that the figure can say so; a model of which nothing was measured does not.
    """
    chosen = fastest(study.table("summary"), ["model", "precision"])[CONFIGURATION]
    limit_gib = min(map(device_memory_gib, study.provenance["environments"]), default=float("inf"))
    memory = study.at_headline("memory")
    rows = chosen.merge(memory.assign(peak_gib=peak_gib(memory), limit_gib=limit_gib), on=CONFIGURATION)
    return rows[rows["model"].isin(rows.loc[rows["status"] == "ok", "model"])]


def draw_memory(rows: pd.DataFrame) -> Figure:
    """Memory by what takes it: a panel for each model, a stack for each precision."""
    shown = [name for name in COMPONENTS if (rows[name] > VISIBLE * rows["peak_gib"]).any()]
    figure = style.stacked(rows, lambda own: 0.75 + 0.3 * len(own), partial(_stacks, shown=shown))
    figure.axes[-1].set_xlabel("GiB")
    titles = [markdown.declared(name).title.removesuffix(", GiB") for name in shown]
    style.key(figure, list(zip(style.SERIES, titles)), "◆ highest peak")
    return figure


def _stacks(axis: Axes, rows: pd.DataFrame, shown: list[str]) -> None:
    style.name_rows(axis, list(ordered(rows)["precision"]), colored=False)  # here colors stand for components
    highest, limit = rows["peak_gib"].max(), rows["limit_gib"].iloc[0]
    width = (max(limit, highest) if limit < LIMIT_SHOWN_UP_TO * highest else highest) * 1.12
    for place, row in enumerate(ordered(rows).to_dict("records")):
        if row["status"] != "ok":
            style.note(axis, place, row["status"])
            continue
        start = 0.0
        for hue, name in zip(style.SERIES, shown):
            axis.barh(place, row[name], left=start, height=0.62, color=hue, linewidth=0)
            start += row[name]
        axis.plot([row["peak_gib"]], [place], marker="D", color=style.INK, markersize=5)
        end = max(start, row["peak_gib"])
        where = {"xytext": (-8, 0), "ha": "right", "color": "white"} if crosses(end, limit, width) else {}
        style.beside(axis, end, place, f"{number(row['peak_gib'])} GiB", **where)
    axis.set_xlim(0, width)
    axis.set_title(style.title(rows))
    if limit <= width:
        axis.axvline(limit, color=style.INK, linestyle="--")
        axis.text(limit, -0.62, f"device {number(limit)} ", ha="right", va="bottom", fontsize=8)


def crosses(end: float, limit: float, width: float) -> bool:
    """Return whether a number written behind a bar's end would run through the line of the device's limit."""
    return end <= limit < end + WRITTEN * width
