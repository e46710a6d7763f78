"""Run a batch just below and one just above the largest that the memory record predicts to fit."""

from llmstudy.runner import script as steps

steps.measure(snakemake)  # noqa: F821 - Snakemake provides it
