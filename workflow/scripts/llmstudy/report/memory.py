"""Memory: what fits on which card, in a sentence and a figure."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from llmstudy.report import markdown, style
from llmstudy.report.study import Claim, Study, fastest, ordered
from llmstudy.tables.columns import number

CARDS = {6: 6, 8: 8, 12: 12, 16: 16, 24: 24, 32: 32, 48: 48, 80: 80, 141: 139.8}  # GB that cards are sold with: GiB


def fits(study: Study) -> Claim | None:
    """Claim what the largest model needs: a card where it ran on a GPU, memory on a CPU."""
    rows = ordered(fastest(study.measured("summary", "memory_gib"), ["model", "precision"]))
    if rows.empty or not study.on_gpu:
        return None if rows.empty else _on_host(study, rows)
    own = rows[rows["model"] == rows.loc[rows["memory_gib"].idxmax(), "model"]].sort_values("memory_gib")
    least, most = own.iloc[0], own.iloc[-1]
    needs = f"{number(least['memory_gib'])} to {number(most['memory_gib'])} GiB"
    text = (
        f"At its first workload {study.label(most['model'])} runs on {card(least['memory_gib'])} with "
        f"`{least['precision']}`, and needs {card(most['memory_gib'])} with `{most['precision']}`. All phases are in "
        f"{study.file('probes')}."
    )
    return Claim(f"The card decides: the largest model needs {needs}", text, "memory")


def card(gib: float) -> str:
    """Return the smallest card that holds some memory: "a card of 24 GB"."""
    return next((f"a card of {name} GB" for name, size in CARDS.items() if gib <= size), "more than one card")


def _on_host(study: Study, rows: pd.DataFrame) -> Claim:
    least = rows.loc[rows["memory_gib"].idxmin()]
    text = (
        "Weights and KV cache are exact, and judged. The peak while loading is one reading of a process; it decides "
        f"whether a model fits a small machine ({study.file('probes')})."
    )
    values = ["weights_gib", "memory_gib", "memory_ratio", "memory_verdict", "peak_load_gib"]
    heading = f"`{least['precision']}` takes the least memory, {number(least['memory_gib'])} GiB"
    return Claim(heading, text, table=markdown.table(rows, ["model", "precision"], values))


def memory_rows(study: Study) -> pd.DataFrame:
    """Return per model and precision the fastest configuration that was measured on a GPU, of models that the smallest
    card does not hold in every precision, if there are any."""
    rows = study.measured("summary", "memory_gib")
    rows = fastest(rows[rows["device"] == "cuda"], ["model", "precision"])
    large = rows[rows.groupby("model")["memory_gib"].transform("max") > min(CARDS.values())]
    return ordered(large if len(large) else rows)


def draw_memory(rows: pd.DataFrame) -> Figure:
    """Memory of every model on one axis, with the sizes of cards: a line for each precision."""
    models = [own for _, own in rows.groupby("model", sort=False)]
    figure, axes = style.panels(1, 1, 0.6 + 0.21 * (len(rows) + len(models)))
    _cards(axes[0][0], models)
    style.headline(figure, "│ weights   ● what the driver counts for the process: it must lie left of a card's line")
    return figure


def _cards(axis: Axes, models: list[pd.DataFrame]) -> None:
    names: list[str] = []
    for own in models:
        axis.text(0.004, len(names), style.title(own), transform=axis.get_yaxis_transform(), va="center",
                  fontweight="bold", fontsize=8.5, bbox=style.GROUND)  # fmt: skip
        names.append("")
        for row in own.itertuples():
            place, hue = len(names), style.color(row.precision)
            axis.plot([row.weights_gib, row.memory_gib], [place, place], color=hue, linewidth=2)
            axis.plot([row.weights_gib] * 2, [place - 0.3, place + 0.3], color=hue, linewidth=2)
            axis.plot([row.memory_gib], [place], color=hue, marker="o", markersize=6)
            style.beside(axis, row.memory_gib, place, f"{number(row.memory_gib)} GiB")
            names.append(f"{row.precision} {row.runtime}")
    style.name_rows(axis, names)
    style.plain_log(axis)
    low, high = axis.get_xlim()
    axis.set_xlim(low, high * (high / low) ** 0.1)
    axis.grid(visible=False)
    for name, gib in CARDS.items():
        if low < gib < axis.get_xlim()[1]:
            axis.axvline(gib, color=style.QUIET, linewidth=0.7, linestyle="--", zorder=0)
            axis.text(gib, -0.7, f"{name}", ha="center", va="bottom", fontsize=8)
    axis.set_xlabel("GiB; dashed: cards of so many GB")
