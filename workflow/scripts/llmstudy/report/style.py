"""The common look: on white, readable without color, the same bytes for the same data.

A picture has a white ground of its own, so that it reads alike on GitHub's light and dark pages. Every text has a
contrast of at least 4.5:1 against it. One color means one thing in every figure of every study: colors of precisions
are those of the registry, those of attention kernels stand below, and none is in both.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from llmstudy.files import atomic_write
from llmstudy.report.study import fact

INK = "#333a44"
QUIET = "#6d747e"  # what a figure shows beside its subject
# Attention kernels, by name.
KERNELS = {
    "eager": "#7a1f3d",
    "sdpa": "#3d3d8f",
    "sdpa-math": "#b04a2f",
    "sdpa-flash": "#2f6f3e",
    "sdpa-efficient": "#8a5a00",
    "sdpa-cudnn": "#00699b",
    "flash_attention_2": "#5c3a9e",
    "flash_attention_3": "#a3195b",
}
# For precisions and kernels of another version, or of another checkout.
SPARE = ("#7159c4", "#8d5f2c", "#b0405c", "#4b7430", "#3f6f90", "#8f4f8f")
GROUND = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}  # under words that lines may cross
MARKERS = {"generate": "o", "compile": "D", "graph": "s"}  # by runtime
OTHER = "^"  # the marker of any other runtime
WIDTH = 9.6
INKED = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
SETTINGS = {
    "svg.hashsalt": "llmstudy",
    "svg.fonttype": "path",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9,
    "figure.dpi": 100,
    "savefig.dpi": 150,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.grid.axis": "x",
    "grid.color": "#c9ced6",
    "grid.linewidth": 0.5,
    "axes.axisbelow": True,
    "lines.linewidth": 1.4,
    "figure.constrained_layout.use": True,
    **dict.fromkeys(INKED, INK),
}


@contextmanager
def look() -> Iterator[None]:
    """Draw with the common settings, leaving those of the process alone, and without a display."""
    matplotlib.use("agg")
    with matplotlib.rc_context(seaborn.axes_style("ticks") | SETTINGS):
        yield


def save(figure: Figure, svg: Path, png: Path) -> None:
    """Write both files without a date, so that equal tables give equal bytes."""
    for path, metadata in ((svg, {"Date": None}), (png, {"Software": None})):
        with atomic_write(path, "wb") as file:
            figure.savefig(file, format=path.suffix[1:], metadata=metadata)


def color(name: str) -> str:
    """Return the color of a precision or attention kernel in every figure, of an unknown one always the same."""
    return fact(name, "color") or KERNELS.get(name) or SPARE[zlib.crc32(name.encode()) % len(SPARE)]


def panels(rows: int, columns: int, heights: list[float] | float, width: float = WIDTH) -> tuple:
    """Return a figure and its axes (rows, columns); heights are in inches per row."""
    heights = [heights] * rows if isinstance(heights, (int, float)) else heights
    figure = Figure(figsize=(width, sum(heights) + 0.45))
    axes = figure.subplots(rows, columns, squeeze=False, gridspec_kw={"height_ratios": heights})
    for axis in axes.flat:
        seaborn.despine(ax=axis)
    return figure, axes


def abreast(parts: list[pd.DataFrame], height: float, draw: Callable[[Axes, pd.DataFrame], None], text: str) -> Figure:
    """Return a figure with a panel for each part, two side by side, and a line above on how to read it."""
    columns = min(2, len(parts))
    figure, axes = panels(-(-len(parts) // columns), columns, height, WIDTH if columns > 1 else 0.72 * WIDTH)
    for axis in axes.flat[len(parts) :]:
        axis.remove()
    for axis, own in zip(axes.flat, parts):
        draw(axis, own)
    headline(figure, text)
    return figure


def stacked(
    rows: pd.DataFrame, height: Callable[[pd.DataFrame], float], draw: Callable[..., None], text: str, columns: int = 1
) -> Figure:
    """Return a figure with a line of panels for each model, one below the other: ``draw`` gets the axes of the line
    and that model's rows, ``height`` says how many inches these need, ``text`` how to read the panels."""
    models = [own for _, own in rows.groupby("model", sort=False)]
    figure, axes = panels(len(models), columns, [height(own) for own in models])
    for line, own in zip(axes, models):
        draw(*line, own)
    headline(figure, text)
    return figure


