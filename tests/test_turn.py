"""Turns on a GPU: who measures time or memory is alone, the others share, and waiting costs none of a job's time."""

import subprocess
import sys
import time
from pathlib import Path

import faults
import pytest
from llmstudy import measure
from llmstudy.runner import gpu_lock as turn
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
    """Start a process that holds the lock until it is told to end."""
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
    """Whether the process says within ``seconds`` that it has the lock."""
    import select

    ready, _, _ = select.select([process.stdout], [], [], seconds)
    return bool(ready) and process.stdout.readline() == "held\n"


@pytest.mark.parametrize(("first", "second"), [("alone", "alone"), ("alone", "shared"), ("shared", "alone")])
def test_who_measures_alone_waits_and_is_waited_for(hold, first, second):
    one = hold(first)
    assert holds(one, 30)
    other = hold(second)
    assert not holds(other, 1)
    one.stdin.write("\n")
    one.stdin.close()
    assert holds(other, 30)


def test_others_share(hold):
    assert holds(hold("shared"), 30)
    assert holds(hold("shared"), 30)


def test_a_killed_process_leaves_the_gpu_to_the_next(hold):
    one = hold("alone")
    assert holds(one, 30)
    one.kill()
    assert holds(hold("alone"), 30)


def test_all_processes_take_several_gpus_in_the_same_order():
    assert turn.locks(["b", "a"]) == turn.locks(["a", "b"])
    assert len({path.name for path in turn.locks(["a", "b"])}) == 2


def test_every_kind_that_has_the_gpu_alone_is_a_kind():
    assert set(measure.MODULES) >= turn.ALONE


@pytest.mark.parametrize("kind", sorted(turn.ALONE))
def test_on_a_cpu_nobody_waits(kind):
    with turn.turn(kind, "cpu"), turn.turn(kind, "cpu"):
        pass


def stand_in_turn(folder: Path, *lines: str) -> None:
    """Put ``lines`` in place of the turn that the child measures in, beside what ``faults.install`` put there."""
    with (folder / "sitecustomize.py").open("a") as code:
        code.write(
            "\nimport contextlib, os, time\nimport llmstudy.turn\n"
            "@contextlib.contextmanager\ndef instead(kind, device):\n    "
            + "\n    ".join(lines)
            + "\nllmstudy.turn.turn = instead\n"
        )


def test_waiting_for_the_gpu_is_not_counted_as_the_jobs_time(monkeypatch, tmp_path):
    """The stand-in waits longer than the limit before its turn, and measures for less than it."""
    faults.install(monkeypatch, tmp_path / "stand-in", "import time; time.sleep(1); return {'a': 1}")
    stand_in_turn(tmp_path / "stand-in", "time.sleep(4)", "yield")
    start = time.monotonic()
    outcome = run_child(faults.job(seconds=3), tmp_path / "job.log", tmp_path)
    assert outcome.status == "ok", outcome.reason
    assert time.monotonic() - start > 4
    assert outcome.result["provenance"]["waited_s"] >= 4


def test_a_gpu_is_left_after_its_memory_is_given_back(monkeypatch):
    from contextlib import contextmanager

    happened = []

    @contextmanager
    def locked(path, alone):
        happened.append("locked")
        yield
        happened.append("unlocked")

    monkeypatch.setattr(turn, "visible_gpus", lambda: ["a"])
    monkeypatch.setattr(turn, "locked", locked)
    monkeypatch.setattr(turn, "destroy_contexts", lambda: happened.append("destroyed"))
    with turn.turn("speed", "cuda"):
        happened.append("measured")
    assert happened == ["locked", "measured", "destroyed", "unlocked"]


def test_a_gpu_is_left_after_the_result_is_safe(monkeypatch, tmp_path):
    """And what kills the process then costs nothing."""
    faults.install(monkeypatch, tmp_path / "stand-in", "return {'a': 1}")
    stand_in_turn(tmp_path / "stand-in", "yield", "os.kill(os.getpid(), 9)")
    outcome = run_child(faults.job(), tmp_path / "job.log", tmp_path)
    assert (outcome.status, outcome.result["results"]) == ("ok", {"a": 1})
