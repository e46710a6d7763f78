"""The child process of a measurement: whatever happens to it, its parent says what, and keeps what was finished."""

import os
import signal
import subprocess
import sys
import time

import faults
import pytest
from llmstudy.errors import StudyError, Unsupported
from llmstudy.runner import child, failures, parent
from llmstudy.runner.job import sequences
from llmstudy.runner.parent import run_child

SMALL_DISK = "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))"
CASE = {"workloads": [{"status": "ok", "runs": [1.5]}]}


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run a measurement with the given body and limits in a real child process."""

    def run(body: str, **limits):
        faults.install(monkeypatch, tmp_path / "stand-in", body)
        (tmp_path / "artifacts").mkdir(exist_ok=True)
        return run_child(faults.job(**limits), tmp_path / "logs" / "job.log", tmp_path / "artifacts")

    return run


def test_a_measurement_that_ends_is_ok(run, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    outcome = run(
        """
        import os, sys
        print("on its way", flush=True)
        (session.artifacts / "a.npz").write_text("x")
        return {"hub": os.environ["HF_HUB_OFFLINE"], "stdin": sys.stdin.read(), "user": sys.flags.no_user_site}
        """
    )
    assert (outcome.status, outcome.reason) == ("ok", "")
    assert outcome.result["results"] == {
        "hub": "1",
        "stdin": "",
        "user": 1,
    }  # no network, nobody to answer, no package of the user
    assert (tmp_path / "artifacts" / "a.npz").read_text() == "x"
    assert "on its way" in (tmp_path / "logs" / "job.log").read_text()
    assert signal.getsignal(signal.SIGTERM) == before  # the parent has its handler again


@pytest.mark.parametrize(
    ("end", "limits", "status", "reason"),
    [
        ("os.kill(os.getpid(), 9)", {}, "error", "killed by signal 9 (SIGKILL)"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", {}, "error", "killed by signal 11 (SIGSEGV)"),
        ("os._exit(0)", {}, "error", "the measuring process ended without a result, exit code 0; see its log"),
        ("os._exit(7)", {}, "error", "the measuring process ended without a result, exit code 7; see its log"),
        ("raise Unsupported('no such kernel here')", {}, "unsupported", "no such kernel here"),
        ("session.save({'loss': [{'ppl': float('nan')}]})", {}, "overflow", "results.loss.0.ppl is nan"),
        (f"{SMALL_DISK}; session.save(list(range(50_000)))", {}, "error", "File too large"),
        ("bytearray(600_000_000)", {"host_memory_mb": 300}, "oom", "out of memory"),
        ("made = [1]; session.save({'all': made}); made.append(2); raise ValueError('late')", {}, "error", "ValueErr"),
    ],
)
def test_a_child_that_fails_says_how_and_keeps_its_finished_cases(run, end, limits, status, reason):
    case = {"all": [1]} if "made" in end else CASE
    outcome = run(
        f"import os, resource, signal; from llmstudy.errors import Unsupported; session.save({CASE}); {end}", **limits
    )
    assert outcome.status == status and reason in outcome.reason
    assert outcome.result["results"] == case


def test_an_exception_is_one_line_with_the_end_of_its_traceback(run, tmp_path):
    outcome = run("raise ValueError('first line\\nsecond line')")
    assert (outcome.status, outcome.reason) == ("error", "ValueError: first line second line")
    assert outcome.result["traceback"][-2:] == ["ValueError: first line", "second line"]
    assert "ValueError: first line" in (tmp_path / "logs" / "job.log").read_text()


def test_a_library_that_ends_the_process_is_quoted(run, tmp_path):
    log = tmp_path / "logs" / "job.log"
    log.parent.mkdir()
    log.write_text("of an earlier attempt\n")
    without = run("import os; os._exit(3)").reason
    assert "exit code 3" in without and "earlier" not in without
    outcome = run("import os; print('Error invalid argument at line 421\\n\\n', flush=True); os._exit(3)")
    assert outcome.reason == f"{without}, whose last line is: Error invalid argument at line 421"


def test_the_allocator_is_what_the_job_says(run, monkeypatch):
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "of the user")
    body = "import os; return {'allocator': os.environ['PYTORCH_ALLOC_CONF']}"
    assert run(body).result["results"] == {"allocator": "of the user"}
    assert run(body, allocator="ours").result["results"] == {"allocator": "ours"}


def test_pytorch_in_the_users_home_is_used_where_there_is_no_other(run, monkeypatch, tmp_path):
    """Else no package there shadows one of the environment."""
    home = tmp_path / "home"
    monkeypatch.setattr(parent.site, "getusersitepackages", lambda: str(home))
    body = "import sys; return {'home': not sys.flags.no_user_site}"
    for name, at_home in (("environment", False), ("home", True)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "torch.py").write_text("")
        monkeypatch.setattr(sys, "path", [str(home), str(tmp_path / name)])
        assert run(body).result["results"] == {"home": at_home}


def test_a_cache_that_cannot_be_written_is_made_anew_for_the_job(run, monkeypatch, tmp_path):
    body = "import os; return {'cache': os.environ.get('TRITON_CACHE_DIR')}"
    (tmp_path / "file").touch()
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    monkeypatch.setenv("TRITON_HOME", str(tmp_path / "new"))
    assert run(body).result["results"] == {"cache": None}
    monkeypatch.setenv("TRITON_HOME", str(tmp_path / "file"))
    assert run(body).result["results"]["cache"].endswith("/triton")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "of the user"))
    assert run(body).result["results"] == {"cache": str(tmp_path / "of the user")}
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "file" / "below"))
    assert run(body).result["results"]["cache"].startswith("/")
    monkeypatch.delenv("TRITON_CACHE_DIR")
    monkeypatch.delenv("TRITON_HOME")
    monkeypatch.setattr(parent.os.path, "expanduser", lambda path: path)  # no home, and no name
    assert run(body).result["results"]["cache"].endswith("/triton")


@pytest.mark.parametrize("name", ["SIGKILL", "SIGALRM"])
def test_a_child_killed_before_its_first_case_says_where_it_ran(run, name):
    outcome = run(f"import os, signal; os.kill(os.getpid(), signal.{name})")
    assert outcome.result == {"device": "cpu", "provenance": {"threads": 1}}


def test_a_child_that_the_kernel_kills_for_memory_is_oom(run, monkeypatch):
    counts = iter([4, 5])
    monkeypatch.setattr(parent, "_kernel_oom_kills", lambda: next(counts))
    outcome = run(f"import os; session.save({CASE}); os.kill(os.getpid(), 9)")
    assert outcome.status == "oom" and "memory" in outcome.reason
    assert outcome.result["results"] == CASE


def test_imports_count_towards_the_time_limit(monkeypatch, tmp_path):
    """The limit goes on after them instead of beginning again."""
    faults.install(monkeypatch, tmp_path, "import time; time.sleep(1.5); return {}")
    slow = (tmp_path / "sitecustomize.py").read_text()
    slow = slow.replace("(self):\n        pass", "(self):\n        import time; time.sleep(1.5)")
    (tmp_path / "sitecustomize.py").write_text(slow)
    assert slow.count("time.sleep(1.5)") == 2
    assert run_child(faults.job(seconds=2.5), tmp_path / "job.log", tmp_path).status == "timeout"


def test_a_child_over_its_time_is_a_timeout_and_is_gone(run):
    start, before = time.monotonic(), time.process_time()
    outcome = run(
        """
        import os, subprocess, sys, time
        other = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])
        session.save({"pids": [os.getpid(), other.pid]})
        time.sleep(60)
        """,
        seconds=2,
    )
    assert (outcome.status, outcome.reason) == ("timeout", "stopped after its limit of 2 s")
    assert time.monotonic() - start < 30
    assert time.process_time() - before < 0.5  # the parent sleeps while the child measures
    pids = outcome.result["results"]["pids"]
    deadline = time.monotonic() + 30
    while any(map(faults.alive, pids)) and time.monotonic() < deadline:  # the kernel kills a grandchild when it may
        time.sleep(0.05)
    assert len(pids) == 2 and not any(map(faults.alive, pids))


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [(["ok", "oom"], ("ok", "")), (["oom", "error"], ("oom", "why oom")), ([], ("ok", "")), (["ok"], ("ok", ""))],
)
def test_a_measurement_without_one_success_is_not_ok(statuses, expected):
    results = {"workloads": [{"status": status, "reason": f"why {status}"} for status in statuses]}
    assert tuple(child.status_of(results, "workloads").values()) == expected
    assert tuple(child.status_of(results, "").values()) == ("ok", "")  # a kind without cases


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
        "import faults, pathlib, sys; from llmstudy.runner.parent import run_child; "
        "run_child(faults.job(), pathlib.Path(sys.argv[1]) / 'log', pathlib.Path(sys.argv[1]))"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.environ["PYTHONPATH"], *sys.path]))
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "pid").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        measuring = int((tmp_path / "pid").read_text())
        assert faults.alive(measuring) and measuring != process.pid
        process.send_signal(how)
        assert process.wait(timeout=30) == (-how if how == signal.SIGKILL else 128 + how)
        deadline = time.monotonic() + 30
        while faults.alive(measuring) and time.monotonic() < deadline:  # nobody waits for it after a SIGKILL
            time.sleep(0.05)
        assert not faults.alive(measuring)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


# -------------------------------------------------------------------------------------------------- from exceptions


class OutOfMemoryError(RuntimeError):
    """Named like torch's."""


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (MemoryError(), "oom"),
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has 1 GiB free"), "oom"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"), "oom"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), "oom"),
        (OSError(12, "Cannot allocate memory"), "oom"),
        (ValueError("out of memory"), "error"),
        (Unsupported("no"), "unsupported"),
        (StudyError("bad corpus"), "error"),
        (KeyboardInterrupt(), "error"),
        (RuntimeError("Failed to find C compiler. Please specify via CC environment variable"), "unsupported"),
        (subprocess.CalledProcessError(1, ["/usr/bin/gcc", "/tmp/a/cuda_utils.c", "-O3"]), "unsupported"),
        (subprocess.CalledProcessError(1, ["git", "status"]), "error"),
        (ValueError("word\n\t " * 1000), "error"),
    ],
)
def test_exceptions_become_a_status_and_one_line(error, status):
    found, reason = failures.classify(error)
    assert found == status and reason and "\n" not in reason and len(reason) < 450


def test_torchs_own_allocation_errors_are_oom():
    import torch

    assert failures.classify(torch.cuda.OutOfMemoryError("CUDA out of memory"))[0] == "oom"
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**62, dtype=torch.int8)
    assert failures.classify(caught.value)[0] == "oom"


def test_a_traceback_names_no_folder_of_the_machine():
    with pytest.raises(AttributeError) as caught:
        next(sequences(None))
    lines = "\n".join(failures.traceback_tail(caught.value))
    assert 'File "workflow/scripts/llmstudy/runner/job.py"' in lines and 'File "tests/test_child.py"' in lines
    assert str(failures.CHECKOUT) not in lines and sys.prefix not in lines


def test_a_result_is_replaced_in_one_step(tmp_path):
    target = tmp_path / "result.json"
    child.replace_json(target, {"a": 1})
    with pytest.raises(TypeError):
        child.replace_json(target, {"a": object()})
    assert target.read_text() == '{"a": 1}'
