"""Summarise generations.csv over its prompts into text.csv."""

from pathlib import Path

from llmstudy.runner import script as steps
from llmstudy.tables import text

with steps.step(snakemake.log[0]):  # noqa: F821 - Snakemake provides it
    text.write(
        Path(snakemake.input.samples),  # noqa: F821
        snakemake.params.reference,  # noqa: F821
        Path(snakemake.output[0]),  # noqa: F821
    )
