"""Judge every configuration against the reference and recommend one per model."""

from pathlib import Path

from llmstudy.runner import script as steps
from llmstudy.tables import summary

with steps.step(snakemake.log[0]):  # noqa: F821 - Snakemake provides it
    summary.write(
        folder=Path(snakemake.output.summary).parent,  # noqa: F821
        headline=snakemake.params.headline,  # noqa: F821
        limits=snakemake.params.limits,  # noqa: F821
        smallest=snakemake.params.smallest,  # noqa: F821
    )
