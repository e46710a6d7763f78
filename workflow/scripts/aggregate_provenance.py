"""Aggregate what the records say of commit, versions and hardware."""

from pathlib import Path

from llmstudy.runner import script as steps
from llmstudy.tables import provenance

with steps.step(snakemake.log[0]):  # noqa: F821 - Snakemake provides it
    provenance.write(
        paths=snakemake.input.records,  # noqa: F821
        missing=snakemake.params.missing,  # noqa: F821
        manifests=snakemake.input.manifests,  # noqa: F821
        config=snakemake.params.config,  # noqa: F821
        headline=snakemake.params.headline,  # noqa: F821
        output=Path(snakemake.output[0]),  # noqa: F821
    )
