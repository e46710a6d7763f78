"""The child process of a measuring job: ``python -m llmstudy.runner.child JOB.json RESULT.json ARTIFACTS``.

It measures once its standard input ends: then it is its turn on the GPU. It replaces RESULT.json after every finished
case; status and reason are added at the end.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path

from llmstudy.runner.failures import classify, require_finite, traceback_tail
from llmstudy.runner.job import Job

PR_SET_PDEATHSIG = 1  # prctl(2): the signal to this process when its parent dies


def main(job_file: str, result_file: str, artifacts: str) -> None:
    """Measure the job and write its result; exit with 0 whenever a result with a status was written."""
    job = Job.from_dict(json.loads(Path(job_file).read_text(encoding="utf-8")))
    result: dict = {"device": job.device}
    target = Path(result_file)
    end_before_the_parent()
    limit_time(job.limits.seconds)
    try:
        from llmstudy.measure import measure
        from llmstudy.measure.session import Session, resolve_device

        result["device"] = resolve_device(job.device)
        limit_host_memory(job.limits.host_memory_mb, result["device"])

        def save(results: dict) -> None:
            # A copy: an unfinished case never shows, and one that cannot be written (NaN, a full disk) costs no other.
            require_finite(results)
            finished = json.loads(json.dumps(results, allow_nan=False))
            replace_json(target, result | {"results": finished})
            result["results"] = finished

        session = Session(job=job, device=result["device"], artifacts=Path(artifacts), save=save)
        result["provenance"] = session.provenance
        replace_json(target, result)  # says where it ran, should the process be killed before its first case
        session.import_libraries()
        left = limit_time(None)  # the limits of the others bound how long this one waits
        waiting_since = time.monotonic()
        sys.stdin.read()
        session.provenance["waited_s"] = round(time.monotonic() - waiting_since, 3)
        limit_time(left)
        save(measure(session))
        result |= status_of(result["results"], job.cases)
    except BaseException as error:  # noqa: BLE001 - whatever happens becomes a record
        status, reason = classify(error)
        print("\n".join(traceback_tail(error, 60)), file=sys.stderr)
        result |= {"status": status, "reason": reason, "traceback": traceback_tail(error)}
    replace_json(target, result)


def status_of(results: dict, cases: str) -> dict:
    """Return status ``ok`` if any entry of ``results[cases]`` has it, or there is none; else the first one's status."""
    entries = results.get(cases, [])
    if not entries or any(entry["status"] == "ok" for entry in entries):
        return {"status": "ok", "reason": ""}
    return {key: entries[0][key] for key in ("status", "reason")}


def replace_json(path: Path, value: dict) -> None:
    """Replace the file in one step: the parent may read it after this process was killed at any moment."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value), encoding="utf-8")
    partial.replace(path)


def limit_host_memory(megabytes: int | None, device: str) -> None:
    """Let allocations fail at the job's own limit, before a cluster kills the whole job and with it the record.

    Only on the CPU: a CUDA context reserves far more address space than it uses.
    """
    if megabytes and device == "cpu":
        size = megabytes * 2**20
        resource.setrlimit(resource.RLIMIT_DATA, (size, size))


def limit_time(seconds: float | None) -> float:
    """Let the kernel end this process with SIGALRM after ``seconds`` from now; None lifts the limit.

    Returns what was left of the limit before. The signal keeps its default action: it works while Python is stuck
    inside a library, as no handler would.
    """
    left, _ = signal.setitimer(signal.ITIMER_REAL, seconds or 0)
    return left


def end_before_the_parent() -> None:
    """Ask the kernel (Linux) to kill this process when its parent dies, and first of the two when memory runs out.

    The parent writes the record.
    """
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="utf-8")
    except (OSError, AttributeError) as error:
        print(f"could not ask to end with the parent, or before it: {error}", file=sys.stderr)


if __name__ == "__main__":
    # A line per finished step is of use while the job runs: do not let the log lag behind.
    sys.stdout.reconfigure(line_buffering=True)
    main(*sys.argv[1:])
    sys.stdout.flush()
    os._exit(0)  # CUDA's and OpenMP's exit handlers can hang or crash after the result is safe
