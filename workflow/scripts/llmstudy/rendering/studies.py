"""The studies that a report tells of: their tables, provenance and figures, and the order they stand in."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from llmstudy.tables.common import read_table

PROVENANCE = "provenance.json"
SUMMARY = "summary.csv"


@dataclass(frozen=True)
class Study:
    """A finished study as it lies under ``results/``.

    folder      relative to REPORT.md, as links need it
    tables      table name → frame; only tables that have rows
    provenance  content of provenance.json
    figures     names of the figures that show something
    """

    name: str
    folder: str
    tables: dict[str, pd.DataFrame]
    provenance: dict
    figures: tuple[str, ...] = field(default=())

    def link(self, table: str) -> str:
        """Markdown link to a table's file."""
        return f"[{table}.csv]({self.folder}/{table}.csv)"

    def table(self, name: str) -> pd.DataFrame:
        """A table, empty where the study has none."""
        return self.tables.get(name, pd.DataFrame())

    def reference(self, model: str) -> str:
        """The precision that the model's others are compared with."""
        return self.provenance["focus"][model]["reference"]

    def models(self) -> Iterator[str]:
        """Models in the order of the config."""
        present = set(self.tables["summary"]["model"])
        return (model for model in self.provenance["focus"] if model in present)

    def is_synthetic(self, model: str) -> bool:
        """Whether the model's weights are random."""
        rows = self.tables["summary"]
        return bool((rows.loc[rows["model"] == model, "weights"] == "synthetic").all())


def load(folder: Path) -> Study:
    """Read a finished study; tables without a row are left out."""
    tables = {path.stem: read_table(path) for path in sorted(folder.glob("*.csv"))}
    provenance = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
    figures = tuple(path.stem for path in sorted((folder / "figures").glob("*.svg")))
    kept = {name: table for name, table in tables.items() if len(table)}
    return Study(folder.name, folder.as_posix(), kept, provenance, figures)


def finished(results: Path) -> list[str]:
    """Names of the studies under ``results`` that have a summary and say where it comes from."""
    return sorted(path.parent.name for path in results.glob(f"*/{SUMMARY}") if path.with_name(PROVENANCE).exists())


def in_order(names: Iterable[str], lead: list[str], configured: str) -> list[str]:
    """Those that lead the report, then the configured one, then the rest by name."""
    names = set(names)
    wanted = [*lead, configured, *sorted(names)]
    return [name for name in dict.fromkeys(wanted) if name in names]
