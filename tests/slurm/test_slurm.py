"""The study on a real SLURM: what users meet on clusters, checked in the files that are left and in SLURM's own books.

A session takes minutes. Runs that several tests look at are made once, and those that only wait run side by side.
"""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
from cluster import (
    SNAKEMAKE,
    Cluster,
    checkout,
    edit_profile,
    missing,
    record_path,
    signal_command,
    wait_for,
)

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.skipif(bool(missing()), reason=missing())]

PRECISIONS = ["fp32", "bf16"]
STUDY = ("--configfile=study.yaml",)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    cluster = Cluster(tmp_path_factory.mktemp("slurm") / "lab")
    yield cluster
    cluster.close()


@pytest.fixture(scope="module")
def sample(tmp_path_factory) -> Path:
    """The folder of the tiny model and text."""
    folder = tmp_path_factory.mktemp("sample")
    tiny.study(folder)
    return folder


def read_record(folder: Path, kind: str, precision: str, model: str = "tiny-llama") -> dict:
    return json.loads((folder / record_path(kind, precision, model)).read_text())


def in_state(cluster: Cluster, folder: Path, *states: str) -> list:
    return [job for job in cluster.jobs(folder) if job.state in states]


# --- the whole study, through a drained node -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(cluster, sample, tmp_path_factory):
    """The study through the profile, its node drained for a while in mid-run; beside it the same with --cores 1."""
    tmp = tmp_path_factory.mktemp("whole")
    submitted, local = checkout(tmp / "submitted", sample), checkout(tmp / "local", sample)
    head = cluster.start(*SNAKEMAKE, *STUDY, folder=submitted, output=tmp / "submitted.log")
    first = wait_for(lambda: in_state(cluster, submitted, "RUNNING"), 90, "the first job to start")
    cluster.run("scontrol", "update", "nodename=slurmlab", "state=drain", "reason=test")
    try:
        wait_for(lambda: not in_state(cluster, submitted, "RUNNING", "COMPLETING"), 90, "running jobs to end")
        # The panel waits for the probes, so it is submitted to a node that is drained already.
        wait_for(lambda: in_state(cluster, submitted, "PENDING"), 120, "the next job to be submitted")
        drained = cluster.jobs(submitted)
    finally:
        cluster.run("scontrol", "update", "nodename=slurmlab", "state=resume")
    command = [sys.executable, "-m", "snakemake", "--cores", "1", *STUDY]
    with (tmp / "local.log").open("w") as log:
        subprocess.run(command, cwd=local, stdout=log, stderr=log, timeout=300)
    try:
        head.wait(timeout=300)
    finally:
        if head.poll() is None:
            signal_command(head, signal.SIGINT)
    return {"submitted": submitted, "local": local, "head": head, "first": first, "drained": drained, "tmp": tmp}


def test_the_whole_study_through_the_profile(cluster, whole):
    folder = whole["submitted"]
    assert whole["head"].returncode == 0, (whole["tmp"] / "submitted.log").read_text()[-3000:]
    measured = [(kind, precision) for kind in ("probe", "quality", "generations") for precision in PRECISIONS]
    for kind, precision in [*measured, ("panel", PRECISIONS[0])]:
        record = read_record(folder, kind, precision)
        assert (record["status"], record["attempt"]) == ("ok", 1), (kind, precision, record["reason"])
    assert (folder / "REPORT.md").stat().st_size > 1000
    assert (folder / "results/tiny/summary.csv").exists()
    jobs = cluster.jobs(folder)
    assert len(jobs) == 8  # 2 precisions × 3 kinds, panel, reference; fetching, tables and report stay with the head
    assert {job.state for job in jobs} == {"COMPLETED"}
    logs = list((folder / ".snakemake/slurm_logs").rglob("*.log"))
    assert sorted(int(log.stem) for log in logs) == [job.number for job in jobs]


def test_a_job_that_measures_time_has_the_node_to_itself(cluster, whole):
    jobs = cluster.jobs(whole["submitted"])
    assert sum("measure_time" in job.what for job in jobs) == 1
    for timed in (job for job in jobs if "measure_time" in job.what):
        others = [job for job in jobs if job is not timed]
        assert all(other.end <= timed.start or other.start >= timed.end for other in others)
        assert timed.cpus == 8  # the whole node, though it asked for one core


