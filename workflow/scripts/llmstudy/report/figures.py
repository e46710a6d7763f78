"""The figures of a study: what each is drawn from, and where its ``rows`` and its drawing are.

A figure called ``batch`` of the module ``report.speed`` has two functions there: ``batch_rows(study)``, what it shows,
a DataFrame that is empty where the study has nothing for it, and ``draw_batch(rows)``, how, a matplotlib Figure.
This file needs only the standard library: the workflow reads it.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure as Drawing

    from llmstudy.report.study import Study

CAPTIONS = Path(__file__).resolve().parents[3] / "report" / "captions"


@dataclass(frozen=True)
class Figure:
    """A figure: the module below ``llmstudy`` that has its rows and draws it, the tables that it is drawn from, the
    heading under which Snakemake's HTML report lists it, and what it shows."""

    module: str
    tables: tuple[str, ...]
    category: str
    title: str


# The first six are those of REPORT.md, the others those of details.md.
FIGURES = {
    "floor": Figure("report.speed", ("summary", "speed"), "Speed", "Time per token above its floor"),
    "trade_off": Figure("report.answer", ("summary", "speed"), "Answer", "Speed, memory and loss"),
    "batch": Figure("report.speed", ("speed",), "Speed", "Throughput against 16 bit over the batch"),
    "memory": Figure("report.memory", ("summary",), "Memory", "Memory against the sizes of cards"),
    "distance": Figure("report.quality", ("quality", "summary"), "Quality", "Distance from the original"),
    "attention": Figure("report.diagnostics", ("attention",), "Diagnostics", "Attention kernels alone"),
    "outliers": Figure("report.diagnostics", ("outliers",), "Diagnostics", "Outlier statistics"),
    "sensitivity": Figure("report.diagnostics", ("sensitivity",), "Diagnostics", "Sensitivity to rounding"),
    "thresholds": Figure("report.quality", ("quality", "summary"), "Quality", "Outlier thresholds of LLM.int8()"),
}


def caption(name: str) -> str:
    """Return how to read a figure, as reStructuredText in one line."""
    return " ".join((CAPTIONS / f"{name}.rst").read_text(encoding="utf-8").split())


def rows(name: str, study: Study) -> pd.DataFrame:
    """Return what a figure shows of a study; no rows if nothing."""
    return getattr(import_module(f"llmstudy.{FIGURES[name].module}"), f"{name}_rows")(study)


def drawn(name: str, rows: pd.DataFrame) -> Drawing:
    """Return a figure of its rows; call it inside ``style.look()``."""
    return getattr(import_module(f"llmstudy.{FIGURES[name].module}"), f"draw_{name}")(rows)


def draw(folder: Path, output: Path) -> None:
    """Draw every figure for which the study in ``folder`` has something to show, as SVG and PNG in ``output``."""
    from llmstudy.report import style
    from llmstudy.report.study import load

    study = load(folder)
    output.mkdir(parents=True, exist_ok=True)
    for name in FIGURES:
        if len(shown := rows(name, study)):
            with style.look():
                style.save(drawn(name, shown), output / f"{name}.svg", output / f"{name}.png")
