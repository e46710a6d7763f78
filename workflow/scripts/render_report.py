"""Render REPORT.md from the tables of every finished study."""

from pathlib import Path

from llmstudy.report import render
from llmstudy.runner import script

with script.step(snakemake.log[0]):  # noqa: F821 - Snakemake provides it
    render.write(
        results=Path("results"),
        lead=snakemake.params.lead,  # noqa: F821
        configured=snakemake.params.study,  # noqa: F821
        output=Path(snakemake.output[0]),  # noqa: F821
    )