def test_a_drained_node_holds_the_study_up_and_costs_nothing(whole):
    drained = {job.number: job.state for job in whole["drained"]}
    assert [drained[job.number] for job in whole["first"]] == ["COMPLETED"] * len(whole["first"])
    assert "PENDING" in drained.values()
    assert set(drained.values()) <= {"COMPLETED", "PENDING"}


def rows(file: Path) -> list[dict]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_slurm_and_one_machine_agree(whole):
    tables = sorted(path.name for path in (whole["local"] / "results/tiny").glob("*.csv"))
    assert {"processes.csv", "probes.csv", "quality.csv", "generations.csv", "summary.csv"} <= set(tables)
    for name in tables:
        here, there = (rows(whole[where] / "results/tiny" / name) for where in ("local", "submitted"))
        assert [list(row) for row in here] == [list(row) for row in there], name
        if name in ("quality.csv", "generations.csv"):
            assert here == there, name  # to the last digit


def test_no_accounting_here(cluster, whole):
    """The plugin's own choice, sacct, exists on this cluster and cannot answer."""
    sacct = cluster.run("sacct")
    assert sacct.returncode != 0 and "accounting storage is disabled" in sacct.stdout


# --- limits: GPUs, memory, time --------------------------------------------------------------------------------------

# 50 million parameters, 200 MB in fp32: too much for the smaller of the two memory requests below.
BULKY = tiny.synthetic(hidden_size=1024, intermediate_size=4096, num_hidden_layers=3)


@pytest.fixture(scope="module")
def limited(cluster, sample, tmp_path_factory):
    """Runs that meet a limit each, side by side: name → folder."""
    tmp = tmp_path_factory.mktemp("limited")
    models = tiny.study(sample)["models"]
    seventy = {"name": "llama-70b", "source": {"type": "synthetic", "shape": "llama-2-70b"}, "precisions": ["bf16"]}
    bulky = {"name": "bulky", "source": BULKY}
    folders = {
        "gpus": checkout(
            tmp / "gpus", sample, device="cuda", models=[*models, seventy], precisions=["fp32", "bf16", "fp16"]
        ),
        "oom": checkout(tmp / "oom", sample, models=[bulky]),
        "retry": checkout(tmp / "retry", sample, models=[bulky], jobs={"minutes": 3, "oom_attempts": 2}),
        "timeout": checkout(
            tmp / "timeout",
            sample,
            generations={"prompts": [f"Once upon a time {n}" for n in range(3000)], "new_tokens": 200},
            jobs={"minutes": 30},
        ),
    }
    for name in ("oom", "retry"):
        edit_profile(folders[name], "measure", mem_mb='"attempt * 1100"')
    edit_profile(folders["timeout"], "measure", runtime=1)
    targets = {
        "gpus": [record_path("probe", name) for name in ("fp32", "bf16", "fp16")]
        + [record_path("probe", "bf16", "llama-70b")],
        "oom": [record_path("probe", "fp32", "bulky")],
        "retry": [record_path("probe", "fp32", "bulky")],
        "timeout": [record_path("generations", "fp32")],
    }
    heads = {
        name: cluster.start(*SNAKEMAKE, *STUDY, *targets[name], folder=folder, output=tmp / f"{name}.log")
        for name, folder in folders.items()
    }
    for name, head in heads.items():
        assert head.wait(timeout=300) == 0, (tmp / f"{name}.log").read_text()[-3000:]
    return folders


def test_never_more_gpu_jobs_at_once_than_gpus(cluster, limited):
    jobs = cluster.jobs(limited["gpus"])
    assert sorted(job.gpus for job in jobs) == [1, 1, 1, 2]
    in_use = [sum(other.gpus for other in jobs if other.start <= job.start < other.end) for job in jobs]
    assert max(in_use) == 2  # both were used, and never a third
    statuses = {read_record(limited["gpus"], "probe", name)["status"] for name in ("fp32", "bf16", "fp16")}
    assert statuses == {"unsupported"}  # the GPUs are pretended: that is a result too


