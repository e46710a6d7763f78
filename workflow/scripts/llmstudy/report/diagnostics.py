"""Diagnostics: what explains speed and loss. Tables and sentences of each, three figures, and any other table."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import chain

import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure

from llmstudy.kinds import KINDS
from llmstudy.report import markdown, style
from llmstudy.report.study import Study, ordered
from llmstudy.tables import columns_of, every
from llmstudy.tables.columns import CONFIGURATION, IDENTITY, Column, number
from llmstudy.tables.diagnostics import ALL

PAPER = 6.0  # LLM.int8()'s own threshold (Dettmers et al. 2022, section 3.2)
TICKS = [0, 0.1, 1, 10, 100]
WORST = 5  # parts that the table of sensitivity lists
PANELS = (
    ("prefill", "time_ms", "prefill time, ms"),
    ("prefill", "extra_mib", "prefill workspace, MiB"),
    ("decode", "time_ms", "decode step, ms"),
)
HUE = style.SERIES[1]
# Tables that other sections of the report show.
ELSEWHERE = ("processes", "speed", "memory", "quality", "generations", "text", "summary", "recommendation")
ELSEWHERE += ("profile", "crossover", "capacity", "tasks")


def sections(study: Study) -> Iterator[tuple[str, str, str | None, str | None]]:
    """Yield (table, heading, sentence, Markdown) for each diagnostic of a study, and for each table that no other
    section of the report shows."""
    findings = {"invariance": invariance_finding}
    tables = {"outliers": outliers, "sensitivity": sensitivity, "invariance": invariance, "attention": attention}
    for name, declared in every().items():
        if name not in study.tables or name in ELSEWHERE:
            continue
        title = KINDS[name].title if name in KINDS else declared.title
        sentence = findings[name](study) if name in findings else None
        yield name, title, sentence, tables[name](study) if name in tables else listing(study, name)


def listing(study: Study, name: str) -> str | None:
    """Return a whole table, whatever it holds: what a row is about, then each column that has a value."""
    shared = [*IDENTITY, "status", "reason"]
    own = [column for column in columns_of(name) if column.name not in shared]
    ends = set(chain.from_iterable(markdown.ends_of(column.name, study.table(name)) or () for column in own))
    return markdown.table(study.table(name), CONFIGURATION, [column for column in own if column.name not in ends])


def profile(study: Study) -> str | None:
    """Return where a decode step's time goes."""
    counts = ["launches_per_token", "syncs_per_token", "operators_per_token", "device_busy_share", "mbu", "limit"]
    return markdown.table(ordered(study.table("profile"), "runtime", "attention"), CONFIGURATION, counts)


def launches(study: Study) -> str | None:
    """Return per model the most and the fewest launches of a decode step, and how long the device works."""
    texts = []
    for model, rows in study.measured("profile", "launches_per_token").groupby("model", sort=False):
        count = rows["launches_per_token"]
        if count.min() < count.max():
            ends = (_step(rows.loc[count.idxmax()]), _step(rows.loc[count.idxmin()]))
            texts.append(f"A token of {study.label(model)} takes {'; '.join(ends)}.")
    return " ".join(texts) or None


def _step(row: pd.Series) -> str:
    launches, waits, busy = row[["launches_per_token", "syncs_per_token", "device_busy_share"]]
    text = f"{number(launches)} {'launch' if launches == 1 else 'launches'} and "
    text += f"{number(waits)} {'wait' if waits == 1 else 'waits'} of the host"
    return f"{markdown.configuration(row)} {text}, and the device works {markdown.percent(busy)} of the time"


def invariance(study: Study) -> str | None:
    """Return how far a prompt's logits depend on its neighbors in the batch, where they do or where that failed."""
    rows = study.table("invariance")
    rows = ordered(rows[(rows["status"] != "ok") | (rows["max_abs_delta_logit"] > 0)])
    changes = ["batch", "neighbours", "max_abs_delta_logit", "top1_changes", "positions"]
    return markdown.table(rows, CONFIGURATION[:2], changes)


def invariance_finding(study: Study) -> str | None:
    """Return per model which precisions give a prompt other first choices beside copies of itself, and beside others.

    What changes beside copies comes from the batch's shape, what changes beside others alone from their content.
    """
    texts = []
    for model, rows in study.measured("invariance", "top1_changes").groupby("model", sort=False):
        copies = rows["neighbours"] == "copies"
        for beside, own in (("copies of itself", rows[copies]), ("other texts", rows[~copies])):
            if len(own):
                texts.append(f"Beside {beside}, {_changes(model, own)}.")
    return " ".join(texts) or None


