"""The precisions of the registry, for readers."""

from __future__ import annotations

from llmstudy.models import precisions
from llmstudy.report import markdown

HEADER = ["precision", "what it is", "bits per linear weight", "computes in", "devices"]


def table(names: list[str] | None = None) -> str:
    """A row for each of ``names``, all by default."""
    rows = [
        [f"`{one.name}`", one.title, f"{one.weight_bits:g}", f"`{one.compute_dtype}`", ", ".join(one.devices)]
        for one in map(precisions.get, names or precisions.MODULES)
    ]
    return markdown.table(HEADER, rows, "lllll")