def test_a_model_larger_than_a_gpu_asks_for_more(cluster, limited):
    [large] = [job for job in cluster.jobs(limited["gpus"]) if "llama-70b" in job.what]
    assert large.gpus == 2  # 128 GiB in bf16, 80 GiB a GPU


def test_out_of_memory_becomes_a_record(cluster, limited):
    record = read_record(limited["oom"], "probe", "fp32", "bulky")
    assert (record["status"], record["attempt"]) == ("oom", 1), record["reason"]
    assert [job.state for job in cluster.jobs(limited["oom"])] == ["COMPLETED"]


def test_out_of_memory_is_tried_again_with_more_where_configured(cluster, limited):
    record = read_record(limited["retry"], "probe", "fp32", "bulky")
    assert (record["status"], record["attempt"]) == ("ok", 2), record["reason"]
    assert [job.state for job in cluster.jobs(limited["retry"])] == ["FAILED", "COMPLETED"]


def test_time_over_becomes_a_record_before_slurm_ends_the_job(cluster, limited):
    record = read_record(limited["timeout"], "generations", "fp32")
    assert record["status"] == "timeout"
    [job] = cluster.jobs(limited["timeout"])
    assert job.state == "COMPLETED"


# --- interruptions ---------------------------------------------------------------------------------------------------


def test_ctrl_c_then_sigkill_then_restart(cluster, sample, tmp_path):
    """One checkout through both: after Ctrl-C a plain start suffices, after SIGKILL the queue has to be settled."""
    names = ["fp32", "bf16", "fp16"]
    folder = checkout(tmp_path / "study", sample, precisions=names)
    targets = [record_path("probe", name) for name in names]
    study = (*SNAKEMAKE, *STUDY, "--jobs", "2", *targets)

    head = cluster.start(*study, folder=folder, output=tmp_path / "interrupted.log")
    wait_for(lambda: len(in_state(cluster, folder, "RUNNING")) == 2, 90, "two jobs to run")
    assert cluster.run(*study, "--unlock", folder=folder).returncode == 0  # carelessly
    for second in (study, (sys.executable, "tools/settle_jobs.py", "cancel")):
        refused = cluster.run(*second, folder=folder)
        assert refused.returncode != 0 and "another Snakemake (process " in refused.stdout, refused.stdout
    assert len(in_state(cluster, folder, "PENDING", "RUNNING")) == len(cluster.jobs(folder)) == 2
    signal_command(head, signal.SIGINT)
    assert head.wait(timeout=60) != 0
    wait_for(lambda: not in_state(cluster, folder, "PENDING", "RUNNING", "COMPLETING"), 30, "the jobs to be cancelled")
    cancelled = cluster.jobs(folder)
    assert [job.state for job in cancelled] == ["CANCELLED"] * 2
    assert not any((folder / target).exists() for target in targets)
    left = cluster.run("pgrep", "--full", "llmstudy.runner.child").stdout.split()
    assert not left  # the measuring processes went with their jobs

    head = cluster.start(*study, folder=folder, output=tmp_path / "killed.log")
    wait_for(lambda: len(in_state(cluster, folder, "RUNNING")) == 2, 90, "two jobs to run")
    signal_command(head, signal.SIGKILL)
    assert head.wait(timeout=30) != 0
    assert len(in_state(cluster, folder, "RUNNING")) == 2

    locked = cluster.run(*study, folder=folder)
    assert locked.returncode != 0 and "--unlock" in locked.stdout
    assert cluster.run(*study, "--unlock", folder=folder).returncode == 0
    refused = cluster.run(*study, folder=folder)
    assert refused.returncode != 0
    [line] = [one for one in refused.stdout.splitlines() if "settle_jobs.py" in one]
    assert "still in SLURM's queue: 2" in line and "Their Snakemake was process " in line
    assert len(cluster.jobs(folder)) == 4

    settled = cluster.run(sys.executable, "tools/settle_jobs.py", "wait", "--interval", "1", folder=folder)
    assert settled.returncode == 0, settled.stdout
    assert sum((folder / target).exists() for target in targets) == 2
    again = cluster.run(*study, folder=folder)
    assert again.returncode == 0, again.stdout[-3000:]
    assert {read_record(folder, "probe", name)["status"] for name in names} == {"ok"}
    finished = [job.what for job in cluster.jobs(folder) if job.state == "COMPLETED"]
    assert len(finished) == len(set(finished)) == 3  # each ran to its end once
    assert len(cluster.jobs(folder)) == 5


