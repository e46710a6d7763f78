"""How long greedy continuations stay those of the reference: the share of prompts still identical, token by token."""

from __future__ import annotations

import matplotlib.transforms
import pandas as pd
from matplotlib.figure import Figure

from llmstudy.report.figures import style
from llmstudy.report.study import Study
from llmstudy.stats.text import agreement_curve
from llmstudy.tables.generations import compared, divergences

HEADLINE = "greedy text against the reference's   lines that coincide are drawn beside each other"
BESIDE_POINTS = 1.8  # between lines that coincide


def rows(study: Study) -> pd.DataFrame:
    """A row per model, precision and prompt that was compared with the reference's text."""
    samples = study.table("generations")
    if samples.empty:
        return samples
    parts = [
        compared(study.of_model("generations", model), study.headline(model)["reference"]) for model in study.models
    ]
    return pd.concat(parts)


def draw(rows: pd.DataFrame) -> Figure:
    """One panel per model."""
    return style.by_model(rows, 2.9, _panel, HEADLINE)


def _panel(axis, rows: pd.DataFrame) -> None:
    tokens = int(rows["new_tokens"].min())
    precisions = style.in_order(rows["precision"])
    curves = {one: 100 * agreement_curve(divergences(rows[rows["precision"] == one]), tokens) for one in precisions}
    ends = []
    for precision, share in curves.items():
        hue = style.colour(precision)
        same = [one for one, other in curves.items() if (other == share).all()]
        aside = (len(same) - 1) / 2 - same.index(precision)
        shift = matplotlib.transforms.ScaledTranslation(0, aside * BESIDE_POINTS / 72, axis.figure.dpi_scale_trans)
        axis.plot(range(tokens + 1), share, color=hue, drawstyle="steps-post", transform=axis.transData + shift)
        # A hair, so that labels of lines that end together keep the order of the lines.
        ends.append((tokens, share[-1] + aside / 1e3, f"{precision}  {share[-1]:.0f} %", hue))
    axis.set_xlim(0, tokens)
    axis.set_ylim(-6, 106)
    axis.grid(axis="both")
    axis.set_title(f"{rows['model'].iloc[0]}, {rows['prompt'].nunique()} prompts")
    axis.set_xlabel("generated tokens")
    axis.set_ylabel("prompts still identical, %")
    style.label_right(axis, *map(list, zip(*ends)))
