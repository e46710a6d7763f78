"""Measure weights, KV cache and peak memory of one configuration."""

from llmstudy.runner import script as steps

steps.measure(snakemake)  # noqa: F821 - Snakemake provides it
