"""Run one measuring job in a child process and write its record; llmstudy/runner/script.py says how."""

from llmstudy.runner import script

script.measure(snakemake)  # noqa: F821 - Snakemake provides it
