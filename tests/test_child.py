"""The child process of a measurement: whatever happens to it, its parent says what, and keeps what was finished."""

import os
import signal
import subprocess
import sys
import time
from importlib import import_module

import faults
import pytest
from llmstudy.errors import StudyError, Unsupported
from llmstudy.runner import child as worker
from llmstudy.runner import failures
from llmstudy.runner import parent as child
from llmstudy.runner.parent import run_child

PIECE = {"workloads": [{"status": "ok", "runs": [1.5]}]}


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run a measurement with the given body and limits in a real child process."""

    def run(body: str, **limits):
        faults.install(monkeypatch, tmp_path / "stand-in", body)
        (tmp_path / "artifacts").mkdir(exist_ok=True)
        return run_child(faults.job(**limits), tmp_path / "logs" / "job.log", tmp_path / "artifacts")

    return run


def test_a_measurement_that_ends_is_ok(run, tmp_path):
    outcome = run(
        "print('on its way', flush=True); session.artifacts.joinpath('a.npz').write_text('x'); return {'a': 1}"
    )
    assert (outcome.status, outcome.reason) == ("ok", "")
    assert outcome.result["results"] == {"a": 1} and outcome.result["provenance"]["threads"] == 1
    assert outcome.wall_s > 0
    assert (tmp_path / "artifacts" / "a.npz").read_text() == "x"
    assert "on its way" in (tmp_path / "logs" / "job.log").read_text()


def test_the_child_has_no_network_and_no_questions(run):
    outcome = run("import os, sys; return {'hub': os.environ['HF_HUB_OFFLINE'], 'stdin': sys.stdin.read()}")
    assert outcome.result["results"] == {"hub": "1", "stdin": ""}


def test_a_library_that_ends_the_process_is_quoted(run, tmp_path):
    log = tmp_path / "logs" / "job.log"
    log.parent.mkdir()
    log.write_text("of an earlier attempt\n")
    told = "the measuring process left without a result, exit code 3; see its log"
    assert run("import os; os._exit(3)").reason == told
    outcome = run("import os; print('Error invalid argument at line 421\\n\\n', flush=True); os._exit(3)")
    assert outcome.status == "error"
    assert outcome.reason == f"{told}, whose last line is: Error invalid argument at line 421"


def test_the_allocator_is_what_the_job_says(run, monkeypatch):
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "of the user")
    body = "import os; return {'allocator': os.environ['PYTORCH_ALLOC_CONF']}"
    assert run(body).result["results"] == {"allocator": "of the user"}
    assert run(body, allocator="ours").result["results"] == {"allocator": "ours"}


@pytest.mark.parametrize("signal_name", ["SIGKILL", "SIGALRM"])
def test_a_child_killed_before_its_first_piece_says_where_it_ran(run, signal_name):
    outcome = run(f"import os, signal; os.kill(os.getpid(), signal.{signal_name})")
    assert outcome.result == {"device": "cpu", "provenance": {"threads": 1}}


def test_imports_count_towards_the_time_limit(monkeypatch, tmp_path):
    """The limit goes on after them instead of beginning again."""
    faults.install(monkeypatch, tmp_path, "import time; time.sleep(3); return {}")
    code = tmp_path / "sitecustomize.py"
    slow = code.read_text().replace("(self):\n        pass", "(self):\n        import time; time.sleep(3)")
    code.write_text(slow)
    assert slow.count("time.sleep(3)") == 2
    assert run_child(faults.job(seconds=5), tmp_path / "job.log", tmp_path).status == "timeout"


def test_a_child_killed_midway_keeps_its_finished_pieces(run):
    outcome = run(f"import os; session.save({PIECE}); os.kill(os.getpid(), 9)")
    assert outcome.status == "error"
    assert "SIGKILL" in outcome.reason
    assert outcome.result["results"] == PIECE


def test_a_child_that_the_kernel_kills_for_memory_is_oom(run, monkeypatch):
    counts = iter([4, 5])
    monkeypatch.setattr(child, "_kernel_oom_kills", lambda: next(counts))
    outcome = run(f"import os; session.save({PIECE}); os.kill(os.getpid(), 9)")
    assert outcome.status == "oom" and "memory" in outcome.reason
    assert outcome.result["results"] == PIECE


def test_a_cuda_out_of_memory_error_is_oom(run):
    outcome = run(
        """
        class OutOfMemoryError(RuntimeError):
            pass
        raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\\nGPU 0 has 1 GiB free")
        """
    )
    assert outcome.status == "oom"
    assert outcome.reason == "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1 GiB free"
    assert any("OutOfMemoryError" in line for line in outcome.result["traceback"])


def test_an_allocation_over_the_jobs_limit_is_oom_and_not_the_end_of_the_job(run):
    outcome = run("session.save({'a': 1}); block = bytearray(600_000_000)", host_memory_mb=300)
    assert outcome.status == "oom"
    assert outcome.result["results"] == {"a": 1}


def test_a_child_over_its_time_is_a_timeout_and_is_gone(run):
    start = time.monotonic()
    outcome = run(
        """
        import os, subprocess, sys, time
        other = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])
        session.save({"pids": [os.getpid(), other.pid]})
        time.sleep(60)
        """,
        seconds=2.5,
    )
    assert outcome.status == "timeout" and "2 s" in outcome.reason
    assert time.monotonic() - start < 30
    pids = outcome.result["results"]["pids"]
    assert len(pids) == 2 and not any(faults.alive(pid) for pid in pids)


@pytest.mark.parametrize("code", [0, 7])
def test_a_child_that_leaves_without_a_result_is_an_error(run, code):
    outcome = run(f"import os; session.save({PIECE}); os._exit({code})")
    assert outcome.status == "error" and f"exit code {code}" in outcome.reason
    assert outcome.result["results"] == PIECE


def test_a_child_that_crashes_is_an_error_with_its_signal(run):
    outcome = run("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    assert outcome.status == "error" and "SIGSEGV" in outcome.reason


def test_an_exception_is_told_in_one_line_with_the_end_of_its_traceback(run, tmp_path):
    outcome = run(f"session.save({PIECE}); raise ValueError('first line\\nsecond line')")
    assert (outcome.status, outcome.reason) == ("error", "ValueError: first line second line")
    assert outcome.result["traceback"][-2:] == ["ValueError: first line", "second line"]
    assert outcome.result["results"] == PIECE
    assert "ValueError: first line" in (tmp_path / "logs" / "job.log").read_text()


def test_a_traceback_names_no_folder_of_the_machine():
    try:
        import_module("llmstudy.plan").model_entry({"models": []}, "none")
    except StopIteration as error:
        told = "\n".join(failures.traceback_tail(error))
    assert 'File "workflow/scripts/llmstudy/plan.py"' in told and 'File "tests/test_child.py"' in told
    assert str(failures.CHECKOUT) not in told and sys.prefix not in told


def test_what_cannot_run_here_is_unsupported(run):
    outcome = run("from llmstudy.errors import Unsupported; raise Unsupported('no such kernel here')")
    assert (outcome.status, outcome.reason) == ("unsupported", "no such kernel here")


def test_a_number_that_json_has_not_costs_its_piece_alone(run):
    outcome = run(f"session.save({PIECE}); session.save({{'ppl': float('nan')}})")
    assert outcome.status == "error" and "JSON" in outcome.reason
    assert outcome.result["results"] == PIECE


def test_a_piece_in_the_making_is_not_reported(run):
    outcome = run("made = {'all': [1]}; session.save(made); made['all'].append(2); raise ValueError('late')")
    assert outcome.result["results"] == {"all": [1]}


@pytest.mark.parametrize(
    ("statuses", "told"),
    [(["ok", "oom"], ("ok", "")), (["oom", "error"], ("oom", "why oom")), ([], ("ok", "")), (["ok"], ("ok", ""))],
)
@pytest.mark.parametrize("kind", worker.PIECES)
def test_a_measurement_without_one_success_is_not_ok(kind, statuses, told):
    samples = {kind: [{"status": status, "reason": f"why {status}"} for status in statuses]}
    assert tuple(worker.status_of(samples).values()) == told


def test_a_full_disk_costs_the_piece_that_did_not_fit(run):
    outcome = run(
        f"""
        import resource
        session.save({PIECE})
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        session.save({{"runs": list(range(50_000))}})
        """
    )
    assert outcome.status == "error" and "File too large" in outcome.reason
    assert outcome.result["results"] == PIECE


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_the_child_ends_with_its_parent(monkeypatch, tmp_path, how):
    faults.install(
        monkeypatch,
        tmp_path / "stand-in",
        f"""
        import os, time
        Path({str(tmp_path / "pid.part")!r}).write_text(str(os.getpid()))
        Path({str(tmp_path / "pid.part")!r}).rename({str(tmp_path / "pid")!r})
        time.sleep(60)
        """,
    )
    # A test run under nohup ignores the hangup, and so would everything that it starts.
    code = "import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL); " + (
        "import faults, pathlib, sys; from llmstudy.child import run_child; "
        "run_child(faults.job(), pathlib.Path(sys.argv[1]) / 'log', pathlib.Path(sys.argv[1]))"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.environ["PYTHONPATH"], *sys.path]))
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "pid").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        measuring = int((tmp_path / "pid").read_text())
        assert faults.alive(measuring) and measuring != parent.pid
        parent.send_signal(how)
        assert parent.wait(timeout=30) == (-how if how == signal.SIGKILL else 128 + how)
        deadline = time.monotonic() + 30
        while faults.alive(measuring) and time.monotonic() < deadline:  # nobody waits for it after a SIGKILL
            time.sleep(0.05)
        assert not faults.alive(measuring)
    finally:
        if parent.poll() is None:
            parent.kill()
            parent.wait()


def test_the_parent_sleeps_while_the_child_measures(run):
    before = time.process_time()
    run("import time; time.sleep(2)")
    assert time.process_time() - before < 0.5


def test_the_parents_own_signal_handler_comes_back(run):
    before = signal.getsignal(signal.SIGTERM)
    run("return {}")
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (MemoryError(), "oom"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"), "oom"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), "oom"),
        (OSError(12, "Cannot allocate memory"), "oom"),
        (ValueError("out of memory"), "error"),
        (Unsupported("no"), "unsupported"),
        (StudyError("bad corpus"), "error"),
        (KeyboardInterrupt(), "error"),
    ],
)
def test_exceptions_become_statuses(error, status):
    assert failures.classify(error)[0] == status


def test_torchs_own_allocation_errors_are_oom():
    import torch

    assert failures.classify(torch.cuda.OutOfMemoryError("CUDA out of memory"))[0] == "oom"
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**62, dtype=torch.int8)
    assert failures.classify(caught.value)[0] == "oom"


def test_reasons_are_one_line_of_bounded_length():
    status, reason = failures.classify(ValueError("word\n\t " * 1000))
    assert "\n" not in reason and len(reason) < 450


def test_a_result_is_replaced_in_one_step(tmp_path):
    target = tmp_path / "result.json"
    worker.replace_json(target, {"a": 1})
    with pytest.raises(TypeError):
        worker.replace_json(target, {"a": object()})
    assert target.read_text() == '{"a": 1}'
