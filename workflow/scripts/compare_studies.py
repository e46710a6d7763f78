"""Compare two studies and write what changed."""

from pathlib import Path

from llmstudy.runner import script as steps
from llmstudy.tables import comparison

with steps.step(snakemake.log[0]):  # noqa: F821 - Snakemake provides it
    comparison.write(
        baseline=snakemake.params.baseline,  # noqa: F821
        candidate=snakemake.params.candidate,  # noqa: F821
        limits=snakemake.params.limits,  # noqa: F821
        table=Path(snakemake.output.table),  # noqa: F821
        failures=Path(snakemake.output.failures),  # noqa: F821
    )
