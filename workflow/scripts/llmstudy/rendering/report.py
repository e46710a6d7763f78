"""REPORT.md: the templates of workflow/report, filled from the tables of every finished study."""

from __future__ import annotations

from pathlib import Path

import jinja2
import pandas as pd

from llmstudy import figures, ties
from llmstudy.figures.plotting import shown
from llmstudy.files import atomic_write
from llmstudy.rendering import answer, diagrams, explanations, findings, machine, markdown, memory, quality, speed
from llmstudy.studies import Study, finished, in_order, load

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
    """A figure by its relative path, with the title as its text."""
    path = f"{study.folder.as_posix()}/figures/{name}"
    return f"![{figures.FIGURES[name].title}, study {study.name}]({path}.svg)"


def joined(studies: list[Study]) -> dict[str, pd.DataFrame]:
    """Each table over all studies, as the sentences of the background chapters take them."""
    names = dict.fromkeys(name for study in studies for name in study.tables)
    return {
        name: pd.concat([study.tables[name] for study in studies if name in study.tables], ignore_index=True)
        for name in names
    }


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
