"""Measure perplexity of one precision and its distance to the reference."""

from llmstudy.runner import script as steps

steps.measure(snakemake)  # noqa: F821 - Snakemake provides it
