"""The record: what one measuring job writes, whatever happens to the measurement.

identity    study, kind, model, weights (real | synthetic), precision, attention, runtime, repeat, device
status      ok | oom | unsupported | timeout | error, with a reason in one line and the traceback's tail
settings    what was asked for: workloads, protocols, prompts
provenance  versions, hardware, git commit, times
samples     what was measured, one entry per workload, protocol or prompt
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from llmstudy.errors import StudyError
from llmstudy.files import atomic_write
from llmstudy.runner.parent import Outcome, run_child
from llmstudy.runner.provenance import of_repository

SCHEMA = 2
STATUSES = ("ok", "oom", "unsupported", "timeout", "error")


def measure(job: dict, record: Path, log: Path, artifacts: dict[str, Path] | None = None, attempt: int = 1) -> None:
    """Run one measuring job in a child process and write its record.

    job        what to measure (see ``workflow/rules/common.smk``): identity, settings, limits
    record     the JSON to write
    artifacts  files beside the record that some kinds keep: the name the child gives one → where it goes; one that
               the child did not leave becomes an empty file, so that a failed measurement is still a finished job
    attempt    the how-many-th submission this is: while ``limits.oom_attempts`` is not reached, a job that ran out
               of memory raises instead of writing a record, so that the scheduler submits it again with more
    """
    record.parent.mkdir(parents=True, exist_ok=True)
    code = of_repository()  # before: somebody may commit meanwhile
    with tempfile.TemporaryDirectory(prefix=f".{record.stem}.", dir=record.parent) as folder:
        outcome = run_child(job, log, Path(folder))
        if outcome.status == "oom" and attempt < job["limits"]["oom_attempts"]:
            raise StudyError(
                f"{record}: out of memory in attempt {attempt} of {job['limits']['oom_attempts']} ({outcome.reason}); "
                "run again with more"
            )
        for name, target in (artifacts or {}).items():
            _publish(Path(folder) / name, target)
    write(compose(job, outcome, code, attempt), record)


def compose(job: dict, outcome: Outcome, code: dict, attempt: int = 1) -> dict[str, Any]:
    """The record of a job and what became of it; ``code``: the commit that measured (``provenance.of_repository``)."""
    result = outcome.result
    return {
        "schema": SCHEMA,
        "identity": job["identity"] | {"device": result.get("device", job["device"])},
        "status": outcome.status,
        "reason": outcome.reason,
        "traceback": result.get("traceback", []),
        "attempt": attempt,
        "settings": job["settings"],
        "provenance": result.get("provenance", {}) | code | {"wall_s": outcome.wall_s},
        "results": result.get("results", {}),
    }


def write(record: dict, path: Path) -> None:
    """Write a record atomically."""
    with atomic_write(path) as file:
        json.dump(record, file, indent=1, sort_keys=True, allow_nan=False)
        file.write("\n")


def read(path: Path) -> dict:
    """Read a record; raises StudyError if it is not one."""
    try:
        record = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise StudyError(f"{path}: not a readable record ({error}); delete it and run again") from None
    schema = record.get("schema") if isinstance(record, dict) else None
    if schema != SCHEMA:
        raise StudyError(f"{path}: record schema {schema!r}, allowed: {SCHEMA}; delete it and run again")
    return record


def _publish(made: Path, target: Path) -> None:
    """Move what the child made into place in one step."""
    made.touch()
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(made, target)
