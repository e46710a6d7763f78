"""Aggregate memory records into memory.csv."""

from pathlib import Path

from llmstudy.runner import script as steps
from llmstudy.tables import memory

with steps.step(snakemake.log[0]):  # noqa: F821 - Snakemake provides it
    memory.write(snakemake.input.records, Path(snakemake.output[0]))  # noqa: F821
