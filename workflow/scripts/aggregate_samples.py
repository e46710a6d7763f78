"""Aggregate samples records into generations.csv."""

from pathlib import Path

from llmstudy.runner import script as steps
from llmstudy.tables import generations as samples

with steps.step(snakemake.log[0]):  # noqa: F821 - Snakemake provides it
    samples.write(snakemake.input.records, snakemake.params.reference, Path(snakemake.output[0]))  # noqa: F821
