"""Measure one of the extras: outliers, sensitivity, invariance, profile or attention."""

from llmstudy.runner import script as steps

steps.measure(snakemake)  # noqa: F821 - Snakemake provides it
