"""Finished studies as figures and report read them: tables, provenance and figures, in the order of the report."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from llmstudy.tables.columns import read_table

PROVENANCE = "provenance.json"
SUMMARY = "summary.csv"
SYNTHETIC = "synthetic weights"


@dataclass(frozen=True)
class Study:
    """A finished study as it lies under ``results/``.

    folder      relative to REPORT.md, as links need it
    tables      table name → frame; only tables that have rows
    provenance  content of provenance.json
    """

    name: str
    folder: Path
    tables: dict[str, pd.DataFrame]
    provenance: dict

    def table(self, name: str) -> pd.DataFrame:
        """A table; an empty frame where the study has none."""
        return self.tables.get(name, pd.DataFrame())

    @property
    def models(self) -> list[str]:
        """Models in the order of the config."""
        return list(self.provenance["headline"])

    def headline(self, model: str) -> dict:
        """Reference precision, workload, corpus and protocol of the model's rows in summary.csv."""
        return self.provenance["headline"][model]

    def is_synthetic(self, model: str) -> bool:
        """Whether the model's weights are random."""
        return not self.provenance["models"][model]["real"]

    def of_model(self, table: str, model: str) -> pd.DataFrame:
        """The rows of one model; an empty frame where there are none."""
        frame = self.table(table)
        return frame[frame["model"] == model] if len(frame) else frame


def load(folder: Path) -> Study:
    """Read a finished study; tables without a row are left out."""
    tables = {path.stem: read_table(path) for path in sorted(folder.glob("*.csv"))}
    provenance = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
    return Study(folder.name, folder, {name: table for name, table in tables.items() if len(table)}, provenance)


def finished(results: Path) -> list[str]:
    """Names of the studies under ``results`` that have a summary and say where it comes from."""
    return sorted(path.parent.name for path in results.glob(f"*/{SUMMARY}") if path.with_name(PROVENANCE).exists())


def in_order(names: Iterable[str], lead: list[str], configured: str) -> list[str]:
    """Those that lead the report, then the configured one, then the rest by name."""
    names = set(names)
    wanted = [*lead, configured, *sorted(names)]
    return [name for name in dict.fromkeys(wanted) if name in names]
