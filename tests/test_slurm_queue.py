"""What the study asks SLURM, answered by scripts in SLURM's place."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY
from llmstudy.errors import StudyError
from llmstudy.runner import script, slurm
from llmstudy.runner.job import Limits

RUN = "llmstudy_5a19bf7c-7b1f-4f3c-9d3b-0f2f4b0b7a11"


@pytest.fixture
def answer(tmp_path, monkeypatch):
    """Put a script in place of a SLURM command: it prints ``text``, notes its arguments and ends with ``status``."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def replace(command: str, text: str, status: int = 0) -> Path:
        notes = tmp_path / f"{command}.arguments"
        script = folder / command
        stream = 2 if status else 1
        script.write_text(f'#!/bin/sh\necho "$@" >> {notes}\ncat >&{stream} <<"END"\n{text}\nEND\nexit {status}\n')
        script.chmod(0o755)
        return notes

    return replace


def queue(folder: Path) -> str:
    return f"""11|RUNNING|{RUN}|rule_measure_wildcards_probe_tiny_fp32|{folder}
12|PENDING|{RUN}|rule_measure_wildcards_probe_tiny_bf16|{folder}
13|RUNNING|{RUN}|rule_measure_wildcards_probe_tiny_fp32|{folder}/elsewhere
14|RUNNING|bash||{folder}"""


def test_only_jobs_that_snakemake_submitted_from_this_folder_count(answer, tmp_path):
    answer("squeue", queue(tmp_path))
    assert [job.number for job in slurm.queued_jobs(tmp_path)] == ["11", "12"]
    assert [job.state for job in slurm.queued_jobs(tmp_path)] == ["RUNNING", "PENDING"]
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    answer("squeue", queue(tmp_path / "link"))
    assert len(slurm.queued_jobs(tmp_path / "real")) == 2


def test_a_start_is_refused_in_one_line_that_says_what_to_do(answer, tmp_path):
    answer("squeue", queue(tmp_path))
    with pytest.raises(StudyError, match="queue: 2 .*11 RUNNING rule_measure_wildcards.*settle_jobs.py wait") as caught:
        slurm.check_nothing_queued(tmp_path)
    assert "\n" not in str(caught.value)
    slurm.check_nothing_queued(tmp_path / "another")


def test_a_silent_slurm_is_an_error_and_not_an_empty_queue(answer, tmp_path, monkeypatch):
    answer("squeue", "slurm_load_jobs error: Unable to contact slurm controller", status=1)
    with pytest.raises(StudyError, match="squeue: slurm_load_jobs error: Unable to contact"):
        slurm.queued_jobs(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StudyError, match="is this a machine of the cluster"):
        slurm.queued_jobs(tmp_path)


def test_partitions(answer):
    answer("sinfo", "cpu\ngpu\ngpu")
    slurm.check_partitions({"cpu", "gpu", "cpu,gpu", None})
    with pytest.raises(StudyError, match="'fat' is not a partition of this cluster; allowed: cpu, gpu"):
        slurm.check_partitions({"cpu,fat"})


@pytest.fixture
def head(answer, tmp_path):
    """A living head of ``tmp_path``, in a SLURM without accounting and without jobs of it."""
    (tmp_path / "another").mkdir()
    answer("squeue", queue(tmp_path / "another"))
    answer("sinfo", "gpu")
    answer("sacct", "Slurm accounting storage is disabled", status=1)
    code = "import os, sys; from llmstudy.runner import slurm; from pathlib import Path; "
    code += "slurm.start(Path(sys.argv[1]), Path('/tools'), {'gpu'}); print(os.environ['PATH'], flush=True); input()"
    command = [sys.executable, "-c", code, tmp_path]
    env = os.environ | {"PYTHONPATH": str(REPOSITORY / "workflow/scripts")}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
    process.path = process.stdout.readline().strip()
    yield process
    process.kill()
    process.communicate()


def test_a_second_head_is_refused_while_the_first_one_lives(head, answer, tmp_path):
    with pytest.raises(StudyError, match=rf"another Snakemake \(process {head.pid} on {socket.gethostname()} since 20"):
        slurm.start(tmp_path, Path("/tools"), set())
    head.kill()
    head.wait()
    answer("squeue", queue(tmp_path))
    for _ in range(2):  # being refused makes no head
        with pytest.raises(StudyError, match=f"queue: 2 .* Their Snakemake was process {head.pid} on .* has ended"):
            slurm.start(tmp_path, Path("/tools"), set())


def test_a_head_cancels_what_it_leaves_in_the_queue(head, answer, tmp_path):
    answer("squeue", queue(tmp_path).replace("12|PENDING", "12|COMPLETING"))
    cancelled = answer("scancel", "")
    head.communicate("\n", timeout=30)
    assert cancelled.read_text().split() == ["11"]