def test_heads_outlive_an_outage_of_the_controller(cluster, sample, tmp_path):
    """A minute without controller, longer than it takes the plugin without our ``sacct`` to lose its jobs."""
    endless = {"prompts": [f"Once upon a time {n}" for n in range(3000)], "new_tokens": 200}
    probe, generated = record_path("probe", "fp32"), record_path("generations", "fp32")
    targets = {"left alone": probe, "killed": probe, "interrupted": generated}
    folders = {name: checkout(tmp_path / name.split()[0], sample, generations=endless) for name in targets}
    heads = {
        name: cluster.start(*SNAKEMAKE, *STUDY, targets[name], folder=folder, output=tmp_path / f"{name}.log")
        for name, folder in folders.items()
    }
    # A job that only starts would fail: srun does not get its step.
    measuring = ("pgrep", "--full", "llmstudy.runner.child")
    wait_for(lambda: cluster.run(*measuring).stdout.count("\n") == len(heads), 120, "all to measure")
    with cluster.controller_away():
        began = time.monotonic()
        asking = ("pgrep", "--exact", "squeue")
        wait_for(lambda: cluster.run(*asking).stdout.count("\n") == len(heads), 60, "all heads to ask for states")
        signal_command(heads["killed"], signal.SIGTERM)
        signal_command(heads["interrupted"], signal.SIGINT)
        time.sleep(max(0, began + 60 - time.monotonic()))
    for head in heads.values():
        head.wait(timeout=150)
    assert heads["left alone"].returncode == 0, (tmp_path / "left alone.log").read_text()[-3000:]
    assert heads["killed"].returncode != 0 and heads["interrupted"].returncode != 0
    states = {name: [job.state for job in cluster.jobs(folder)] for name, folder in folders.items()}
    assert states["left alone"] == states["killed"] == ["COMPLETED"]
    assert {read_record(folders[name], "probe", "fp32")["status"] for name in ("left alone", "killed")} == {"ok"}
    assert states["interrupted"] in (["CANCELLED"], ["COMPLETING"])  # though its head knew of no job at that moment
    assert not (folders["interrupted"] / generated).exists()


def test_settling_by_cancelling(cluster, sample, tmp_path):
    folder = checkout(tmp_path / "study", sample)
    study = (*SNAKEMAKE, *STUDY, record_path("probe", "fp32"))
    head = cluster.start(*study, folder=folder, output=tmp_path / "killed.log")
    wait_for(lambda: in_state(cluster, folder, "RUNNING"), 90, "the job to run")
    signal_command(head, signal.SIGKILL)
    head.wait(timeout=30)
    elsewhere = checkout(tmp_path / "elsewhere", sample)
    script = (sys.executable, "tools/settle_jobs.py")
    assert "no jobs" in cluster.run(*script, "list", folder=elsewhere).stdout
    settled = cluster.run(*script, "cancel", "--interval", "1", folder=folder)
    assert settled.returncode == 0, settled.stdout
    assert [job.state for job in cluster.jobs(folder)] == ["CANCELLED"]


def test_a_wrong_partition_is_named_once_and_nothing_is_submitted(cluster, sample, tmp_path):
    folder = checkout(tmp_path / "study", sample)
    profile = folder / "slurm" / "config.yaml"
    profile.write_text(profile.read_text().replace("&measuring gpu", "&measuring nowhere"))
    refused = cluster.run(*SNAKEMAKE, *STUDY, folder=folder)
    assert refused.returncode != 0
    [line] = [one for one in refused.stdout.splitlines() if "nowhere" in one]
    assert line == (
        "slurm_partition: 'nowhere' is not a partition of this cluster; allowed: cpu, gpu; "
        "edit the lines marked SITE in slurm/config.yaml"
    )
    assert cluster.jobs(folder) == []
    assert not list((folder / "results").rglob("*.json"))
