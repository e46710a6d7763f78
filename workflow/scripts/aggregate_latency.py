"""Aggregate latency records into processes.csv."""

from pathlib import Path

from llmstudy.runner import script as steps
from llmstudy.tables import processes as latency

with steps.step(snakemake.log[0]):  # noqa: F821 - Snakemake provides it
    latency.write(snakemake.input.records, Path(snakemake.output[0]))  # noqa: F821
