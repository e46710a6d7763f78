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


@dataclass(frozen=True)
class Figure:
    """A figure.

    Attributes:
        module: Module below ``llmstudy`` that has its rows and draws it.
        tables: Tables that it is drawn from.
        category: Heading under which Snakemake's HTML report lists it.
        title: What it shows.
    """

    module: str
    tables: tuple[str, ...]
    category: str
    title: str


FIGURES = {
    "trade_off": Figure("report.answer", ("summary",), "Answer", "Speed, memory and quality"),
    "speed": Figure("report.speed", ("summary", "speed"), "Speed", "TTFT and TPOT"),
    "bandwidth_floor": Figure("report.speed", ("speed",), "Speed", "TPOT above the bandwidth floor"),
    "batch": Figure("report.speed", ("speed",), "Speed", "Throughput against batch size"),
    "roofline": Figure("report.speed", ("speed",), "Speed", "Roofline"),
    "memory": Figure("report.memory", ("summary", "memory"), "Memory", "Memory by component"),
    "perplexity": Figure("report.quality", ("quality",), "Quality", "Perplexity"),
    "divergence": Figure("report.quality", ("quality",), "Quality", "KL divergence from the reference"),
    "agreement": Figure("report.quality", ("generations",), "Quality", "Agreement of greedy text with the reference's"),
    "thresholds": Figure("report.quality", ("quality", "speed"), "Quality", "Outlier thresholds of LLM.int8()"),
    "outliers": Figure("report.diagnostics", ("outliers",), "Diagnostics", "Outlier statistics"),
    "sensitivity": Figure("report.diagnostics", ("sensitivity", "quality"), "Diagnostics", "Sensitivity to rounding"),
    "attention": Figure("report.diagnostics", ("attention",), "Diagnostics", "Attention kernels"),
}


def rows(name: str, study: Study) -> pd.DataFrame:
    """Return what a figure shows of a study; no rows if nothing."""
    return getattr(import_module(f"llmstudy.{FIGURES[name].module}"), f"{name}_rows")(study)


def drawn(name: str, rows: pd.DataFrame) -> Drawing:
    """Return a figure of its rows; call it inside ``style.look()``."""
    return getattr(import_module(f"llmstudy.{FIGURES[name].module}"), f"draw_{name}")(rows)


def draw(name: str, folder: Path, svg: Path, png: Path) -> None:
    """Draw a figure of the study in ``folder`` into two files; one sentence if there is nothing to draw."""
    from llmstudy.report import style
    from llmstudy.report.study import load

    shown = rows(name, load(folder))
    with style.look():
        nothing = "This study has nothing to draw here."
        style.save(drawn(name, shown) if len(shown) else style.sentence(nothing), svg, png)


def shown(study: Study) -> list[str]:
    """Return the names of the figures that were drawn for a study and show something."""
    files = {name: study.folder / "figures" / f"{name}.svg" for name in FIGURES}
    return [name for name, file in files.items() if file.exists() and len(rows(name, study))]
