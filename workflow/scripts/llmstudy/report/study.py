"""Finished studies as the report reads them: tables and provenance, and the rows that tables and figures choose."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from llmstudy.errors import StudyError
from llmstudy.models import precisions
from llmstudy.tables import columns_of, every
from llmstudy.tables.columns import CONFIGURATION, PROTOCOL, WORKLOAD, read_table
from llmstudy.tables.memory import nearest_workload

NEEDED = ("speed.csv", "summary.csv", "provenance.json")


@dataclass(frozen=True)
class Study:
    """A finished study below ``results/``.

    Attributes:
        name: The name of its folder.
        folder: Relative to REPORT.md, as links need it.
        tables: Table name → frame; only tables that have rows.
        provenance: Content of provenance.json.
    """

    name: str
    folder: Path
    tables: dict[str, pd.DataFrame]
    provenance: dict

    def table(self, name: str, model: str | None = None) -> pd.DataFrame:
        """Return a table, or its rows of one model; without rows where the study has none."""
        empty = [column.name for column in columns_of(name)] if name not in self.tables else []
        rows = self.tables.get(name, pd.DataFrame(columns=empty))
        return rows if model is None else rows[rows["model"] == model]

    def measured(self, name: str, quantity: str, model: str | None = None) -> pd.DataFrame:
        """Return the rows of a table with status ok and a value of a quantity."""
        rows = self.table(name, model)
        return rows[(rows["status"] == "ok") & rows[quantity].notna()]

    @property
    def models(self) -> list[str]:
        """Models in the order of the config."""
        return list(self.provenance["headline"])

    def headline(self, model: str) -> dict[str, Any]:
        """Return the reference precision, workload, corpus and protocol of a model's rows in summary.csv."""
        return self.provenance["headline"][model]

    def is_synthetic(self, model: str) -> bool:
        """Return whether a model's weights are random."""
        return not self.provenance["models"][model]["real"]

    def label(self, model: str) -> str:
        """Return a model's name, marked where its weights are random."""
        return f"`{model}`" + " (synthetic weights)" * self.is_synthetic(model)

    def workload(self, model: str) -> str:
        """Return a model's headline workload in words."""
        headline = self.headline(model)
        return f"batch {headline['batch']}, prompt {headline['prompt_tokens']}, {headline['new_tokens']} new tokens"

    def file(self, table: str) -> str:
        """Return a link to the file of a table."""
        return f"[{table}.csv]({self.folder.as_posix()}/{table}.csv)"

    def device(self) -> str:
        """Return the device in a few words: the name of the GPU, or of the CPU and its threads."""
        environment = next(iter(self.provenance["environments"]), {})
        if "gpu" in environment:
            return environment["gpu"]["name"]
        threads = environment.get("threads")
        return f"CPU {environment.get('cpu', 'not recorded')}" + (
            f", {threads} thread{'s' * (threads > 1)}" if threads else ""
        )

    def at_headline(self, table: str, model: str | None = None, elsewhere: bool = False) -> pd.DataFrame:
        """Return the rows of speed.csv or memory.csv at each model's headline workload, or at all others. Memory,
        measured at fewer workloads, is at the nearest."""
        rows = self.table(table, model)
        parts = [rows.iloc[:0]]
        for name, own in rows.groupby("model", sort=False):
            headline = self.headline(name)
            here = pd.Series(nearest_workload(own, headline) if table == "memory" else headline)
            parts.append(own[(own[WORKLOAD] == here[WORKLOAD]).all(axis=1) != elsewhere])
        return pd.concat([part for part in parts if len(part)] or parts)

    def configurations(self, model: str | None = None) -> pd.DataFrame:
        """Return summary.csv, a row for each configuration, with the columns that speed.csv has besides."""
        summary, speed = self.table("summary", model), self.at_headline("speed", model)
        more = [column for column in speed if column not in summary]
        return summary.merge(speed[[*CONFIGURATION, *more]], how="left", on=CONFIGURATION)

    def at_protocol(self, model: str | None = None) -> pd.DataFrame:
        """Return the rows of quality.csv at each model's headline corpus and protocol."""
        rows = self.table("quality", model)
        for column in PROTOCOL:
            rows = rows[rows[column] == [self.headline(name)[column] for name in rows["model"]]]
        return rows


def load(folder: Path) -> Study:
    """Read a finished study. Tables without a row, and files that no table of this version has, are left out."""
    paths = {name: folder / f"{name}.csv" for name in every()}
    tables = {name: read_table(path) for name, path in paths.items() if path.exists()}
    provenance = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    return Study(folder.name, folder, {name: table for name, table in tables.items() if len(table)}, provenance)


def finished(results: Path) -> list[str]:
    """Return the names of the studies below ``results`` that have an answer and its provenance."""
    folders = (path.parent for path in results.glob(f"*/{NEEDED[0]}"))
    return sorted(folder.name for folder in folders if all((folder / name).exists() for name in NEEDED))


def in_report_order(names: Iterable[str], lead: list[str], configured: str) -> list[str]:
    """Return those that lead the report, then the configured one, then the rest by name."""
    names = set(names)
    return [name for name in dict.fromkeys([*lead, configured, *sorted(names)]) if name in names]


def fact(precision: str, attribute: str, default: Any = None) -> Any:
    """Return what the registry says of a precision; the default for one that it does not know."""
    try:
        return getattr(precisions.get(precision), attribute)
    except StudyError:
        return default


def of_family(rows: pd.DataFrame, family: str, own: bool | None = None) -> pd.DataFrame:
    """Return the rows of a family of precisions; of this project's alone, or of libraries' alone, if asked."""
    names = rows["precision"]
    kept = names.map(lambda name: fact(name, "family") == family and own in (None, fact(name, "own")))
    return rows[kept.astype(bool)]


def ordered(rows: pd.DataFrame, *then: str) -> pd.DataFrame:
    """Return rows by model as in the table, then by precision as in the registry, then by other columns."""
    models, names = list(dict.fromkeys(rows["model"])), precisions.in_order(rows["precision"])
    keys = rows.assign(model=rows["model"].map(models.index), precision=rows["precision"].map(names.index))
    return rows.loc[keys.sort_values(["model", "precision", *then], kind="stable").index]


def whole_text(rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows of quality.csv without those that were measured on the beginning of the text alone: a perplexity is
    not comparable with that of another text."""
    tokens = rows.groupby(["model", *PROTOCOL])["tokens"].transform("max")
    return rows[rows["tokens"].isna() | (rows["tokens"] == tokens)]


def fastest(rows: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Return of each group the measured row with the least TPOT, or the first where none was measured, in order."""
    chosen = []
    for _, group in rows.groupby(by, sort=False):
        tpot = group.loc[group["status"] == "ok", "tpot_ms"].dropna()
        chosen.append(group.index[0] if tpot.empty else tpot.astype(float).idxmin())
    return rows.loc[chosen]
