"""What the workflow's scripts share: from Snakemake's object to a call of this library."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llmstudy.errors import StudyError
from llmstudy.runner import record as records
from llmstudy.runner import slurm

# What a SLURM job's memory must hold beside the data that the limit on the child counts, MB: the two nested Snakemakes
# (near 200 each), the parent (30) and the code of the libraries that the child maps (170, which SLURM counts too).
UNCOUNTED_MB = 700
# What is kept of a SLURM job's time to write the record: seconds, but at most this share of what is left.
WRITING_S = 60
WRITING_SHARE = 0.25


@contextmanager
def step(log: str) -> Iterator[None]:
    """Send output to the rule's log; a mistake of the user ends the step with its one line, without a traceback."""
    terminal = sys.stderr
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    with Path(log).open("a", buffering=1) as stream:
        sys.stdout = sys.stderr = stream
        try:
            yield
        except StudyError as error:
            print(f"error: {error}", file=stream)
            print(f"error: {error}", file=terminal)
            sys.exit(1)
        finally:
            sys.stdout, sys.stderr = sys.__stdout__, terminal


def measure(snakemake) -> None:
    """Run the measuring job of a rule: ``params.job``, ``output.record`` and any other named output as an artifact.

    What it may take comes with its resources, since it changes no number: a change of theirs reruns nothing.
    """
    asked = {"seconds": snakemake.resources["limit_s"], "oom_attempts": snakemake.resources["oom_attempts"]}
    job = snakemake.params.job | {"limits": granted(asked, snakemake.resources)}
    record = Path(snakemake.output.record)
    artifacts = {artifact_name(Path(path), record): Path(path) for path in snakemake.output if Path(path) != record}
    with step(snakemake.log[0]):
        records.measure(job, record, Path(snakemake.log[0]), artifacts, snakemake.resources.get("attempt", 1))


def artifact_name(output: Path, record: Path) -> str:
    """What the measuring process calls an output: ``arrays`` and its suffix if it is named after the record."""
    return f"arrays{output.suffix}" if output.stem == record.stem else output.name


def granted(limits: dict, resources) -> dict:
    """The job's limits, tightened to what SLURM granted, so that the child ends before SLURM ends the whole job."""
    if "SLURM_JOB_ID" not in os.environ:
        return limits
    # Asked of SLURM: some of the job's time went by before this process started.
    left = slurm.seconds_left(os.environ["SLURM_JOB_ID"]) or resources.get("runtime", 1e9) * 60
    seconds = min(limits["seconds"], left - min(WRITING_S, WRITING_SHARE * left))
    megabytes = slurm.granted_mb(os.environ["SLURM_JOB_ID"])
    memory = {"host_memory_mb": max(1, megabytes - UNCOUNTED_MB)} if megabytes else {}
    return limits | {"seconds": seconds} | memory
