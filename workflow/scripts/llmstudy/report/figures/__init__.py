"""Figures: one module each, with ``rows(study)``, what it shows, and ``draw(rows)``, how.

``rows`` gives a DataFrame, empty where the study has nothing for the figure; ``draw`` gives a matplotlib Figure.
Importing this package does not import matplotlib: the workflow reads the list of figures while it is parsed.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from types import ModuleType


@dataclass(frozen=True)
class Entry:
    """A figure: the tables it is drawn from and where it stands in the HTML report."""

    tables: tuple[str, ...]
    category: str
    title: str
    module: str = "report.figures.plotting"


# name → entry; the module of the same name draws it.
FIGURES = {
    "trade_off": Entry(("summary",), "Answer", "Speed, memory and quality"),
    "speed": Entry(("summary", "processes"), "Speed", "TTFT and TPOT"),
    "bandwidth_floor": Entry(("processes",), "Speed", "TPOT above the bandwidth floor"),
    "batch": Entry(("processes",), "Speed", "Throughput against batch size"),
    "roofline": Entry(("processes",), "Speed", "Roofline"),
    "memory": Entry(("summary", "memory"), "Memory", "Memory by component"),
    "perplexity": Entry(("quality",), "Quality", "Perplexity"),
    "divergence": Entry(("quality",), "Quality", "KL divergence from the reference"),
    "agreement": Entry(("generations",), "Quality", "Agreement of greedy text with the reference's"),
    "outliers": Entry(("outliers",), "Explanations", "Outlier ledger"),
    "sensitivity": Entry(("sensitivity", "quality"), "Explanations", "Sensitivity to rounding"),
    "attention": Entry(("attention",), "Explanations", "Attention kernels"),
}


def module(name: str) -> ModuleType:
    """The module that draws a figure; imports matplotlib."""
    return import_module(f"llmstudy.report.figures.{name}")