def title(rows: pd.DataFrame, *more: str) -> str:
    """Return a panel's title: the model of the rows, marked where its weights are random, and more."""
    first = rows.iloc[0]
    return ", ".join([first["model"] + " (synthetic weights)" * (first["weights"] == "synthetic"), *more])


def headline(figure: Figure, text: str) -> None:
    """Write above the panels how to read them."""
    figure.suptitle(text, x=0.01, ha="left", fontsize=9)


def name_rows(axis: Axes, names: list[str], colored: bool = True) -> None:
    """Write names of precisions on the y axis, the first at the top, in their colors if these mean precisions."""
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.tick_params(axis="y", length=0)
    for label, name in zip(axis.get_yticklabels(), names if colored else []):
        label.set_color(color(name.split(" ")[0]))


def interval(axis: Axes, x: float, low: float, high: float, y: float, hue: str, **marker) -> None:
    """Draw a point and its horizontal interval, if it has one."""
    if not (pd.isna(low) or pd.isna(high)):
        axis.plot([low, high], [y, y], color=hue, linewidth=2, solid_capstyle="butt")
    axis.plot([x], [y], color=hue, **({"marker": "o", "markersize": 6, "linestyle": "none"} | marker))


def beyond(rows: pd.DataFrame, name: str, low: str, high: str) -> list[pd.Series]:
    """Return how far the ends of an interval lie from its value, as matplotlib's error bars take them."""
    return [rows[name] - rows[low], rows[high] - rows[name]]


def beside(axis: Axes, x: float, y: float, text: str, **settings) -> None:
    """Write a number to the right of its mark."""
    settings = {"xytext": (8, 0), "fontsize": 8, "bbox": GROUND} | settings
    axis.annotate(text, (x, y), textcoords="offset points", va="center", **settings)


def label_right(axis: Axes, labels: list[tuple[float, float, str, str]]) -> None:
    """Write names at the right edge of the panel, each beside its point, moved apart where they would overlap;
    ``labels`` are (x, y, text, color)."""
    if not labels:
        return
    axis.get_xlim(), axis.get_ylim()  # settles limits that matplotlib would settle only when drawing
    points = axis.transData.transform([label[:2] for label in labels])
    shares = axis.transAxes.inverted().transform(points)[:, 1]
    step = 10.5 / (axis.get_figure().get_figheight() * 72 * axis.get_position().height)
    for index, height in zip(np.argsort(shares, kind="stable"), apart(sorted(shares), step)):
        x, y, text, hue = labels[index]
        # From the near edge of the words: a line from their middle would run through those above or below.
        arrow = {"arrowstyle": "-", "color": hue, "linewidth": 0.5, "shrinkB": 3, "linestyle": ":", "relpos": (0, 0.5)}
        axis.annotate(text, (x, y), (1.03, height), textcoords="axes fraction", color=hue, fontsize=8, va="center",
                      arrowprops=arrow)  # fmt: skip


def apart(places: list[float], step: float) -> list[float]:
    """Return sorted places, moved as little as a sweep allows so that neighbors are at least ``step`` apart."""
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
    """Make an axis logarithmic, with plain numbers."""
    getattr(axis, f"set_{which}scale")("log")
    scale = getattr(axis, f"{which}axis")
    low, high = getattr(axis, f"get_{which}lim")()
    scale.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5) if high / low < 200 else (1,)))
    scale.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    scale.set_minor_formatter(matplotlib.ticker.NullFormatter())
