"""Aggregate the records of one extra into its table."""

from importlib import import_module
from pathlib import Path

from llmstudy.runner import script as steps

with steps.step(snakemake.log[0]):  # noqa: F821 - Snakemake provides it
    table = import_module(f"llmstudy.tables.{snakemake.wildcards.extra}")  # noqa: F821
    table.write(snakemake.input.records, Path(snakemake.output[0]))  # noqa: F821
