"""REPORT.md: the templates of workflow/report, filled from the tables of every finished study."""

from __future__ import annotations

import re
from pathlib import Path

import jinja2

from llmstudy.files import atomic_write
from llmstudy.report import answer, diagnostics, diagrams, figures, markdown, memory, provenance, quality, speed
from llmstudy.report.study import Study, finished, in_report_order, load

TEMPLATES = Path(__file__).resolve().parents[3] / "report"
SUBJECTS = (answer, diagnostics, diagrams, markdown, memory, provenance, quality, speed)


def write(results: Path, lead: list[str], configured: str, output: Path) -> None:
    """Render every finished study below ``results`` into ``output``, those of ``lead`` first.

    ``results`` is relative to the folder of ``output``, as the report's links need it.
    """
    text = render([load(results / name) for name in in_report_order(finished(results), lead, configured)])
    with atomic_write(output) as file:
        file.write(text)


def render(studies: list[Study]) -> str:
    """Return the report of these studies, in this order. What has nothing to say leaves no empty lines."""
    drawn = {study.name: figures.shown(study) for study in studies}

    def figure(study: Study, name: str) -> str | None:
        return picture(study, name) if name in drawn[study.name] else None

    def files(table: str) -> str:
        having = [study for study in studies if table in study.tables]
        links = ", ".join(f"[{study.name}]({study.folder.as_posix()}/{table}.csv)" for study in having)
        return f"`{table}.csv`" + (f" ({links})" if links else "")

    subjects = {module.__name__.rpartition(".")[2]: module for module in SUBJECTS}
    helpers = {"figure": figure, "files": files}
    text = environment().get_template("REPORT.md.j2").render(studies=studies, **helpers, **subjects)
    return re.sub(r"\n{3,}", "\n\n", text)


def picture(study: Study, name: str) -> str:
    """Return a figure by its relative path, with its title as alternative text, and its caption below."""
    path = (study.folder / "figures" / f"{name}.svg").as_posix()
    return f"![{figures.FIGURES[name].title}, study {study.name}]({path})\n\n*{caption(name)}*"


def caption(name: str) -> str:
    """Return the caption that a figure has in the HTML report too, as Markdown in one line."""
    text = (TEMPLATES / "captions" / f"{name}.rst").read_text(encoding="utf-8")
    return " ".join(text.replace("``", "`").split())


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
