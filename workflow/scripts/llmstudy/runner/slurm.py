"""SLURM: what a head checks before it submits jobs, and what it leaves in the queue; time and memory of a job.

The head is the one Snakemake of a folder that submits jobs.
"""

from __future__ import annotations

import atexit
import fcntl
import getpass
import os
import re
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TextIO

from llmstudy.errors import StudyError

HEAD = ".snakemake/llmstudy-head"  # which process is a folder's head; locked as long as it lives

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


def start(folder: Path, tools: Path, partitions: set[str | None]) -> None:
    """Make this process the head of ``folder``, until it ends; StudyError where it cannot submit jobs now.

    Args:
        tools: the folder with an ``sacct`` for clusters without accounting.
        partitions: those that the jobs request.
    """
    file = hold(folder)
    check_partitions(partitions)
    check_nothing_queued(folder, file.read())
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()} since {datetime.now():%Y-%m-%d %H:%M}")
    file.flush()
    try:
        _ask("sacct", "--noheader", "--jobs", "1")
    except StudyError:
        os.environ["PATH"] = f"{tools}{os.pathsep}{os.environ['PATH']}"
    atexit.register(_end, folder, file)  # with the file: closing it would unlock it


def hold(folder: Path) -> TextIO:
    """Lock the file that names the head of ``folder`` and return it; StudyError while that head lives.

    The kernel unlocks it however the process ends. Some file systems have no locks, or none between hosts.
    """
    (folder / HEAD).parent.mkdir(exist_ok=True)
    file = (folder / HEAD).open("a+", encoding="utf-8")
    file.seek(0)
    with suppress(OSError):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StudyError(
                f"another Snakemake ({file.read()}) works in this folder, and the jobs in SLURM's queue are its own: "
                "wait for it, or end it with Ctrl-C, which cancels them; `--unlock` is for what a killed one left"
            ) from None
    return file


def _end(folder: Path, file: TextIO) -> None:
    """Cancel what the head leaves in the queue: the executor forgets its jobs while it asks for their states, so that
    a Ctrl-C in that moment cancels none."""
    try:
        cancel([job for job in queued_jobs(folder) if job.state != "COMPLETING"])
    except StudyError as error:
        print(f"error: {error}; jobs may be left in SLURM's queue: python tools/settle_jobs.py list", file=sys.stderr)


def check_nothing_queued(folder: Path, head: str = "") -> None:
    """Raise StudyError while jobs that ``head``, the last one of ``folder``, submitted are queued: Snakemake does not
    know them and would submit them a second time."""
    jobs = queued_jobs(folder)
    if jobs:
        named = "; ".join(map(str, jobs[:SHOWN_JOBS])) + ("; …" if len(jobs) > SHOWN_JOBS else "")
        submitter = f"Their Snakemake was {head}: make sure that it has ended. " if head else ""
        raise StudyError(
            f"jobs of an earlier run in this folder are still in SLURM's queue: {len(jobs)} ({named}); started now, "
            f"they would run twice. {submitter}Let them finish with "
            "`python tools/settle_jobs.py wait` or end them with `python tools/settle_jobs.py cancel`, then start again"
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
