"""Records: written whatever happens to the measurement, whole or not at all, and as the schema says."""

import contextlib
import errno
import json
import os
import platform
from dataclasses import asdict
from pathlib import Path

import faults
import pytest
import yaml
from jsonschema import Draft202012Validator
from llmstudy.errors import NetworkTrouble, StudyError
from llmstudy.runner import provenance, script
from llmstudy.runner import record as records
from llmstudy.runner.parent import Outcome

ROOT = Path(__file__).resolve().parents[1]
SCHEMA = yaml.safe_load((ROOT / "workflow" / "schemas" / "record.schema.yaml").read_text())
FITS = Draft202012Validator(SCHEMA)


@pytest.fixture
def measure(monkeypatch, tmp_path):
    """Measure with the given body in a child process; returns the record's path."""

    def measure(body: str, artifacts=None, attempt: int = 1, **limits):
        faults.install(monkeypatch, tmp_path / "stand-in", body)
        record = tmp_path / "records" / "bf16.json"
        records.measure(faults.job(**limits), record, tmp_path / "job.log", artifacts, attempt)
        return record

    return measure


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_record_says_what_was_measured_where_and_how(measure, tmp_path):
    arrays = tmp_path / "records" / "bf16.npz"
    path = measure(
        "(session.artifacts / 'arrays.npz').write_bytes(b'123'); return {'folder': str(session.artifacts)}",
        {"arrays.npz": arrays},
    )
    record = records.read(path)
    assert record["identity"] == asdict(faults.job().identity) | {"device": "cpu"}
    assert (record["status"], record["reason"], record["traceback"]) == ("ok", "", [])
    assert record["settings"] == faults.job().settings and record["attempt"] == 1
    assert record["provenance"]["threads"] == 1 and record["provenance"]["wall_s"] > 0
    assert len(record["provenance"]["git_commit"]) == 40
    assert arrays.read_bytes() == b"123"
    # The child writes on the disk that its files stay on: publishing is a rename, and free space is that of this disk.
    assert arrays.parent in Path(record["results"]["folder"]).parents
    assert names_in(tmp_path / "records") == ["bf16.json", "bf16.npz"]
    FITS.validate(record)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("import os; os.kill(os.getpid(), 9)", "error"),
        ("raise MemoryError", "oom"),
        ("from llmstudy.errors import Unsupported; raise Unsupported('no kernel')", "unsupported"),
        ("import time; time.sleep(60)", "timeout"),
    ],
)
def test_a_failed_measurement_is_still_a_finished_job(measure, tmp_path, body, status):
    arrays = tmp_path / "records" / "bf16.npz"
    record = records.read(measure(body, {"arrays.npz": arrays}, seconds=1))
    assert record["status"] == status and record["reason"] and record["results"] == {}
    assert arrays.exists() and arrays.stat().st_size == 0  # Snakemake finds its output
    assert names_in(tmp_path / "records") == ["bf16.json", "bf16.npz"]
    FITS.validate(record)


def test_out_of_memory_is_tried_again_and_then_becomes_the_record(measure, tmp_path):
    with pytest.raises(StudyError, match="attempt 1 of 2"):
        measure("raise MemoryError", attempt=1, oom_attempts=2)
    assert names_in(tmp_path / "records") == []
    record = records.read(measure("raise MemoryError", attempt=2, oom_attempts=2))
    assert (record["status"], record["attempt"]) == ("oom", 2)
    # other failures are not tried again
    assert records.read(measure("raise ValueError('no')", attempt=1, oom_attempts=3))["status"] == "error"


def test_numbers_of_a_list_share_a_line(tmp_path):
    record = {"schema": records.SCHEMA, "a": [1, -2.5, 3e-07], "b": [{"c": []}, ["x", 1]], "d": "[\n 1,\n 2\n] [ 1 ]"}
    records.write(record, tmp_path / "record.json")
    assert records.read(tmp_path / "record.json") == record
    assert ' "a": [1, -2.5, 3e-07],\n' in (tmp_path / "record.json").read_text()


def test_a_record_that_cannot_be_written_leaves_the_old_one(tmp_path):
    """Atomic writes and full disks are the business of test_files.py."""
    path = tmp_path / "record.json"
    records.write({"schema": records.SCHEMA, "results": {}}, path)
    with pytest.raises(ValueError):
        records.write({"schema": records.SCHEMA, "ppl": float("nan")}, path)
    assert records.read(path)["results"] == {}
    assert names_in(tmp_path) == ["record.json"]


