"""Run one measuring job in a child process and write its record; llmstudy/runner/script.py says how."""

from llmstudy.runner import script
from llmstudy.tables import settled

script.measure(snakemake, unneeded=settled.reason)  # noqa: F821 - Snakemake provides it
