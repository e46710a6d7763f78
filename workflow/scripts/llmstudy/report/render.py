"""REPORT.md: the templates of workflow/report, filled from the tables of every finished study."""

from __future__ import annotations

from pathlib import Path

import jinja2
import pandas as pd

from llmstudy.files import atomic_write
from llmstudy.report import (
    answer,
    diagrams,
    explanations,
    figures,
    findings,
    markdown,
    memory,
    precisions,
    quality,
    speed,
    ties,
)
from llmstudy.report import (
    provenance as machine,
)
from llmstudy.report.figures.plotting import shown
from llmstudy.report.study import Study, finished, in_order, load

TEMPLATES = Path(__file__).resolve().parents[3] / "report"
MASTER = "REPORT.md.j2"
PARTS = {
    "answer": answer,
    "diagrams": diagrams,
    "explanations": explanations,
    "findings": findings,
    "machine": machine,
    "markdown": markdown,
    "memory": memory,
    "precisions": precisions,
    "quality": quality,
    "speed": speed,
}


def write(results: Path, lead: list[str], configured: str, output: Path) -> None:
    """Render every finished study below ``results`` into ``output``, those of ``lead`` first.

    ``results`` is relative to the folder of ``output``, as the report's links need it.
    """
    studies = [load(results / name) for name in in_order(finished(results), lead, configured)]
    text = render(studies)
    with atomic_write(output) as file:
        file.write(text)


def render(studies: list[Study]) -> str:
    """The report of these studies, in this order."""
    every = joined(studies)
    drawn = {study.name: shown(study) for study in studies}
    return (
        environment()
        .get_template(MASTER)
        .render(
            studies=studies,
            tie=lambda name: ties.sentence(name, every),
            figure=lambda study, name: picture(study, name) if name in drawn[study.name] else "",
            **PARTS,
        )
    )


def picture(study: Study, name: str) -> str:
    """A figure by its relative path, with the title as its text, and its caption below."""
    path = f"{study.folder.as_posix()}/figures/{name}"
    return f"![{figures.FIGURES[name].title}, study {study.name}]({path}.svg)\n\n*{caption(name)}*"


def caption(name: str) -> str:
    """The caption that the figure has in the HTML report too, as Markdown in one line."""
    text = (TEMPLATES / "captions" / f"{name}.rst").read_text(encoding="utf-8")
    return " ".join(text.replace("``", "`").split())


def joined(studies: list[Study]) -> dict[str, pd.DataFrame]:
    """Each table over all studies, as the sentences of the background chapters take them.

    ``line``: where a row stands in its file, for links; not of generations.csv, whose texts run over several lines.
    """
    names = dict.fromkeys(name for study in studies for name in study.tables)
    parts = {name: [study.tables[name] for study in studies if name in study.tables] for name in names}
    return {
        name: pd.concat(tables if name == "generations" else map(numbered, tables), ignore_index=True)
        for name, tables in parts.items()
    }


def numbered(table: pd.DataFrame) -> pd.DataFrame:
    """A table with the line of its file that each row stands in, below the header's."""
    return table.assign(line=range(2, len(table) + 2))


def environment() -> jinja2.Environment:
    """Templates in which a forgotten name is an error and a line with a tag alone leaves no empty line."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
