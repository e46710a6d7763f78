"""Render REPORT.md and the details of the study from its tables, or a first answer from the records that are there."""

import sys
from pathlib import Path

from llmstudy.report import render
from llmstudy.runner import script

with script.step(snakemake.log[0]):  # noqa: F821 - Snakemake provides it
    sources, params, output = snakemake.input, snakemake.params, snakemake.output  # noqa: F821
    if params.get("settings"):
        text = render.first(sources.records, params.settings, sources.manifests, params.config, Path(output[0]))
        print(text, file=sys.__stderr__)
    else:
        render.write(Path("results"), params.study, report=Path(output.report), details=Path(output.details))
