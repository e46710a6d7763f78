"""Tables of a study: which there are, what each is made of, and how one is written.

A table belongs to a module with ``COLUMNS[<table>]``, its columns in order, and a function of the table's name that
takes `Sources` and returns the rows as dictionaries. This file needs only the standard library: the workflow reads it.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from llmstudy.tables.columns import Column


@dataclass(frozen=True)
class Table:
    """The making of a table: its module below ``llmstudy``, the kinds of record and other tables that it reads, what a
    row is, its heading in Snakemake's HTML report, and whether it reads the arrays beside the records too."""

    module: str
    kinds: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    title: str = ""
    category: str = "Tables"
    arrays: bool = False


EXPLAINS = "Diagnostics"
TABLES = {
    "probes": Table("tables.probes", ("probe",), (), "A configuration alone, at a workload"),
    "processes": Table("tables.processes", ("panel",), (), "Times of a configuration in one process, at a workload"),
    "speed": Table("tables.speed", (), ("processes",), "Speed of a configuration at a workload"),
    "power": Table("tables.speed", (), ("processes",), "What the panels can tell apart"),
    "quality": Table("tables.quality", ("quality",), (), "Quality of a precision", arrays=True),
    "generations": Table("tables.generations", ("generations",), (), "Generated text of a prompt"),
    "text": Table("tables.generations", (), ("generations",), "Generated text over all prompts"),
    "summary": Table("tables.summary", (), ("speed", "probes", "quality"), "Verdict of a configuration", "Answer"),
    "advice": Table(
        "tables.advice", ("probe",), ("processes", "speed", "probes", "summary"), "What to take for a use", "Answer"
    ),
    "outliers": Table("tables.diagnostics", ("outliers",), (), "Outliers of a linear layer", EXPLAINS),
    "sensitivity": Table("tables.diagnostics", ("sensitivity",), (), "Loss by rounding a part", EXPLAINS),
    "invariance": Table("tables.diagnostics", ("invariance",), (), "Influence of neighbors", EXPLAINS),
    "profile": Table("tables.diagnostics", ("profile",), (), "Time of a decode step", EXPLAINS),
    "attention": Table("tables.diagnostics", ("attention",), (), "An attention kernel alone", EXPLAINS),
    "tasks": Table("tables.quality", ("tasks",), (), "Accuracy of a precision in a task", arrays=True),
    "crossover": Table("tables.crossover", ("attention",), ("processes",), "A change of leader", EXPLAINS),
    "capacity": Table("tables.capacity", ("probe", "capacity"), ("probes",), "Largest batch", EXPLAINS),
}


def every() -> dict[str, Table]:
    """Return all tables: those above, and one for each kind whose records none of them reads."""
    from llmstudy.kinds import KINDS

    read = {kind for table in TABLES.values() for kind in table.kinds}
    alone = {
        name: Table(kind.table, (name,), title=kind.title, category=EXPLAINS)
        for name, kind in KINDS.items()
        if kind.table and name not in read
    }
    return TABLES | alone


@dataclass(frozen=True)
class Sources:
    """The sources of a table: records with their ``path``, other tables by name, and what the study says of itself.

    ``study`` is what `config.Study.for_tables` returns: ``headline`` (per model the reference precision, and the
    workload, corpus and protocols of its rows in summary.csv), ``workloads``, ``limits``, ``margin_percent``, ``dense``
    (precisions without quantization), ``runtime`` (the library's), ``attention``, ``kernels`` and ``capacity``.
    """

    records: list[dict]
    tables: dict[str, pd.DataFrame]
    study: dict[str, Any]

    def of_kind(self, kind: str) -> list[dict]:
        """Return the records of one kind of measurement."""
        return [record for record in self.records if record["identity"]["kind"] == kind]

    def reference(self, model: str) -> str:
        """Return the precision that the others of a model are compared with."""
        return self.study["headline"][model]["reference"]

    def paired(self) -> list[tuple[dict, dict | None]]:
        """Return each record with that of its model's reference precision under the base runtime, None where there is
        none."""
        models = [record["identity"]["model"] for record in self.records]
        pairs = list(zip(models, self.records))
        base = {model: (self.reference(model), self.study["runtime"]) for model in models}
        references = {
            model: one
            for model, one in pairs
            if (one["identity"]["precision"], one["identity"]["runtime"]) == base[model]
        }
        return [(record, references.get(model)) for model, record in pairs]


def make(name: str, records: list[str], tables: dict[str, Path], study: dict, output: Path) -> None:
    """Write the table with a name in `every` to a CSV file, from the paths of the records of its kinds, of the tables
    that it reads by name, and what the study says of itself (see `Sources`)."""
    from llmstudy.tables.columns import read_table, write_table
    from llmstudy.tables.records import read_records

    sources = Sources(read_records(records), {key: read_table(path) for key, path in tables.items()}, study)
    table = every()[name]
    module = import_module(f"llmstudy.{table.module}")
    write_table(getattr(module, name)(sources), module.COLUMNS[name], output)


def columns_of(name: str) -> list[Column]:
    """Return the columns of a table in order."""
    return import_module(f"llmstudy.{every()[name].module}").COLUMNS[name]
