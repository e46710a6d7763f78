"""Draw one figure of one study into its two files."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from llmstudy.report import figures
from llmstudy.report import study as studies
from llmstudy.report.figures import style

NOTHING = "This study has nothing to draw here."


def plot(name: str, folder: Path, svg: Path, png: Path) -> None:
    """Draw figure ``name`` of the study in ``folder``; one sentence stands in its place if there is nothing to draw."""
    module = figures.module(name)
    study = studies.load(folder)
    rows = module.rows(study)
    with style.look():
        style.save(module.draw(rows) if len(rows) else nothing(), svg, png)


def nothing() -> Figure:
    """The figure of a study that has nothing for it."""
    figure = Figure(figsize=(style.WIDTH / 2, 0.5))
    figure.text(0.5, 0.5, NOTHING, ha="center", va="center")
    return figure


def shown(study: studies.Study) -> list[str]:
    """Names of the figures that were drawn for a study and show something."""
    return [
        name
        for name in figures.FIGURES
        if (study.folder / "figures" / f"{name}.svg").exists() and len(figures.module(name).rows(study))
    ]
