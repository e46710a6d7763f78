"""Finished studies as the report reads them: tables and provenance, and the rows that tables and figures choose."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from llmstudy.errors import StudyError
from llmstudy.llama import without_bos
from llmstudy.models import precisions
from llmstudy.tables import columns_of, every
from llmstudy.tables.columns import CONFIGURATION, PROTOCOL, WORKLOAD, read_table

NEEDED = ("speed.csv", "summary.csv", "advice.csv", "provenance.json")
FOUR_BIT_FILE = re.compile(r"\bI?Q4_")  # formats of GGUF


class Claim(NamedTuple):
    """A claim of the report: its heading, the sentences that carry it, and the figure or table that shows it."""

    heading: str
    text: str
    figure: str = ""
    table: str | None = None


@dataclass(frozen=True)
class Study:
    """A finished study below ``results/``.

    Attributes:
        name: The name of its folder.
        folder: Relative to the page that is rendered, as links need it.
        tables: Table name → frame; only tables that have rows.
        provenance: Content of provenance.json.
        figures: Names of the figures that were drawn.
    """

    name: str
    folder: Path
    tables: dict[str, pd.DataFrame]
    provenance: dict
    figures: tuple[str, ...] = ()

    def table(self, name: str, model: str | None = None, again: bool = False) -> pd.DataFrame:
        """Return a table, or its rows of one model; without rows where the study has none. Of processes.csv and
        speed.csv the rows of the reference's second call in each round are left out, or returned alone (``again``)."""
        empty = [column.name for column in columns_of(name)] if name not in self.tables else []
        rows = self.tables.get(name, pd.DataFrame(columns=empty))
        if "again" in rows:
            rows = rows[(rows["again"] == "yes") == again]
        return rows if model is None else rows[rows["model"] == model]

    def measured(self, name: str, quantity: str, model: str | None = None) -> pd.DataFrame:
        """Return the rows of a table with status ok and a value of a quantity, which an older table may not have."""
        rows = self.table(name, model)
        return rows[(rows["status"] == "ok") & rows[quantity].notna()] if quantity in rows else rows.iloc[:0]

    @property
    def models(self) -> list[str]:
        """Return the models in the order of the config."""
        return list(dict.fromkeys(self.table("summary")["model"]))

    def headline(self, model: str) -> dict[str, Any]:
        """Return the reference precision, workload, corpus and protocol of a model's rows in summary.csv."""
        return self.provenance["headline"][model]

    def margin_percent(self, quantity: str) -> float:
        """Return the margin within which two configurations count as the same."""
        return self.provenance["config"]["verdict"]["margin_percent"][quantity]

    def is_synthetic(self, model: str) -> bool:
        """Return whether a model's weights are random."""
        return "synthetic" in set(self.table("summary", model)["weights"])

    def label(self, model: str) -> str:
        """Return a model's name, marked where its weights are random."""
        return f"`{model}`" + " (synthetic weights)" * self.is_synthetic(model)

    def was_four_bit(self, model: str) -> bool:
        """Return whether a model's weights were published in 4 bit, so that a 4-bit precision quantizes them twice."""
        return bool(FOUR_BIT_FILE.search(self.provenance.get("models", {}).get(model, {}).get("fetched_note") or ""))

    def is_twice(self, row: pd.Series) -> bool:
        """Return whether the weights of a row were quantized to 4 bit a second time."""
        return fact(row["precision"], "family") == "4-bit" and self.was_four_bit(row["model"])

    def quantized_share(self, row: pd.Series) -> float:
        """Return the share of the decoder's weights that the precision of a row quantized; 0 where none was measured.
        It is that of a probe, or of a quality measurement alone."""
        for name in ("summary", "quality"):
            own = self.table(name, row["model"])
            if len(found := own.loc[own["precision"] == row["precision"], "quantized_share"].dropna()):
                return float(found.iloc[0])
        return 0.0

    def file(self, table: str) -> str:
        """Return a link to the file of a table."""
        return f"[{table}.csv]({(self.folder / table).as_posix()}.csv)"

    @property
    def page(self) -> str:
        """Return the path of the page with everything that was measured."""
        return f"{self.folder.as_posix()}/details.md"

    @property
    def on_gpu(self) -> bool:
        """Return whether it was measured on a GPU."""
        return "cuda" in set(self.table("summary")["device"])

    def device(self) -> str:
        """Return the device in a few words: the name of the GPU, or of the CPU and its threads."""
        environment = next(iter(self.provenance["environments"]), {})
        if "gpu" in environment:
            return environment["gpu"]["name"]
        threads = environment.get("threads")
        used = f", {threads} thread{'s' * (threads > 1)}" if threads else ""
        return f"CPU {environment.get('cpu', 'not recorded')}{used}"

    def at_headline(self, table: str, columns: list[str] = WORKLOAD) -> pd.DataFrame:
        """Return the rows of a table at each model's headline workload, or corpus and protocol."""
        rows = self.table(table)
        for column in columns:
            alike = without_bos if column == "protocol" else lambda value: value
            rows = rows[rows[column].map(alike) == [alike(self.headline(name)[column]) for name in rows["model"]]]
        return rows

    def configurations(self) -> pd.DataFrame:
        """Return the rows of summary.csv that were measured, with the columns that speed.csv has besides."""
        summary, speed = self.measured("summary", "tpot_ms"), self.at_headline("speed")
        more = [column for column in speed if column not in summary]
        return summary.merge(speed[[*CONFIGURATION, *more]], how="left", on=CONFIGURATION)


def load(folder: Path) -> Study:
    """Read a study, without tables that have no row; one that still runs has no provenance. Columns that an older
    version did not write are there, and empty."""
    paths = {name: folder / f"{name}.csv" for name in every()}
    tables = {name: table for name, path in paths.items() if path.exists() and len(table := read_table(path))}
    for name, table in tables.items():
        tables[name] = table.reindex(columns=[*table, *(c.name for c in columns_of(name) if c.name not in table)])
    origin = folder / "provenance.json"
    provenance = json.loads(origin.read_text(encoding="utf-8")) if origin.exists() else {}
    return Study(folder.name, folder, tables, provenance, tuple(path.stem for path in folder.glob("figures/*.svg")))


def finished(results: Path) -> list[str]:
    """Return the names of the studies below ``results`` that have an answer and its provenance."""
    folders = (path.parent for path in results.glob(f"*/{NEEDED[0]}"))
    return sorted(folder.name for folder in folders if all((folder / name).exists() for name in NEEDED))


def fact(precision: str, attribute: str, default: Any = None) -> Any:
    """Return what the registry says of a precision; the default for one that it does not know."""
    try:
        return getattr(precisions.get(precision), attribute)
    except StudyError:
        return default


def quantized(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows whose precision stores weights in fewer than 16 bits."""
    return rows[rows["precision"].map(lambda name: fact(name, "family") != "dense").astype(bool)]


def sizes(rows: pd.DataFrame) -> list[str]:
    """Return the workload of each row in short: "8 × (512 + 256)" is batch 8, 512 prompt tokens, 256 new ones."""
    return [f"{row.batch:.0f} × ({row.prompt_tokens:.0f} + {row.new_tokens:.0f})" for row in rows.itertuples()]


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
