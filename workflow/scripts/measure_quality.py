"""Measure perplexity of one precision and its distance to the reference."""

from llmstudy import steps

steps.measure(snakemake)  # noqa: F821 - Snakemake provides it
