"""The GPU lock: who measures time or memory has a GPU alone, the others share, and waiting costs no job its time."""

import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import faults
import pytest
from llmstudy.runner import gpu_lock
from llmstudy.runner.parent import LIBRARY, run_child

HOLD = """
import sys, time
from pathlib import Path
from llmstudy.runner.gpu_lock import locked
with locked(Path(sys.argv[1]), alone=sys.argv[2] == "alone"):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def hold(tmp_path):
    """Start a process that holds the lock until it is killed."""
    started = []

    def start(how: str) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(tmp_path / "gpu.lock"), how],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={"PYTHONPATH": str(LIBRARY)},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def holds(process: subprocess.Popen, seconds: float) -> bool:
    """Return whether the process says within ``seconds`` that it has the lock."""
    import select

    ready, _, _ = select.select([process.stdout], [], [], seconds)
    return bool(ready) and process.stdout.readline() == "held\n"


@pytest.mark.parametrize(("first", "second"), [("alone", "alone"), ("alone", "shared"), ("shared", "alone")])
def test_who_measures_alone_waits_and_is_waited_for(hold, first, second):
    one = hold(first)
    assert holds(one, 30)
    other = hold(second)
    assert not holds(other, 0.6)
    one.kill()  # the kernel releases the lock of a process that ends, however it ends
    assert holds(other, 30)


def test_others_share(hold):
    assert holds(hold("shared"), 30)
    assert holds(hold("shared"), 30)


def test_all_processes_take_several_gpus_in_the_same_order():
    assert gpu_lock.locks(["b", "a"]) == gpu_lock.locks(["a", "b"])
    assert len({path.name for path in gpu_lock.locks(["a", "b"])}) == 2


@pytest.mark.parametrize("alone", [True, False])
def test_on_a_cpu_nobody_waits(alone):
    with gpu_lock.gpu_lock("cpu", alone), gpu_lock.gpu_lock("cpu", alone):
        pass


def test_the_lock_is_released_after_memory_is_given_back(monkeypatch):
    events = []

    @contextmanager
    def locked(path, alone):
        events.append(f"locked {alone}")
        yield
        events.append("unlocked")

    monkeypatch.setattr(gpu_lock, "visible_gpus", lambda: ["a"])
    monkeypatch.setattr(gpu_lock, "locked", locked)
    monkeypatch.setattr(gpu_lock, "destroy_contexts", lambda: events.append("destroyed"))
    with gpu_lock.gpu_lock("cuda", alone=True):
        events.append("measured")
    assert events == ["locked True", "measured", "destroyed", "unlocked"]


def replace_lock(folder: Path, *lines: str) -> None:
    """Put ``lines`` in place of the lock that the child measures under, beside what ``faults.install`` put there."""
    with (folder / "sitecustomize.py").open("a") as code:
        code.write(
            "\nimport contextlib, os, time\nimport llmstudy.runner.gpu_lock\n"
            "@contextlib.contextmanager\ndef replacement(device, alone):\n    assert alone\n    "
            + "\n    ".join(lines)
            + "\nllmstudy.runner.gpu_lock.gpu_lock = replacement\n"
        )


def test_waiting_for_the_lock_is_not_counted_as_the_jobs_time(monkeypatch, tmp_path):
    """The stand-in waits longer than the limit for the lock, and measures for less than it."""
    faults.install(monkeypatch, tmp_path / "stand-in", "import time; time.sleep(0.5); return {'a': 1}")
    replace_lock(tmp_path / "stand-in", "time.sleep(2.5)", "yield")
    outcome = run_child(faults.job(seconds=2), tmp_path / "job.log", tmp_path)
    assert outcome.status == "ok", outcome.reason
    assert outcome.wall_s > outcome.result["provenance"]["waited_s"] >= 2.5


def test_the_lock_is_released_after_the_result_is_safe(monkeypatch, tmp_path):
    """And what kills the process then costs nothing."""
    faults.install(monkeypatch, tmp_path / "stand-in", "return {'a': 1}")
    replace_lock(tmp_path / "stand-in", "yield", "os.kill(os.getpid(), 9)")
    outcome = run_child(faults.job(), tmp_path / "job.log", tmp_path)
    assert (outcome.status, outcome.result["results"]) == ("ok", {"a": 1})
