"""Aggregate latency records into latency.csv."""

from pathlib import Path

from llmstudy import steps
from llmstudy.tables import latency

with steps.step(snakemake.log[0]):  # noqa: F821 - Snakemake provides it
    latency.write(snakemake.input.records, Path(snakemake.output[0]))  # noqa: F821