@pytest.mark.parametrize("text", ["", "{", '{"schema": 1}', "[]", '"text"', None])
def test_what_is_no_record_is_refused_by_name(tmp_path, text):
    path = tmp_path / "record.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(StudyError, match="record.json.*delete it"):
        records.read(path)


# ---------------------------------------------------------------------------------------------------------- the schema


def parts(schema):
    """Every object and property below a schema."""
    yield schema
    for child in schema.get("properties", {}).values():
        yield from parts(child)


def test_the_schema_is_one_and_describes_every_key():
    Draft202012Validator.check_schema(SCHEMA)
    for part in parts(SCHEMA):
        assert part.get("description"), part
        assert "properties" not in part or part["additionalProperties"] is False


def test_a_record_of_any_status_fits_and_nothing_else():
    for status in records.STATUSES:
        outcome = Outcome(status, "why", {"traceback": ["line"]}, 1.5)
        good = records.compose(faults.job(), outcome, {})
        FITS.validate(good)
    assert not FITS.is_valid(good | {"extra": 1})
    assert not FITS.is_valid(good | {"status": "fine"})
    assert not FITS.is_valid(good | {"identity": good["identity"] | {"weights": "fake"}})


def test_committed_records_fit():
    committed = sorted((ROOT / "results").glob("*/records/**/*.json"))
    wrong = {path: [e.message for e in FITS.iter_errors(json.loads(path.read_text()))] for path in committed}
    assert committed and not {path: errors for path, errors in wrong.items() if errors}


# ---------------------------------------------------------------------------------------------------------- provenance


def test_provenance_names_code_versions_and_hardware_but_no_host_or_user(monkeypatch, tmp_path):
    found = provenance.of_process("cpu")
    assert {"started", "python", "system", "packages", "cpu", "cpu_capabilities", "cores", "threads"} <= set(found)
    assert found["packages"]["torch"].startswith("2.") and "transformers" in found["packages"]
    assert found["cores"] == len(os.sched_getaffinity(0)) and found["host_memory_gib"] > 0.5
    text = json.dumps(found)
    assert platform.node() not in text.replace(found["system"], "") or len(platform.node()) < 4
    assert os.path.expanduser("~") not in text
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "provenance.py"))
    assert provenance.of_repository() == {}  # outside a checkout


# ---------------------------------------------------------------------------------------- from a rule's script to here


class Rule:
    """What Snakemake gives a measuring script."""

    class Outputs(list):
        record = ""

    def __init__(self, folder: Path, outputs: list[str], **resources):
        self.output = self.Outputs([str(folder / name) for name in outputs])
        self.output.record = self.output[0]
        self.log = [str(folder / "logs" / "rule.log")]
        job = faults.job().to_dict()
        del job["limits"]
        self.params = type("Params", (), {"job": job})
        self.input = {}
        self.resources = resources


@pytest.mark.parametrize("reference", [False, True])
def test_a_rules_outputs_are_what_the_child_writes(monkeypatch, tmp_path, reference):
    """A file named after the record, or, for the reference, a folder with all of the child's files."""
    body = "[(session.artifacts / name).write_text(name) for name in ('arrays.npz', 'text.top5.npy')]; return {}"
    faults.install(monkeypatch, tmp_path / "stand-in", body)
    other = tmp_path / ("resources/reference" if reference else "records/bf16.sdpa.r0.npz")
    if reference:  # of an earlier run
        other.mkdir(parents=True)
        (other / "old").touch()
    outputs = ["records/bf16.sdpa.r0.json", str(other.relative_to(tmp_path))]
    script.measure(Rule(tmp_path, outputs, limit_s=60, oom_attempts=1), unneeded=None)
    assert records.read(tmp_path / outputs[0])["status"] == "ok"
    if reference:
        assert names_in(other) == ["arrays.npz", "text.top5.npy"]
    else:
        assert other.read_text() == "arrays.npz"


