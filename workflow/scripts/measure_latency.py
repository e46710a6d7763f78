"""Time TTFT, TPOT and end-to-end latency of one configuration."""

from llmstudy.runner import script as steps

steps.measure(snakemake)  # noqa: F821 - Snakemake provides it
