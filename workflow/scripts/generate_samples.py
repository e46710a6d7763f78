"""Generate greedy continuations of the study's prompts in one precision."""

from llmstudy.runner import script as steps

steps.measure(snakemake)  # noqa: F821 - Snakemake provides it