def test_a_head_asks_our_sacct_where_that_of_the_cluster_cannot_answer(head, answer, tmp_path, monkeypatch):
    assert head.path.startswith("/tools:")
    answer("sacct", "")
    monkeypatch.setattr("atexit.register", lambda *_: None)
    answer("squeue", queue(tmp_path))
    slurm.start(tmp_path / "another", tmp_path, set())
    assert str(tmp_path) not in os.environ["PATH"].split(":")


# What snakemake-executor-plugin-slurm 2.8.0 asks, and what squeue is asked in its place.
ASKED = {
    "-X --parsable2 --clusters all --noheader --format=JobIdRaw,State --starttime 2026-01-01 --endtime now --name A": (
        "--noheader --states=all --name A --format=%i|%T"
    ),
    "-j 7 -n -X -o nodelist%-256": "--noheader --states=all --jobs 7 --format=%N",
    "-j 7.0 --format=Reason --noheader": "",
    "-nu me -o Account%256 | tail -1": "",
}


@pytest.mark.parametrize(("arguments", "asked"), ASKED.items())
@pytest.mark.parametrize("status", [0, 1])
def test_our_sacct_answers_from_squeue(answer, arguments, asked, status):
    notes = answer("squeue", "7|COMPLETED", status)
    done = subprocess.run([REPOSITORY / "slurm/bin/sacct", *arguments.split()], capture_output=True, text=True)
    assert (notes.read_text().strip() if notes.exists() else "") == asked
    assert done.returncode == (status if asked else 0)
    assert done.stdout == ("7|COMPLETED\n" if asked and not status else "")


DURATIONS = {"59": 59, "1:00": 60, "35:00": 2100, "2:00:01": 7201, "3-01:00:00": 262_800, "UNLIMITED": None, "": None}


@pytest.mark.parametrize(("text", "seconds"), DURATIONS.items())
def test_durations(text, seconds):
    assert slurm.parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("said", "megabytes"),
    [
        ("cpu=1,mem=800M,node=1,billing=1", 800),
        ("cpu=4,mem=62.50G,node=1,billing=4,gres/gpu=1", 64_000),
        ("cpu=4,mem=2T,node=1", 2 * 1024 * 1024),
        ("cpu=1,node=1,billing=1", None),
        ("", None),
    ],
)
def test_the_memory_that_slurm_granted(answer, said, megabytes):
    notes = answer("squeue", said)
    assert slurm.granted_mb("7") == megabytes
    assert "--jobs 7" in notes.read_text()


def test_a_measurement_fails_by_itself_before_slurm_ends_its_job_for_memory(answer, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    answer("squeue", "cpu=1,mem=9000M,node=1")
    assert 8000 < script.granted(Limits(60), {}).host_memory_mb < 9000
    answer("squeue", "cpu=1,mem=100M,node=1")
    assert script.granted(Limits(60), {}).host_memory_mb == 1
    answer("squeue", "Invalid job id specified", status=1)
    assert script.granted(Limits(60), {"mem_mb": 2000}).host_memory_mb is None  # a request is no grant


def test_a_measurement_ends_before_slurm_ends_its_job(answer, monkeypatch):
    limits, requested = Limits(3600, oom_attempts=2), {"runtime": 65}
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert script.granted(limits, requested) == limits
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    notes = answer("squeue", "10:00")
    assert script.granted(limits, requested) == Limits(540, oom_attempts=2)
    assert "--jobs 7" in notes.read_text()
    answer("squeue", "0:40")
    assert script.granted(limits, requested).seconds == 30
    answer("squeue", "1-00:00:00")
    assert script.granted(limits, requested).seconds == 3600
    answer("squeue", "no such job", status=1)
    assert script.granted(Limits(1e6), requested).seconds == 65 * 60 - 60
    monkeypatch.setenv("PATH", "/nowhere")  # no SLURM to answer
    assert script.granted(Limits(1e6), requested).seconds == 65 * 60 - 60


def test_settling_by_hand(answer, tmp_path):
    script = [sys.executable, REPOSITORY / "tools/settle_jobs.py"]
    answer("squeue", queue(tmp_path))
    shown = subprocess.run([*script, "list"], cwd=tmp_path, capture_output=True, text=True)
    assert shown.stdout.splitlines() == [
        "11 RUNNING rule_measure_wildcards_probe_tiny_fp32",
        "12 PENDING rule_measure_wildcards_probe_tiny_bf16",
    ]
    answer("squeue", "down", status=1)
    failed = subprocess.run([*script, "wait"], cwd=tmp_path, capture_output=True, text=True)
    assert (failed.returncode, failed.stderr) == (1, "error: squeue: down\n")
