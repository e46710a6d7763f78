"""REPORT.md, the answer of one study, and its details.md: the templates of workflow/report, filled from its tables."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import jinja2

from llmstudy.files import atomic_write
from llmstudy.kinds import KINDS
from llmstudy.report import answer, diagnostics, figures, markdown, memory, provenance, quality, speed
from llmstudy.report.study import Claim, Study, finished, load, ordered
from llmstudy.tables import TABLES, columns_of, every, make
from llmstudy.tables.columns import CONFIGURATION, Column
from llmstudy.tables.provenance import write as write_provenance

TEMPLATES = Path(__file__).resolve().parents[3] / "report"
SUBJECTS = (answer, diagnostics, markdown, memory, provenance, quality, speed)
GRADED = ("quality", "text", "generations", "tasks", "invariance")  # where a row is about what a precision loses
EARLY = ("probes", "processes", "speed", "quality", "summary", "advice")  # the tables of a first answer
NOTED = Column("noted", "precision", "markdown")
# What the numbers show, in the order in which it is read.
CLAIMS = (speed.launches, speed.bytes_read, speed.batches, memory.fits, quality.distance, diagnostics.kernels)


def write(results: Path, name: str, report: Path, details: Path) -> None:
    """Render the study ``name`` below ``results`` into ``report``, and all that it measured into ``details``.

    Paths are relative to the folder of ``report``, as its links need them. Other finished studies have a line there.
    """
    study = load(results / name)
    others = [load(results / other) for other in finished(results) if other != name]
    for text, output in ((render(study, others), report), (render_details(study), details)):
        with atomic_write(output) as file:
            file.write(text)


def first(records: list[str], settings: dict, manifests: list[str], config: dict, output: Path) -> str:
    """Write the answer's table of the records that a study has so far, and return it.

    ``settings`` and ``config`` are what tables and provenance.json need to know of the study.
    """
    with TemporaryDirectory(prefix="llmstudy-") as temporary:
        folder = Path(temporary)
        for name in EARLY:
            own = [path for path in records if Path(path).parts[-3] in TABLES[name].kinds]
            make(
                name,
                own,
                {table: folder / f"{table}.csv" for table in TABLES[name].tables},
                settings,
                folder / f"{name}.csv",
            )
        write_provenance(records, [], manifests, config, settings["headline"], folder / "provenance.json")
        study = replace(load(folder), name=config["study"], folder=Path("."))
        text = "\n\n".join(f"{study.label(model)}:\n\n{answer.advice(study, model)}" for model in study.models)
    with atomic_write(output) as file:
        file.write(f"{text}\n")
    return text


def render(study: Study, others: list[Study]) -> str:
    """Return REPORT.md."""
    return fill("REPORT.md.j2", study, others=others, claims=claims(study))


def render_details(study: Study) -> str:
    """Return details.md, which lies beside the study's tables."""
    root = os.path.relpath(".", study.folder)
    return fill("details.md.j2", replace(study, folder=Path(".")), root=f"{root}/", unknown=unknown)


def claims(study: Study) -> list[Claim]:
    """Return what the study has the data to claim."""
    return [found for claim in CLAIMS if (found := claim(study))]


def fill(template: str, study: Study, **more) -> str:
    """Return a template filled for a study. What has nothing to say leaves no empty lines."""

    def figure(name: str) -> str | None:
        return picture(study, name) if name in study.figures else None

    def table(name: str, model: str | None, names: str, values: str, *then: str) -> str | None:
        """Return columns of a table of a model, or of all, in the order of precisions and then of more columns."""
        rows = ordered(study.table(name, model), *then)
        twice = [study.is_twice(row) for _, row in rows.iterrows()]
        rows["noted"] = [f"`{name}`{', quantized twice' * mark}" for name, mark in zip(rows["precision"], twice)]
        noted = NOTED if name in GRADED else "precision"
        return markdown.table(rows, [noted if one == "precision" else one for one in names.split()], values.split())

    subjects = {module.__name__.rpartition(".")[2]: module for module in SUBJECTS}
    helpers = {"figure": figure, "table": table}
    text = environment().get_template(template).render(study=study, **helpers, **subjects, **more)
    return re.sub(r"\n{3,}", "\n\n", text)


def unknown(study: Study) -> Iterator[tuple[str, str, str | None]]:
    """Yield (table, title, Markdown) of each table that details.md has no section for, in full."""
    source = (TEMPLATES / "details.md.j2").read_text(encoding="utf-8")
    for name, declared in every().items():
        if name in study.tables and f'"{name}"' not in source:
            title = KINDS[name].title if name in KINDS else declared.title
            yield name, title, markdown.listing(study.table(name), CONFIGURATION, columns_of(name))


def picture(study: Study, name: str) -> str:
    """Return a figure by its relative path, with its title as alternative text, and its caption below."""
    path = (study.folder / "figures" / f"{name}.svg").as_posix()
    return f"![{figures.FIGURES[name].title}]({path})\n\n*{figures.caption(name).replace('``', '`')}*"


def environment() -> jinja2.Environment:
    """Return the templates' environment: a forgotten name is an error, None is nothing, a line with a tag alone leaves
    no empty line."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: "" if value is None else value,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
