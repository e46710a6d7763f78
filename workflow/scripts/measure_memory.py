"""Measure weights, KV cache and peak memory of one configuration."""

from llmstudy import steps

steps.measure(snakemake)  # noqa: F821 - Snakemake provides it
