"""Aggregate sweep records into sweep.csv."""

from pathlib import Path

from llmstudy.runner import script as steps
from llmstudy.tables import sweep

with steps.step(snakemake.log[0]):  # noqa: F821 - Snakemake provides it
    sweep.write(
        snakemake.input.records,  # noqa: F821
        snakemake.input.quality,  # noqa: F821
        snakemake.params.reference,  # noqa: F821
        Path(snakemake.output[0]),  # noqa: F821
    )
