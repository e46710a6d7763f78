"""Fail if a comparison found a change for the worse past its limit."""

from pathlib import Path

from llmstudy.errors import StudyError
from llmstudy.runner import script as steps

with steps.step(snakemake.log[0]):  # noqa: F821 - Snakemake provides it
    failures = Path(snakemake.input.failures).read_text().splitlines()  # noqa: F821
    if failures:
        raise StudyError(f"{len(failures)} changes past their limits: {'; '.join(failures)}")
    print("no change past its limit")
