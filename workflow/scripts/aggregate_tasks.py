"""Aggregate task records into tasks.csv."""

from pathlib import Path

from llmstudy.runner import script as steps
from llmstudy.tables import tasks

with steps.step(snakemake.log[0]):  # noqa: F821 - Snakemake provides it
    tasks.write(snakemake.input.records, snakemake.params.references, Path(snakemake.output[0]))  # noqa: F821
