"""Predict the largest batch that fits the device, beside what verified it: capacity.csv from memory.csv."""

from pathlib import Path

from llmstudy.runner import script as steps
from llmstudy.tables import capacity

with steps.step(snakemake.log[0]):  # noqa: F821 - Snakemake provides it
    capacity.write(
        Path(snakemake.input.memory),  # noqa: F821
        snakemake.input.records,  # noqa: F821
        snakemake.input.verified,  # noqa: F821
        snakemake.params.contexts,  # noqa: F821
        snakemake.params.device_gib,  # noqa: F821
        Path(snakemake.output[0]),  # noqa: F821
    )
