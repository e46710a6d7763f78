"""Measure LLM.int8() at one outlier threshold."""

from llmstudy.runner import script as steps

steps.measure(snakemake)  # noqa: F821 - Snakemake provides it
