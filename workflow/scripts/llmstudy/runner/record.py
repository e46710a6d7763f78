"""The record: what one measuring job writes, whatever happens to the measurement.

identity    study, kind, model, weights (real | synthetic), precision, attention, runtime, repeat, device
status      ok | oom | overflow | unsupported | timeout | error, with a reason in one line and the traceback's tail;
            skipped for a panel that was not needed
settings    of the job: workloads, protocols, prompts
provenance  versions, hardware, git commit, times
results     what was measured, one entry per workload, protocol or prompt
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llmstudy.errors import StudyError
from llmstudy.files import atomic_write
from llmstudy.runner.job import Job
from llmstudy.runner.parent import Outcome, run_child
from llmstudy.runner.provenance import of_repository

SCHEMA = 3
STATUSES = ("ok", "oom", "overflow", "unsupported", "timeout", "error", "skipped")


def measure(job: Job, record: Path, log: Path, artifacts: dict[str, Path] | None = None, attempt: int = 1) -> None:
    """Run one measuring job in a child process, which appends to ``log``, and write its record.

    Args:
        artifacts: name of a file that the child may write → its path beside the record; one that the child did not
            write becomes an empty file, so that a failed measurement is still a finished job. An empty name means
            all of the child's files, published as one folder.
        attempt: number of this submission.

    Raises:
        StudyError: the job ran out of memory before attempt ``limits.oom_attempts``: the scheduler submits it again
            with more.
    """
    code = of_repository()  # before: somebody may commit meanwhile
    artifacts = artifacts or {}
    # Beside where large files go: publishing them is a rename then, and free space is that of the right disk.
    beside = next(iter(artifacts.values()), record).parent
    beside.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{record.stem}.", dir=beside) as temporary:
        folder = Path(temporary) / "files"
        folder.mkdir()
        outcome = run_child(job, log, folder)
        if outcome.status == "oom" and attempt < job.limits.oom_attempts:
            raise StudyError(
                f"{record}: out of memory in attempt {attempt} of {job.limits.oom_attempts} ({outcome.reason}); "
                "run again with more"
            )
        for name, target in artifacts.items():
            _publish(folder / name, target)
    write(compose(job, outcome, code, attempt), record)


def skip(job: Job, record: Path, reason: str) -> None:
    """Write the record of a measurement that is not needed."""
    write(compose(job, Outcome("skipped", reason), of_repository()), record)


def compose(job: Job, outcome: Outcome, code: dict, attempt: int = 1) -> dict[str, Any]:
    """Return the record of a job and its outcome; ``code``: the commit that measured (``provenance.of_repository``)."""
    result = outcome.result
    return {
        "schema": SCHEMA,
        "identity": asdict(job.identity) | {"device": result.get("device", job.device)},
        "status": outcome.status,
        "reason": outcome.reason,
        "traceback": result.get("traceback", []),
        "attempt": attempt,
        "settings": job.settings,
        "provenance": result.get("provenance", {}) | code | {"wall_s": outcome.wall_s},
        "results": result.get("results", {}),
    }


def write(record: dict, path: Path) -> None:
    """Write a record atomically."""
    text = json.dumps(record, indent=1, sort_keys=True, allow_nan=False)
    # A list of numbers on one line: a panel has thousands of times between tokens.
    text = re.sub(r"\[\n\s*([-+.\de][-+.\de,\s]*?)\n\s*\]", lambda found: f"[{' '.join(found[1].split())}]", text)
    with atomic_write(path) as file:
        file.write(f"{text}\n")


def read(path: Path) -> dict:
    """Read a record; raise StudyError for any other file."""
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StudyError(f"{path}: not a readable record ({error}); delete it and run again") from None
    schema = record.get("schema") if isinstance(record, dict) else None
    if schema != SCHEMA:
        raise StudyError(f"{path}: record schema {schema!r}, allowed: {SCHEMA}; delete it and run again")
    return record


def _publish(made: Path, target: Path) -> None:
    """Give a file or folder of the child its name, in one step."""
    if target.is_dir():
        shutil.rmtree(target)
    if not made.exists():
        made.touch()
    made.replace(target)
