"""Keep the reference's log-probabilities for as long as other precisions are compared with them."""

from llmstudy.runner import script as steps

steps.measure(snakemake)  # noqa: F821 - Snakemake provides it
