"""The child process that a measurement runs in, seen from its parent.

The parent imports no torch, takes no core while the child measures, and lives on when the child is killed. It holds the
child's seat in the pool of GPUs, and ends its standard input when it is the child's turn.
"""

from __future__ import annotations

import json
import os
import signal
import site
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from importlib.machinery import PathFinder
from pathlib import Path

from llmstudy.runner import pool
from llmstudy.runner.job import Job

LIBRARY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Outcome:
    """The end of a child: status and reason as in a record, what it reported, seconds that it lived."""

    status: str
    reason: str
    result: dict = field(default_factory=dict)
    wall_s: float = 0.0


def run_child(job: Job, log: Path, artifacts: Path) -> Outcome:
    """Measure ``job`` in a separate process and return how it ended.

    The child appends to ``log`` and reports through a file that it replaces atomically after each finished case, so
    that a killed child loses only the case that it was at. ``artifacts`` is a folder for larger files. The child ends
    itself after ``job.limits.seconds``, in which waiting for a GPU does not count.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="llmstudy-") as folder:
        job_file, result_file = Path(folder) / "job.json", Path(folder) / "result.json"
        job_file.write_text(json.dumps(job.to_dict()), encoding="utf-8")
        command = [sys.executable, "-m", "llmstudy.runner.child", str(job_file), str(result_file), str(artifacts)]
        log_begin = log.stat().st_size if log.exists() else 0
        start = time.monotonic()
        kills_before = _kernel_oom_kills()
        with log.open("a", encoding="utf-8") as stream, _terminate_as_exception(), _seat(job) as seat:
            streams = {"stdin": subprocess.PIPE, "stdout": stream, "stderr": stream}
            environment = _environment(job.allocator, seat.gpus) | _caches(Path(folder))
            process = subprocess.Popen(command, env=environment, start_new_session=True, **streams)
            try:
                seat.take_turn(stream)
                process.stdin.close()
                process.wait()  # without a timeout, which would poll and take time from a core
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # a group of its own: the child and whatever it started
                process.stdin.close()
                process.wait()  # and then the GPUs are free
        wall_s = time.monotonic() - start
        result = json.loads(result_file.read_text(encoding="utf-8")) if result_file.exists() else {}
    killed_for_memory = _kernel_oom_kills() > kills_before
    status, reason = _judge(process.returncode, killed_for_memory, result, job.limits.seconds)
    if process.returncode > 0 and (last_line := _last_line(log, log_begin)):
        reason += f", whose last line is: {last_line}"
    return Outcome(status, reason, result, round(wall_s, 3))


def _seat(job: Job) -> AbstractContextManager[pool.Seat]:
    """Return the job's seat in the pool of GPUs; one without GPUs on a CPU, or where NVML shows none."""
    gpus = [] if job.device == "cpu" else pool.usable()
    return pool.seat(gpus, pool.weight_bytes(job, *job.configurations) if len(gpus) > 1 else 0)


def _environment(allocator: str | None, gpus: list[pool.Gpu]) -> dict[str, str]:
    """Return the child's environment: the library on its path, the hub switched off (compute nodes have no network), of
    the GPUs its own alone, no packages in the user's home (``~/.local``), which Python would prefer to those of the
    environment. Where PyTorch lies there alone, it is the environment.

    ``allocator``: settings of PyTorch's CUDA allocator, which reads them once, when it starts.
    """
    path = os.pathsep.join(filter(None, [str(LIBRARY), os.environ.get("PYTHONPATH")]))
    fixed = {
        "PYTHONPATH": path,
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if PathFinder.find_spec("torch", [folder for folder in sys.path if folder != site.getusersitepackages()]):
        fixed["PYTHONNOUSERSITE"] = "1"
    if gpus:
        fixed["CUDA_VISIBLE_DEVICES"] = ",".join(gpu.uuid for gpu in gpus)
    if allocator:
        fixed["PYTORCH_ALLOC_CONF"] = allocator
    return os.environ | fixed


def _caches(folder: Path) -> dict[str, str]:
    """Return ``folder`` as the place where Triton keeps what it compiles, if it cannot write where it would."""
    home = os.environ.get("TRITON_HOME") or os.path.expanduser("~")  # which stays ``~`` for a user without a home
    cache = Path(os.environ.get("TRITON_CACHE_DIR") or f"{home}/.triton")
    there = next(one for one in (cache, *cache.parents) if one.exists())
    writable = there.is_dir() and os.access(there, os.W_OK) and cache.parts[0] != "~"
    return {} if writable else {"TRITON_CACHE_DIR": str(folder / "triton")}


@contextmanager
def _terminate_as_exception() -> Iterator[None]:
    """Raise SystemExit in the parent at SIGTERM (a cancelled cluster job) and SIGHUP (a closed terminal), so that the
    child never outlives it. A signal that is ignored, as under nohup, stays so."""

    def stop(number, frame):
        raise SystemExit(128 + number)

    heeded = (number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) != signal.SIG_IGN)
    previous = {number: signal.signal(number, stop) for number in heeded}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _kernel_oom_kills() -> int:
    """Return how many processes the kernel has killed for lack of memory since boot; 0 where it does not say."""
    try:
        lines = Path("/proc/vmstat").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))


def _last_line(log: Path, begin: int) -> str:
    """Return the last line written to a log after its first ``begin`` bytes: what a library prints before it fails."""
    lines = log.read_bytes()[begin:].decode(errors="replace").split("\n")
    return next((line.strip()[:200] for line in reversed(lines) if line.strip()), "")


def _judge(returncode: int, killed_for_memory: bool, result: dict, seconds: float) -> tuple[str, str]:
    if "status" in result:  # written at the end alone: what kills the process afterwards changes nothing
        return result["status"], result["reason"]
    if returncode == -signal.SIGALRM:
        return "timeout", f"stopped after its limit of {seconds:.0f} s"
    if returncode == -signal.SIGKILL and killed_for_memory:
        return "oom", "the kernel killed the measuring process because memory ran out"
    if returncode < 0:
        return "error", f"killed by signal {-returncode} ({signal.Signals(-returncode).name})"
    return "error", f"the measuring process ended without a result, exit code {returncode}; see its log"
