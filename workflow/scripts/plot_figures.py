"""Draw every figure for which the study has something to show, as SVG and PNG."""

from pathlib import Path

from llmstudy.report import figures
from llmstudy.runner import script

with script.step(snakemake.log[0]):  # noqa: F821 - Snakemake provides it
    figures.draw(Path(snakemake.input.provenance).parent, Path(snakemake.output[0]))  # noqa: F821
