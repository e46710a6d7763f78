"""The shared part of the workflow's scripts: from Snakemake's object to a call of this library."""

from __future__ import annotations

import getpass
import importlib.util
import json
import os
import site
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

from llmstudy.errors import NetworkTrouble, StudyError
from llmstudy.files import disk_full_named, write_json
from llmstudy.runner import record, slurm
from llmstudy.runner.job import Job, Limits

# What a SLURM job's memory must hold beside the data that the limit on the child counts, MB: the two nested Snakemakes
# (near 200 each), the parent (30) and the code of the libraries that the child maps (170, which SLURM counts too).
UNCOUNTED_MB = 700
# What is kept of a SLURM job's time to write the record: seconds, but at most this share of what is left.
WRITING_S = 60
WRITING_SHARE = 0.25
WAITS_S = (5, 30)  # before the second and the third try of a download
PLAN = "logs/plan.json"  # below the results of a study


@contextmanager
def step(log: str) -> Iterator[None]:
    """Send output to the rule's log; a user's mistake or a full disk ends the step with one line, without a traceback.

    The line goes to the terminal first: the log lies on the disk that may be full.
    """
    terminal = sys.stderr
    try:
        with disk_full_named(Path(log)):
            Path(log).parent.mkdir(parents=True, exist_ok=True)
            with Path(log).open("a", encoding="utf-8", buffering=1) as stream:
                sys.stdout = sys.stderr = stream
                try:
                    yield
                finally:
                    sys.stdout, sys.stderr = sys.__stdout__, terminal
    except StudyError as error:
        print(f"error: {error}", file=terminal)
        with suppress(OSError), Path(log).open("a", encoding="utf-8") as stream:
            print(f"error: {error}", file=stream)
        sys.exit(1)


def retrying(fetch: Callable[..., Any], *arguments) -> Any:
    """Return what ``fetch`` returns; call it again, after a while, where the network failed and nothing else."""
    for seconds in WAITS_S:
        try:
            return fetch(*arguments)
        except NetworkTrouble as error:
            print(f"{error}; trying again in {seconds} s", file=sys.stderr)
            time.sleep(seconds)
    return fetch(*arguments)


def measure(snakemake, unneeded: Callable[[list[Path], dict], str | None]) -> None:
    """Run the measuring job of a rule: ``params.job``, ``output.record`` and any other named output as an artifact.

    Where the job has records of earlier panels as ``input.panels``, ``unneeded(records, settings)`` may give a reason
    not to run it. Time and memory limits are resources of the rule, not params: they change no number, and a change of
    them reruns nothing.
    """
    resources = snakemake.resources
    limits = granted(Limits(resources["limit_s"], resources["oom_attempts"]), resources)
    job = replace(Job.from_dict(snakemake.params.job), limits=limits)
    target, log = Path(snakemake.output.record), Path(snakemake.log[0])
    others = [Path(path) for path in snakemake.output if Path(path) != target]
    # The child calls a file beside the record ``arrays``; a folder elsewhere takes all of its files.
    artifacts = {f"arrays{path.suffix}" if path.parent == target.parent else "": path for path in others}
    earlier = [Path(path) for path in snakemake.input.get("panels", [])]
    with step(snakemake.log[0]):
        if earlier and (reason := unneeded(earlier, job.settings)):
            record.skip(job, target, reason)
        else:
            record.measure(job, target, log, artifacts, resources.get("attempt", 1))
    print(progress(target), file=sys.stderr)


def isolate(deployment: Iterable) -> None:
    """Keep packages in the user's home (``~/.local``) out of conda environments, and give a user without a name, as in
    containers, his number for one: for this process, as Snakemake asks for it, and all that it starts.

    Python prefers them to those of an environment, and pip, which fills it, leaves out what it finds there. Not where
    Snakemake lies there itself: its jobs would not find it.

    Args:
        deployment: Snakemake's methods of software deployment.
    """
    at_home = importlib.util.find_spec("snakemake").origin.startswith(f"{site.getusersitepackages()}{os.sep}")
    if any(method.name == "CONDA" for method in deployment) and not at_home:
        os.environ["PYTHONNOUSERSITE"] = "1"
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["USER"] = str(os.getuid())


def plan(results: str, outputs: list[str]) -> None:
    """Write down which records a run will measure, so that each job can say what is left."""
    write_json(Path(results, PLAN), [path for path in outputs if path.startswith(f"{results}/records/")])


def progress(target: Path) -> str:
    """Return one line about a record that was written: what became of it, and what this run has left."""
    done = record.read(target)
    kind, seconds = done["identity"]["kind"], done["provenance"].get("wall_s", 0)
    line = f"{kind} {done['identity']['model']} {target.stem}: {done['status']}, {seconds:.0f} s"
    file = target.parents[3] / PLAN
    if not file.exists():
        return line
    planned = [Path(path) for path in json.loads(file.read_text(encoding="utf-8")) if path.endswith(".json")]
    began = file.stat().st_mtime
    ended = {path: path.stat().st_mtime for path in planned if path.exists()}
    measured = sorted((end, path) for path, end in ended.items() if end >= began)
    took: dict[str, list[float]] = {}  # by kind: from one record of this run to the next
    for (before, _), (end, path) in pairwise([(began, target), *measured]):
        took.setdefault(path.parts[-3], []).append(end - before)
    usual = (measured[-1][0] - began) / len(measured) if measured else 0
    done_now = {path for _, path in measured}
    left = Counter(path.parts[-3] for path in planned if path not in done_now)
    needed = sum(count * (fmean(took[name]) if name in took else usual) for name, count in left.items())
    if not left:
        return f"{line}; nothing is left to measure"
    rest = ", ".join(f"{count} {name}" for name, count in left.items())
    return f"{line}; left: {rest}, about {max(1, round(needed / 60))} min"


def granted(limits: Limits, resources) -> Limits:
    """Return the job's limits, tightened to what SLURM granted, so that the child ends before SLURM ends the job."""
    if "SLURM_JOB_ID" not in os.environ:
        return limits
    # From SLURM's queue: some of the job's time went by before this process started.
    left = slurm.seconds_left(os.environ["SLURM_JOB_ID"]) or resources.get("runtime", 1e9) * 60
    seconds = min(limits.seconds, left - min(WRITING_S, WRITING_SHARE * left))
    megabytes = slurm.granted_mb(os.environ["SLURM_JOB_ID"])
    return Limits(seconds, limits.oom_attempts, max(1, megabytes - UNCOUNTED_MB) if megabytes else None)
