"""Draw one figure of the study as SVG and PNG."""

from pathlib import Path

from llmstudy.report import figures
from llmstudy.runner import script

with script.step(snakemake.log[0]):  # noqa: F821 - Snakemake provides it
    figures.draw(
        snakemake.params.figure,  # noqa: F821
        folder=Path(snakemake.input.provenance).parent,  # noqa: F821
        svg=Path(snakemake.output.svg),  # noqa: F821
        png=Path(snakemake.output.png),  # noqa: F821
    )
