"""Measure the accuracy of one precision in tasks of lm-eval."""

from llmstudy.runner import script as steps

steps.measure(snakemake)  # noqa: F821 - Snakemake provides it
