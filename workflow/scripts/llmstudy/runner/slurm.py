"""Questions to SLURM: partitions, jobs of an earlier run that are still queued, time and memory of a job."""

from __future__ import annotations

import getpass
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from llmstudy.errors import StudyError

# Snakemake's executor names a job by a prefix and the UUID of its run.
_RUN_ID = re.compile(r"(^|_)[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")
_TIMEOUT_S = 60
SHOWN_JOBS = 3
# SLURM's units of memory, in its MB of 1024² bytes; a bare number is in MB.
_MB = {"K": 1 / 1024, "": 1, "M": 1, "G": 1024, "T": 1024**2}


@dataclass(frozen=True)
class QueuedJob:
    """A job in SLURM's queue."""

    number: str
    state: str
    what: str  # its rule and wildcards

    def __str__(self) -> str:
        return f"{self.number} {self.state} {self.what}"


def queued_jobs(folder: Path) -> list[QueuedJob]:
    """Return the user's unfinished jobs that a Snakemake in ``folder`` submitted; StudyError without an answer."""
    jobs = []
    for line in _ask("squeue", "--noheader", "--user", getpass.getuser(), "--format", "%i|%T|%j|%k|%Z").splitlines():
        number, state, name, what, where = line.split("|", 4)
        if _RUN_ID.search(name) and Path(where).resolve() == folder.resolve():
            jobs.append(QueuedJob(number, state, what))
    return jobs


def cancel(jobs: list[QueuedJob]) -> None:
    """Take jobs out of the queue, running or not; raises StudyError if SLURM refuses."""
    if jobs:
        _ask("scancel", *(job.number for job in jobs))


def check_nothing_queued(folder: Path) -> None:
    """Raise StudyError while jobs of an earlier run in ``folder`` are queued: Snakemake does not know them and would
    submit them a second time."""
    jobs = queued_jobs(folder)
    if jobs:
        named = "; ".join(map(str, jobs[:SHOWN_JOBS])) + ("; …" if len(jobs) > SHOWN_JOBS else "")
        raise StudyError(
            f"jobs of an earlier run in this folder are still in SLURM's queue: {len(jobs)} ({named}); started now, "
            "they would run twice. Let them finish with `python tools/settle_jobs.py wait` or end them with "
            "`python tools/settle_jobs.py cancel`, then start again"
        )


def check_partitions(wanted: set[str | None]) -> None:
    """Raise StudyError if a partition does not exist here; ``a,b`` asks for either, None for the cluster's default."""
    known = _ask("sinfo", "--noheader", "--all", "--format", "%R").split()
    missing = sorted({name for names in wanted if names for name in names.split(",")} - set(known))
    if missing:
        raise StudyError(
            f"slurm_partition: {missing[0]!r} is not a partition of this cluster; allowed: "
            f"{', '.join(sorted(set(known)))}; edit the lines marked SITE in slurm/config.yaml"
        )


def seconds_left(job: str) -> float | None:
    """Return the seconds until SLURM ends a job; None without a limit or an answer."""
    return parse_duration(_queued(job, "--format", "%L"))


def granted_mb(job: str) -> int | None:
    """Return the host memory that SLURM granted a job, MB; None without a grant or an answer.

    From the queue: Snakemake's executor removes SLURM_MEM_PER_NODE from the environment of what it starts.
    """
    memory = re.search(r"\bmem=([\d.]+)([KMGT]?)", _queued(job, "--Format", "tres-alloc:200"))
    return int(float(memory[1]) * _MB[memory[2]]) if memory else None


def parse_duration(text: str) -> float | None:
    """Return the seconds of SLURM's ``[days-][[hours:]minutes:]seconds``; None for words such as UNLIMITED."""
    parts = re.fullmatch(r"(?:(\d+)-)?(?:(?:(\d+):)?(\d+):)?(\d+)", text.strip())
    if not parts:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in parts.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


def _queued(job: str, *columns: str) -> str:
    """Return columns of a job from SLURM's queue; empty without an answer."""
    try:
        return _ask("squeue", "--noheader", "--jobs", job, *columns)
    except StudyError:
        return ""


def _ask(*command: str) -> str:
    """Return what a SLURM command prints."""
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StudyError(f"{command[0]}: {error}; is this a machine of the cluster?") from None
    if done.returncode:
        raise StudyError(f"{command[0]}: {' '.join(done.stderr.split()) or f'exit status {done.returncode}'}")
    return done.stdout
