"""The throw-away cluster of lab.sh as Python objects, and checkouts of the study to run on it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import tiny
from checkout import ROOT, Checkout
from llmstudy.runner.job import Identity

LAB = Path(__file__).with_name("lab.sh")
NEEDED = ("slurmctld", "slurmd", "sbatch", "squeue", "munged", "unshare", "nsenter")
# Looks at the jobs often: each lasts seconds here.
SNAKEMAKE = (sys.executable, "-m", "snakemake", "--profile", "slurm", "--slurm-init-seconds-before-status-checks", "3")


def missing() -> str:
    """Why there can be no cluster here, or nothing."""
    absent = [name for name in NEEDED if shutil.which(name) is None]
    if absent or not Path("/etc/slurm").is_dir():
        return (
            f"no SLURM here ({', '.join(absent) or '/etc/slurm'} missing); get it with "
            "`apt-get install --no-install-recommends slurmctld slurmd slurm-client munge`"
        )
    return "" if os.geteuid() == 0 else "a SLURM of one's own needs root, for its namespaces"


@dataclass(frozen=True)
class Job:
    """What SLURM knows of a job: its number, state, rule with wildcards, first and last second, CPUs and GPUs."""

    number: int
    state: str
    what: str
    start: datetime | None
    end: datetime | None
    cpus: int
    gpus: int


class Cluster:
    """A running lab; ``close`` ends it with all that runs in it."""

    def __init__(self, folder: Path):
        self.folder = folder
        # `cat` keeps the cluster up until this pipe closes, however this process ends.
        self.keeper = subprocess.Popen(
            [LAB, "run", folder, "cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        wait_for(lambda: (folder / "ready").exists() or self.keeper.poll() is not None, 60, "SLURM to come up")
        if self.keeper.poll() is not None:
            raise RuntimeError(f"SLURM did not come up: {self.keeper.stderr.read()}")

    def close(self) -> None:
        self.keeper.communicate("", timeout=30)

    def start(self, *command: str | Path, folder: Path, output: Path) -> subprocess.Popen:
        """Start a command in the cluster; what it prints goes to ``output``."""
        with output.open("w") as stream:
            return subprocess.Popen(
                [LAB, "join", self.folder, *command],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                start_new_session=True,
                # A shell starts what it runs in the background without Ctrl-C, and the tests would hand that down.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    def run(self, *command: str | Path, folder: Path = ROOT, seconds: float = 240) -> subprocess.CompletedProcess:
        """Run a command in the cluster; its output and errors come together."""
        return subprocess.run(
            [LAB, "join", self.folder, *command],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

    @contextmanager
    def controller_away(self) -> Iterator[None]:
        """Stop SLURM's controller within the context; jobs go on, and nothing that is asked about them is answered."""
        self.run("scontrol", "shutdown", "slurmctld")
        wait_for(lambda: "slurmctld" not in self.run("ps", "-eo", "comm").stdout, 30, "the controller to stop")
        try:
            yield
        finally:
            self.run("slurmctld")
            wait_for(lambda: self.run("sinfo").returncode == 0, 60, "the controller to come back")

    def jobs(self, folder: Path) -> list[Job]:
        """All jobs that were submitted from ``folder``, finished ones too, by number."""
        shown = self.run("scontrol", "show", "job").stdout.split("\n\n")
        fields = [dict(re.findall(r"(\S+?)=(\S*)", text)) for text in shown]
        return sorted((_job(one) for one in fields if one.get("WorkDir") == str(folder)), key=lambda job: job.number)


def _job(fields: dict[str, str]) -> Job:
    gpus = re.search(r"gres:gpu:(\d+)", fields.get("TresPerJob", ""))
    start, end = (
        datetime.fromisoformat(fields[name]) if fields[name][:1].isdigit() else None
        for name in ("StartTime", "EndTime")
    )
    return Job(
        int(fields["JobId"]),
        fields["JobState"],
        fields.get("Comment", ""),
        start,
        end,
        int(fields["NumCPUs"].split("-")[0]),
        int(gpus[1]) if gpus else 0,
    )


def signal_command(process: subprocess.Popen, number: signal.Signals) -> None:
    """Send a signal to the command that ``Cluster.start`` started: the child of nsenter."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[0]), number)


def wait_for(condition: Callable[[], object], seconds: float, what: str):
    """The first true value of ``condition``; AssertionError if there is none within ``seconds``."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.3)
    raise AssertionError(f"waited {seconds:.0f} s in vain for {what}")


def checkout(folder: Path, sample: Path, **changes) -> Path:
    """A fresh copy of the workflow with ``study.yaml``, a tiny study whose model and text lie in ``sample``."""
    folder.mkdir(parents=True)
    Checkout(folder, copy=True).write(tiny.study(sample, **changes))
    return folder


def edit_profile(folder: Path, rule: str, **values) -> None:
    """What a site does by hand: add lines for a rule to the profile."""
    file = folder / "slurm" / "config.yaml"
    lines = "".join(f"    {key}: {value}\n" for key, value in values.items())
    text = file.read_text()
    assert text.count(f"\n  {rule}:\n") == 1
    file.write_text(text.replace(f"\n  {rule}:\n", f"\n  {rule}:\n{lines}"))


def record_path(kind: str, precision: str, model: str = "tiny-llama") -> str:
    """Where a record of the tiny study lies."""
    return Identity("tiny", kind, model, precision, "sdpa", "generate").path
