"""Records: written whatever happens to the measurement, whole or not at all."""

import contextlib
import json
import resource

import faults
import pytest
from llmstudy.errors import StudyError
from llmstudy.runner import provenance
from llmstudy.runner import record as records
from llmstudy.runner import script as steps


@pytest.fixture
def measure(monkeypatch, tmp_path):
    """Measure with the given body in a child process; returns the record's path."""

    def measure(body: str, artifacts=None, attempt: int = 1, **limits):
        faults.install(monkeypatch, tmp_path / "stand-in", body)
        record = tmp_path / "records" / "bf16.json"
        records.measure(faults.job(**limits), record, tmp_path / "job.log", artifacts, attempt)
        return record

    return measure


def left_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_record_says_what_was_measured_where_and_how(measure, tmp_path):
    arrays = tmp_path / "records" / "bf16.npz"
    path = measure(
        "(session.artifacts / 'arrays.npz').write_bytes(b'123'); return {'tpot_ms': 4.5}", {"arrays.npz": arrays}
    )
    record = records.read(path)
    assert record["identity"] == faults.job()["identity"] | {"device": "cpu"}
    assert (record["status"], record["reason"], record["traceback"]) == ("ok", "", [])
    assert record["results"] == {"tpot_ms": 4.5}
    assert record["settings"] == faults.job()["settings"] and record["attempt"] == 1
    assert record["provenance"]["threads"] == 1 and record["provenance"]["wall_s"] > 0
    assert len(record["provenance"]["git_commit"]) == 40
    assert arrays.read_bytes() == b"123"
    assert left_in(tmp_path / "records") == ["bf16.json", "bf16.npz"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("import os; os.kill(os.getpid(), 9)", "error"),
        ("raise MemoryError", "oom"),
        ("from llmstudy.errors import Unsupported; raise Unsupported('no kernel')", "unsupported"),
        ("import time; time.sleep(60)", "timeout"),
        ("raise ValueError('no')", "error"),
    ],
)
def test_a_failed_measurement_is_still_a_finished_job(measure, tmp_path, body, status):
    arrays = tmp_path / "records" / "bf16.npz"
    record = records.read(measure(body, {"arrays.npz": arrays}, seconds=2))
    assert record["status"] == status and record["status"] in records.STATUSES
    assert record["reason"] and record["results"] == {}
    assert arrays.exists() and arrays.stat().st_size == 0  # Snakemake finds its output
    assert left_in(tmp_path / "records") == ["bf16.json", "bf16.npz"]


def test_out_of_memory_asks_for_another_attempt_and_then_becomes_the_record(measure, tmp_path):
    with pytest.raises(StudyError, match="attempt 1 of 2"):
        measure("raise MemoryError", attempt=1, oom_attempts=2)
    assert left_in(tmp_path / "records") == []
    record = records.read(measure("raise MemoryError", attempt=2, oom_attempts=2))
    assert (record["status"], record["attempt"]) == ("oom", 2)


def test_other_failures_are_not_tried_again(measure):
    assert records.read(measure("raise ValueError('no')", attempt=1, oom_attempts=3))["status"] == "error"


@contextlib.contextmanager
def largest_file(size: int):
    """No file of this process may grow over ``size`` bytes: what a full disk looks like from inside."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_old_record_and_names_the_file(tmp_path):
    path = tmp_path / "record.json"
    records.write({"schema": records.SCHEMA, "results": {}}, path)
    with largest_file(1000), pytest.raises(StudyError, match="record.json"):
        records.write({"schema": records.SCHEMA, "results": list(range(5000))}, path)
    assert records.read(path)["results"] == {}
    assert left_in(tmp_path) == ["record.json"]


@pytest.mark.parametrize("text", ["", "{", '{"schema": 0}', "[]", '"text"'])
def test_what_is_no_record_is_refused_by_name(tmp_path, text):
    path = tmp_path / "record.json"
    path.write_text(text)
    with pytest.raises(StudyError, match="record.json.*delete it"):
        records.read(path)


def test_a_missing_record_is_refused_by_name(tmp_path):
    with pytest.raises(StudyError, match="gone.json"):
        records.read(tmp_path / "gone.json")


def test_records_refuse_nan(tmp_path):
    with pytest.raises(ValueError):
        records.write({"ppl": float("nan")}, tmp_path / "record.json")
    assert left_in(tmp_path) == []


def test_provenance_names_code_versions_and_hardware_but_no_host_or_user(monkeypatch):
    import os
    import platform

    found = provenance.of_process("cpu")
    assert {"started", "python", "system", "packages", "cpu", "cpu_capabilities", "cores", "threads"} <= set(found)
    assert found["packages"]["torch"].startswith("2.") and "transformers" in found["packages"]
    assert found["cores"] == len(os.sched_getaffinity(0)) and found["host_memory_gib"] > 0.5
    text = json.dumps(found)
    assert platform.node() not in text.replace(found["system"], "") or len(platform.node()) < 4
    assert os.path.expanduser("~") not in text


def test_provenance_outside_a_checkout_is_silent(monkeypatch, tmp_path):
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "provenance.py"))
    assert provenance.of_repository() == {}


class Rule:
    """What Snakemake hands a measuring script."""

    class Outputs(list):
        record = ""

    def __init__(self, folder, outputs: list[str], job: dict, **resources):
        self.output = self.Outputs([str(folder / name) for name in outputs])
        self.output.record = self.output[0]
        self.log = [str(folder / "logs" / "rule.log")]
        self.params = type("Params", (), {"job": job})
        self.resources = resources


def test_a_rules_outputs_are_filled_from_what_the_child_leaves(monkeypatch, tmp_path):
    faults.install(
        monkeypatch,
        tmp_path / "stand-in",
        """
        for name in ('arrays.npz', 'text.top5.npy'):
            (session.artifacts / name).write_text(name)
        return {}
        """,
    )
    outputs = ["bf16.sdpa.r0.json", "bf16.sdpa.r0.npz", "reference/text.top5.npy"]
    job = faults.job()
    steps.measure(Rule(tmp_path, outputs, job, limit_s=60, oom_attempts=job.pop("limits")["oom_attempts"]))
    assert records.read(tmp_path / "bf16.sdpa.r0.json")["status"] == "ok"
    assert (tmp_path / "bf16.sdpa.r0.npz").read_text() == "arrays.npz"
    assert (tmp_path / "reference" / "text.top5.npy").read_text() == "text.top5.npy"


def test_a_mistake_ends_a_step_with_one_line_in_the_log_and_on_the_terminal(tmp_path, capsys):
    log = tmp_path / "logs" / "rule.log"
    with pytest.raises(SystemExit) as left, steps.step(str(log)):
        print("on its way")
        raise StudyError("corpora.0.file: 'a.txt' is empty")
    assert left.value.code == 1
    assert log.read_text().splitlines() == ["on its way", "error: corpora.0.file: 'a.txt' is empty"]
    assert capsys.readouterr().err == "error: corpora.0.file: 'a.txt' is empty\n"


def test_slurms_grant_tightens_the_limits_so_that_the_record_is_written_in_time(monkeypatch):
    limits = {"seconds": 1800, "oom_attempts": 1}
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert steps.granted(limits, {"runtime": 5, "mem_mb": 2000}) == limits
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("PATH", "/nowhere")  # no SLURM to ask
    granted = steps.granted(limits, {"runtime": 5, "mem_mb": 2000})
    assert granted["seconds"] < 300 and "host_memory_mb" not in granted  # what a rule asks for was not granted
    assert steps.granted(limits, {"runtime": 600, "mem_mb": 2000})["seconds"] == 1800
