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


# name → entry; the module of the same name draws it.
FIGURES = {
    "trade_off": Entry(("summary",), "Answer", "Speed, memory and quality"),
    "latency": Entry(("summary", "latency"), "Speed", "TTFT and TPOT"),
    "bandwidth_floor": Entry(("latency",), "Speed", "TPOT above the bandwidth floor"),
    "batch": Entry(("latency",), "Speed", "Throughput against batch size"),
    "roofline": Entry(("latency",), "Speed", "Roofline"),
    "memory": Entry(("summary", "memory"), "Memory", "Memory by component"),
    "perplexity": Entry(("quality",), "Quality", "Perplexity"),
    "rulers": Entry(("quality",), "Quality", "KL divergence between its rulers"),
    "agreement": Entry(("samples",), "Quality", "Agreement of greedy text with the reference's"),
    "outliers": Entry(("outliers",), "Explanations", "Outlier ledger"),
    "sweep": Entry(("sweep",), "Explanations", "Threshold sweep of LLM.int8()"),
    "sensitivity": Entry(("sensitivity", "quality"), "Explanations", "Sensitivity to rounding"),
    "attention": Entry(("attention",), "Explanations", "Attention kernels"),
}


def module(name: str) -> ModuleType:
    """The module that draws a figure; imports matplotlib."""
    return import_module(f"llmstudy.report.figures.{name}")