def _changes(model: str, rows: pd.DataFrame) -> str:
    """Return how many first choices change at most, precision by precision."""
    worst = rows.loc[rows.groupby("precision", sort=False)["top1_changes"].idxmax()]
    changed = worst[worst["top1_changes"] > 0].sort_values("top1_changes", ascending=False, kind="stable")
    if changed.empty:
        return f"no first choice of `{model}` changes in any precision"
    most = [f"`{row.precision}` up to {row.top1_changes:.0f} of {row.positions:.0f}" for row in changed.itertuples()]
    same = [f"`{name}`" for name in worst.loc[worst["top1_changes"] == 0, "precision"]]
    rest = f"; in {', '.join(same)} none" if same else ""
    return f"first choices of `{model}` change: {', '.join(most)}{rest}"


def sensitivity(study: Study) -> str | None:
    """Return the parts whose rounding moves the model's distribution most."""
    rows = study.measured("sensitivity", "kl_nats").sort_values("kl_nats", ascending=False)
    rows = ordered(rows).groupby("model", sort=False).head(WORST)
    return markdown.table(rows, ["model", "layer", "linear"], ["kl_nats", "delta_nll"])


def outliers(study: Study) -> str | None:
    """Return per threshold the share of columns and rows that some outlier touches, and of values that are outliers."""
    lines = []
    for (model, threshold), own in study.measured("outliers", "threshold").groupby(["model", "threshold"], sort=False):
        most = own.loc[own["column_share"].idxmax()]
        means = own[["column_share", "row_share", "entry_share"]].mean().map(markdown.percent)
        at = f"{markdown.percent(most['column_share'])} (layer {most['layer']}, {most['linear']})"
        tail = [number(own["max_abs"].max()), number(own["tokens"].max())]
        lines.append([f"`{model}`", f"{threshold:g}", means.iloc[0], at, *means.iloc[1:], *tail])
    header = ["model", "threshold", "columns, mean", "columns, most", "rows, mean", "values, mean", "largest magnitude"]
    return markdown.grid([*header, "tokens"], lines) if lines else None


def attention(study: Study) -> str | None:
    """Return each kernel at the longest context that any ran, prefill and decode."""
    rows = study.table("attention")
    longest = rows[rows["time_ms"].notna()].groupby(["model", "phase"])["context"].max()
    keys = pd.MultiIndex.from_frame(rows[["model", "phase"]])
    rows = rows[rows["context"].to_numpy() == longest.reindex(keys).to_numpy()]
    rows = ordered(rows.sort_values("phase", ascending=False, kind="stable"))
    names = ["model", "phase", "context", Column("attention", "kernel", "code")]
    return markdown.table(rows, names, ["time_ms", "tflops", "gb_s", "extra_mib", "max_abs_error"])


def rounding_floor(study: Study, model: str, precision: str) -> float:
    """Return the KL divergence, nats per token, that any change of a model in 16 bit causes: that of fp32.

    A change of one weight moves every rounding after it. 0 for fp32, or where fp32 was not compared.
    """
    rows = study.measured("quality", "kl_nats", model)
    compared = rows.loc[rows["precision"] == "fp32", "kl_nats"]
    return 0.0 if precision == "fp32" or compared.empty else float(compared.min())


def outliers_rows(study: Study) -> pd.DataFrame:
    """Return a row per model, layer and linear layer, at the threshold of the paper or the one nearest to it."""
    rows = study.measured("outliers", "threshold")
    distance = (rows["threshold"] - PAPER).abs()
    return rows[distance == distance.groupby(rows["model"]).transform("min")]


def draw_outliers(rows: pd.DataFrame) -> Figure:
    """The share of input columns with an outlier: a heat map for each model, linear layers in forward order."""
    return style.stacked(rows, lambda own: 2.4, _outliers)


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
    model, threshold, tokens = rows.iloc[0][["model", "threshold", "tokens"]]
    axis.set_title(f"{model}: columns with an activation over {threshold:g} anywhere in {tokens:,.0f} tokens")
    axis.set(xlabel="layer", ylabel="")
    axis.tick_params(length=0)
    axis.tick_params(axis="y", rotation=0)


