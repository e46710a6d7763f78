"""Render REPORT.md and the details of the study from its tables."""

from pathlib import Path

from llmstudy.report import render
from llmstudy.runner import script

with script.step(snakemake.log[0]):  # noqa: F821 - Snakemake provides it
    render.write(
        results=Path("results"),
        name=snakemake.params.study,  # noqa: F821
        report=Path(snakemake.output.report),  # noqa: F821
        details=Path(snakemake.output.details),  # noqa: F821
    )
