"""The common look: readable on GitHub's light and dark pages, colour-blind safe, the same bytes for the same data.

Every colour has a contrast of at least 3:1 against both #ffffff and #0d1117, so one file serves both themes. Hue stands
for the family of a precision (blue: 16 bit, orange: bitsandbytes int8, green: int8 of this project, purple: 4 bit);
names beside the marks say which is which, so nothing depends on colour alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from llmstudy.files import atomic_write

INK = "#7d8590"
PRECISIONS = {
    "fp32": "#7d8590",
    "bf16": "#2f7fd0",
    "fp16": "#4a9bd9",
    "llm-int8": "#d55e00",
    "llm-int8-t0": "#b8860b",
    "int8-fused": "#009e73",
    "int8-fused-outlier": "#5a9e2f",
    "int8-w8a8": "#0e9aa7",
    "nf4": "#b45fc0",
    "fp4": "#e0508a",
}
# For what is not a precision: components of memory, attention kernels.
SERIES = ("#2f7fd0", "#d55e00", "#009e73", "#b45fc0", "#b8860b", "#e0508a", "#0e9aa7", "#7d8590")
RUNTIMES = {"generate": "o", "graph": "s"}
WIDTH = 9.6
INKED = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color")
SETTINGS = {
    "svg.hashsalt": "llmstudy",
    "svg.fonttype": "path",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9,
    "figure.dpi": 100,
    "savefig.dpi": 150,
    "savefig.transparent": True,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.grid.axis": "x",
    "grid.linewidth": 0.4,
    "grid.alpha": 0.5,
    "axes.axisbelow": True,
    "lines.linewidth": 1.4,
    "figure.constrained_layout.use": True,
    **dict.fromkeys(INKED, INK),
}


@contextmanager
def look() -> Iterator[None]:
    """Draw with the common settings, without touching the process's own, and without a display."""
    matplotlib.use("agg")
    with matplotlib.rc_context(seaborn.axes_style("ticks") | SETTINGS):
        yield


def save(figure: Figure, svg: Path, png: Path) -> None:
    """Write both files without a date, so that equal tables give equal bytes."""
    for path, metadata in ((svg, {"Date": None}), (png, {"Software": None})):
        with atomic_write(path, "wb") as file:
            figure.savefig(file, format=path.suffix[1:], metadata=metadata)


def colour(precision: str) -> str:
    """The colour that a precision has in every figure."""
    return PRECISIONS.get(precision, INK)


def in_order(precisions: Iterable[str]) -> list[str]:
    """Precisions in the order of the palette, unknown ones behind."""
    present = set(precisions)
    return [name for name in PRECISIONS if name in present] + sorted(present - PRECISIONS.keys())


def sort(rows: pd.DataFrame, *then: str) -> pd.DataFrame:
    """Rows by precision in the order of the palette, then by other columns."""
    order = {name: place for place, name in enumerate(in_order(rows["precision"]))}
    keys = pd.DataFrame({"precision": rows["precision"].map(order)} | {column: rows[column] for column in then})
    return rows.loc[keys.sort_values(list(keys), kind="stable").index]


def panels(rows: int, columns: int, heights: list[float] | float, width: float = WIDTH, **settings) -> tuple:
    """A figure and its (rows, columns) axes; heights in inches per row."""
    heights = [heights] * rows if isinstance(heights, (int, float)) else heights
    figure = Figure(figsize=(width, sum(heights) + 0.45))
    axes = figure.subplots(rows, columns, squeeze=False, gridspec_kw={"height_ratios": heights}, **settings)
    for axis in axes.flat:
        seaborn.despine(ax=axis)
    return figure, axes


