"""Count the records of each model, and end the run with one line where a model has none that is ok."""

from pathlib import Path

from llmstudy.runner import script
from llmstudy.tables import outcome

with script.step(snakemake.log[0]):  # noqa: F821 - Snakemake provides it
    outcome.check(snakemake.input.records, Path(snakemake.output[0]))  # noqa: F821