@pytest.mark.parametrize(("reason", "status"), [("settled by 3 panels", "skipped"), (None, "ok")])
def test_a_panel_that_is_not_needed_is_a_record_without_a_child(monkeypatch, tmp_path, reason, status):
    faults.install(monkeypatch, tmp_path / "stand-in", "return {'measured': True}")
    rule = Rule(tmp_path, ["record.json"], limit_s=60, oom_attempts=1)
    rule.input = {"panels": ["r0.json", "r1.json"]}
    asked = []
    script.measure(rule, unneeded=lambda *arguments: asked.append(arguments) or reason)
    assert asked == [([Path("r0.json"), Path("r1.json")], faults.job().settings)]
    record = records.read(tmp_path / "record.json")
    assert (record["status"], record["reason"]) == (status, reason or "")
    assert record["results"] == ({} if reason else {"measured": True})
    FITS.validate(record)


@pytest.mark.parametrize(("error", "tries"), [(NetworkTrouble("away"), 3), (StudyError("wrong"), 1), (OSError("x"), 1)])
def test_only_network_trouble_is_tried_again(monkeypatch, error, tries):
    waits, calls = [], []
    monkeypatch.setattr(script.time, "sleep", waits.append)

    def fetch(name):
        calls.append(name)
        raise error

    with pytest.raises(type(error)):
        script.retrying(fetch, "model")
    assert calls == ["model"] * tries and len(waits) == tries - 1


def test_a_mistake_ends_a_step_with_one_line_in_the_log_and_on_the_terminal(tmp_path, capsys):
    log = tmp_path / "logs" / "rule.log"
    with pytest.raises(SystemExit) as end, script.step(str(log)):
        print("on its way")
        raise StudyError("corpora.0.file: 'a.txt' is empty")
    assert end.value.code == 1
    assert log.read_text().splitlines() == ["on its way", "error: corpora.0.file: 'a.txt' is empty"]
    assert capsys.readouterr().err == "error: corpora.0.file: 'a.txt' is empty\n"


@pytest.mark.parametrize("write", ["print", "file", "both", "nothing"])
def test_a_full_disk_ends_a_step_with_one_line_on_the_terminal(capsys, write):
    """The log lies on the disk that is full: ``/dev/full`` takes nothing."""
    with pytest.raises(SystemExit) as end, script.step("/dev/full"):
        if write in ("print", "both"):
            with contextlib.suppress(OSError if write == "both" else KeyError):
                print("on its way")
        if write in ("file", "both"):
            raise OSError(errno.ENOSPC, "No space left on device")
        if write == "nothing":
            raise StudyError("/dev/full: cannot be written, the disk is full")
    assert end.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("error: /dev/full: cannot be written, the disk is full") and error.count("\n") == 1


def test_a_line_says_what_a_run_has_left_from_the_ends_of_its_records_alone(monkeypatch, tmp_path):
    """Two probes of 10 and 20 s and a panel of 60 s, and an older record; left: two probes, quality, generations."""
    monkeypatch.chdir(tmp_path)
    kinds = {"probe": "abcd", "panel": "e", "quality": "f", "generations": "g"}
    paths = {name: Path(f"results/s/records/{kind}/m/{name}.json") for kind, names in kinds.items() for name in names}
    script.plan("results/s", [*map(str, paths.values()), "results/s/records/quality/m/f.npz", "results/s/speed.csv"])
    os.utime("results/s/logs/plan.json", (1000, 1000))
    for name, end in {"a": 1010, "b": 1030, "e": 1090, "g": 900}.items():
        paths[name].parent.mkdir(parents=True, exist_ok=True)
        paths[name].write_text("not read")
        os.utime(paths[name], (end, end))
    done = {"identity": {"kind": "panel", "model": "m"}, "status": "ok", "provenance": {"wall_s": 59.6}}
    monkeypatch.setattr(records, "read", lambda path: done if path == paths["e"] else pytest.fail(str(path)))
    said = script.progress(paths["e"])  # 2 × 15 s, and 30 s each, as the mean of all, for quality and generations
    assert said == "panel m e: ok, 60 s; left: 2 probe, 1 quality, 1 generations, about 2 min"
    Path("results/s/logs/plan.json").write_text(json.dumps([str(paths["e"])]))
    os.utime("results/s/logs/plan.json", (1000, 1000))
    assert script.progress(paths["e"]).endswith("60 s; nothing is left to measure")
    Path("results/s/logs/plan.json").unlink()
    assert script.progress(paths["e"]) == "panel m e: ok, 60 s"