def sensitivity_rows(study: Study) -> pd.DataFrame:
    """Return a row per rounded part of a model, with ``floor_nats``."""
    rows = study.measured("sensitivity", "kl_nats")
    return rows.assign(floor_nats=[rounding_floor(study, row.model, row.precision) for row in rows.itertuples()])


def draw_sensitivity(rows: pd.DataFrame) -> Figure:
    """Draw what rounding one part to int8 costs: per model a panel along the layers, one over kinds of linear layer."""
    text = (
        "KL divergence from the unrounded model when this part alone is rounded to int8; bars: 95 % over documents\n"
        "shaded: what any change of a model in 16 bit does, since it moves every rounding after it"
    )
    return style.stacked(rows, lambda own: 2.6, _sensitivity, text, columns=2)


def _sensitivity(left: Axes, right: Axes, rows: pd.DataFrame) -> None:
    rows, floor = rows.astype({"layer": str, "linear": str}), rows["floor_nats"].iloc[0]
    layers = rows[(rows["linear"] == ALL) & (rows["layer"] != ALL)].astype({"layer": float}).sort_values("layer")
    error = style.beyond(layers, "kl_nats", "kl_low_nats", "kl_high_nats")
    left.errorbar(layers["layer"], layers["kl_nats"], yerr=error, fmt="o", color=HUE, elinewidth=1.5, markersize=4)
    left.set_ylim(bottom=0)
    left.axhspan(0, floor, color=style.INK, alpha=0.2, linewidth=0)
    left.grid(axis="y")
    left.set(xlabel="layer, all its linear layers", ylabel="KL divergence, nats per token")
    left.set_title(rows["model"].iloc[0])
    kinds = rows[(rows["layer"] == ALL) & (rows["linear"] != ALL)].sort_values("kl_nats", ascending=False)
    style.name_rows(right, list(kinds["linear"]), colored=False)
    for place, row in enumerate(kinds.itertuples()):
        style.interval(right, row.kl_nats, row.kl_low_nats, row.kl_high_nats, place, HUE)
    right.set_xlim(left=0)
    right.axvspan(0, floor, color=style.INK, alpha=0.2, linewidth=0)
    right.locator_params(axis="x", nbins=5)
    right.set_xlabel("KL divergence, nats per token; this linear layer everywhere")


def attention_rows(study: Study) -> pd.DataFrame:
    """Return a row per model, kernel, context and phase."""
    return study.measured("attention", "time_ms")


def draw_attention(rows: pd.DataFrame) -> Figure:
    """Attention kernels alone against the context: a line of panels for each model; memory where the device counts."""
    kernels = list(dict.fromkeys(rows["attention"]))
    hues = {kernel: style.SERIES[place % len(style.SERIES)] for place, kernel in enumerate(kernels)}
    panels = [panel for panel in PANELS if (rows.loc[rows["phase"] == panel[0], panel[1]] > 0).any()]
    draw, text = partial(_attention, panels=panels, hues=hues), "bars: range over repeats; both axes logarithmic"
    return style.stacked(rows, lambda own: 2.9, draw, text, columns=len(panels))


def _attention(*line, panels: list[tuple[str, str, str]], hues: dict[str, str]) -> None:
    *axes, rows = line
    for axis, (phase, quantity, label) in zip(axes, panels):
        shown = rows[(rows["phase"] == phase) & (rows[quantity] > 0)].sort_values("context")
        labels = []
        for kernel, hue in hues.items():
            own = shown[shown["attention"] == kernel]
            if own.empty:
                continue
            error = style.beyond(own, "time_ms", "time_low_ms", "time_high_ms") if quantity == "time_ms" else None
            axis.errorbar(own["context"], own[quantity], yerr=error, color=hue, marker="o", markersize=4)
            labels.append((own["context"].iloc[-1], own[quantity].iloc[-1], kernel, hue))
        axis.set_xscale("log", base=2)
        contexts = sorted(set(shown["context"].astype(int)))
        axis.set_xticks(contexts, [f"{context // 1024}k" if context >= 1024 else str(context) for context in contexts])
        axis.minorticks_off()
        style.plain_log(axis, "y")
        axis.grid(axis="both")
        axis.set_xlabel("context, tokens")
        axis.set_ylabel(label)
        style.label_right(axis, labels)
    axes[0].set_title(style.title(rows))