def grid(models: list[str], height: float) -> tuple[Figure, dict[str, Axes]]:
    """One panel per model, two in a row."""
    columns = min(2, len(models))
    figure, axes = panels(-(-len(models) // columns), columns, height)
    for axis in axes.flat[len(models) :]:
        axis.remove()
    return figure, dict(zip(models, axes.flat))


def by_model(rows: pd.DataFrame, height: float, draw: Callable[[Axes, pd.DataFrame], None], text: str) -> Figure:
    """A figure with one panel per model, each drawn from that model's rows, under a headline."""
    figure, axes = grid(list(dict.fromkeys(rows["model"])), height)
    for model, axis in axes.items():
        draw(axis, rows[rows["model"] == model])
    headline(figure, text)
    return figure


def title(model: str, synthetic: bool) -> str:
    """A panel's title: the model, marked where its weights are random."""
    return f"{model} (synthetic weights)" if synthetic else model


def headline(figure: Figure, text: str) -> None:
    """One line above the panels that says how to read them."""
    figure.suptitle(text, x=0.01, ha="left", fontsize=9)


def key(figure: Figure, entries: list[tuple[str, str]], more: str) -> None:
    """The names of stacked parts, each beside a patch of its colour, above the panels."""
    patches = [matplotlib.patches.Patch(color=hue, label=name) for hue, name in entries]
    patches.append(matplotlib.patches.Patch(alpha=0, label=more))
    figure.legend(handles=patches, loc="outside upper left", ncols=len(patches), frameon=False, fontsize=8.5,
                  handlelength=0.9, handletextpad=0.4, columnspacing=1.1)  # fmt: skip


def name_rows(axis: Axes, names: list[str], coloured: bool = True) -> None:
    """Put precision names on the y axis, the first at the top, in their colours unless these mean something else."""
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.tick_params(axis="y", length=0)
    for label, name in zip(axis.get_yticklabels(), names if coloured else []):
        label.set_color(colour(name.split(" ")[0]))


def interval(axis: Axes, x: float, low: float, high: float, y: float, hue: str, **marker) -> None:
    """A point and its horizontal 95 % interval, if it has one."""
    if not (pd.isna(low) or pd.isna(high)):
        axis.plot([low, high], [y, y], color=hue, linewidth=2, solid_capstyle="butt")
    axis.plot([x], [y], color=hue, **({"marker": "o", "markersize": 6, "linestyle": "none"} | marker))


def note(axis: Axes, y: float, text: str) -> None:
    """Words in place of a mark, at the left edge of a row."""
    axis.text(0.02, y, text, transform=axis.get_yaxis_transform(), va="center", fontsize=8, style="italic")


def label_right(axis: Axes, xs: list[float], ys: list[float], texts: list[str], hues: list[str]) -> None:
    """Names at the right edge of the panel, each beside its point, moved apart where they would overlap."""
    axis.get_xlim(), axis.get_ylim()  # settles limits that matplotlib would settle only when drawing
    places = axis.transData.transform(list(zip(xs, ys)))
    share = list(axis.transAxes.inverted().transform(places)[:, 1])
    step = 10.5 / (axis.get_figure().get_figheight() * 72 * axis.get_position().height)
    for index, at in zip(np.argsort(share), apart(sorted(share), step)):
        axis.annotate(
            texts[index],
            (xs[index], ys[index]),
            (1.03, at),
            textcoords="axes fraction",
            color=hues[index],
            fontsize=8,
            va="center",
            # From the left edge of the words: a line from their middle would run through those above or below.
            arrowprops={
                "arrowstyle": "-",
                "color": hues[index],
                "linewidth": 0.5,
                "shrinkB": 3,
                "linestyle": ":",
                "relpos": (0, 0.5),
            },
        )


def apart(places: list[float], step: float) -> list[float]:
    """Sorted places moved as little as a sweep allows so that neighbours are at least ``step`` apart, centred."""
    blocks: list[list[float]] = []  # [sum of wanted starts, count]
    for index, place in enumerate(places):
        blocks.append([place - index * step, 1])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
            total, count = blocks.pop()
            blocks[-1][0] += total
            blocks[-1][1] += count
    starts = [total / count for total, count in blocks for _ in range(int(count))]
    return [start + index * step for index, start in enumerate(starts)]


def plain_log(axis: Axes, which: str = "x") -> None:
    """A logarithmic axis with plain numbers."""
    getattr(axis, f"set_{which}scale")("log")
    one = axis.xaxis if which == "x" else axis.yaxis
    low, high = axis.get_xlim() if which == "x" else axis.get_ylim()
    one.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5) if high / low < 200 else (1,)))
    one.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    one.set_minor_formatter(matplotlib.ticker.NullFormatter())
