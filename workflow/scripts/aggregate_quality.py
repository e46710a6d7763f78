"""Aggregate quality records into quality.csv."""

from pathlib import Path

from llmstudy.runner import script as steps
from llmstudy.tables import quality

with steps.step(snakemake.log[0]):  # noqa: F821 - Snakemake provides it
    quality.write(snakemake.input.records, snakemake.params.reference, Path(snakemake.output[0]))  # noqa: F821
