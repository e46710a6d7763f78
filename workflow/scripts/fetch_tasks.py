"""Bring the data sets of the study's tasks into the cache."""

from pathlib import Path

from llmstudy.fetch import tasks
from llmstudy.runner import script as steps

with steps.step(snakemake.log[0]):  # noqa: F821 - Snakemake provides it
    told = snakemake.params.tasks  # noqa: F821
    tasks.fetch_tasks(told["tasks"], told["include_path"], Path(snakemake.output[0]))  # noqa: F821
