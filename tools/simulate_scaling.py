"""Time Snakemake itself on studies of 10 to 10 000 measuring jobs; docs/scaling.md holds the numbers of a run.

Every study is the workflow with a config of synthetic models, of which nothing is fetched or measured: a dry run times
the building of the graph, and an executor that writes the outputs at once times scheduling and bookkeeping.

    python tools/simulate_scaling.py                        dry runs of all sizes
    python tools/simulate_scaling.py --sizes 10 100 --run   and runs
"""

import argparse
import csv
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
COLUMNS = ["measuring_jobs", "mode", "wall_s", "peak_rss_mib"]
# Measuring jobs → models, attention kernels, panels. Five precisions; each configuration is probed once.
SIZES = {10: (1, 1, 5), 100: (5, 2, 10), 1_000: (50, 2, 10), 10_000: (500, 2, 10)}
PRECISIONS = ["bf16", "fp16", "llm-int8", "nf4", "fp4"]
# An executor that finishes a job by touching its outputs.
EXECUTOR = """
from pathlib import Path

from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.executors.real import RealExecutor
from snakemake_interface_executor_plugins.settings import CommonSettings

common_settings = CommonSettings(
    non_local_exec=False,
    implies_no_shared_fs=False,
    job_deploy_sources=False,
    pass_envvar_declarations_to_cmd=False,
    auto_deploy_default_storage_provider=False,
)


class Executor(RealExecutor):
    def run_job(self, job):
        info = SubmittedJobInfo(job=job)
        for output in job.output:
            Path(output).parent.mkdir(parents=True, exist_ok=True)
            Path(output).touch()
        self.report_job_submission(info)
        self.report_job_success(info)

    def cancel(self):
        pass

    def shutdown(self):
        pass

    def get_exec_mode(self):
        raise NotImplementedError

    def get_python_executable(self):
        raise NotImplementedError

    @property
    def cores(self):
        return self.workflow.resource_settings.cores
"""


def study(jobs: int) -> dict:
    """Return a config with exactly ``jobs`` measuring jobs."""
    models, kernels, panels = SIZES[jobs]
    return {
        "study": f"scaling-{jobs}",
        "device": "cuda",
        "threads": 1,
        "models": [
            {"name": f"model-{number}", "source": {"type": "synthetic", "shape": "llama-2-7b", "seed": number}}
            for number in range(models)
        ],
        "corpora": [{"name": "text", "source": {"type": "path", "file": "text.txt", "format": "txt"}}],
        "precisions": PRECISIONS,
        "reference": "bf16",
        "attention": ["eager", "sdpa"][-kernels:],
        "speed": {"panels": {"maximum": panels}},
        "generations": {"prompts": []},
    }


def simulate(jobs: int, run: bool) -> Iterator[dict]:
    """Yield a row for a dry run and, with ``run``, for a run in which every job is done at once."""
    with tempfile.TemporaryDirectory(prefix="scaling-") as name:
        folder = Path(name)
        for part in ("workflow", "config", "envs"):
            shutil.copytree(REPOSITORY / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(REPOSITORY / "Snakefile", folder)
        (folder / "study.yaml").write_text(yaml.safe_dump(study(jobs)), encoding="utf-8")
        (folder / "text.txt").touch()  # its existence is checked when a run starts
        plugin = folder / "plugins" / "snakemake_executor_plugin_immediate"
        plugin.mkdir(parents=True)
        (plugin / "__init__.py").write_text(EXECUTOR, encoding="utf-8")
        snakemake = [sys.executable, "-m", "snakemake", "--configfile=study.yaml", "--quiet", "rules"]
        row, shown = timed([*snakemake, "--dry-run"], folder, jobs, "dry run")
        check_size(shown, jobs)
        yield row
        if run:
            # One core a job: as many at once as the profile lets SLURM have.
            yield timed([*snakemake, "--executor", "immediate", "--cores", "100"], folder, jobs, "run")[0]
            yield timed([*snakemake, "--dry-run"], folder, jobs, "dry run, all done")[0]


def timed(command: list[str], folder: Path, jobs: int, mode: str) -> tuple[dict, str]:
    """Return a row with wall time and peak memory of a command, and what it printed."""
    environment = os.environ | {"PYTHONPATH": str(folder / "plugins")}
    start = time.perf_counter()
    with (folder / "shown.txt").open("w+", encoding="utf-8") as shown:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=shown, stderr=shown)
        _, status, usage = os.wait4(process.pid, 0)
        wall_s = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        shown.seek(0)
        text = shown.read()
    if process.returncode:
        sys.exit(f"error: {mode} of {jobs} jobs: exit status {process.returncode}\n{text[-2000:]}")
    return dict(zip(COLUMNS, (jobs, mode, f"{wall_s:.1f}", f"{peak_mib(usage):.0f}"))), text


def peak_mib(usage: resource.struct_rusage) -> float:
    """Return peak resident memory in MiB; Linux counts in KiB."""
    return usage.ru_maxrss / 1024


def check_size(shown: str, jobs: int) -> None:
    """Exit if a dry run planned another number of measuring jobs."""
    counts = dict(re.findall(r"^(measure\w*) +(\d+)$", shown, re.MULTILINE))  # the table is shown twice
    planned = sum(map(int, counts.values()))
    if planned != jobs:
        sys.exit(f"error: the study of {jobs} measuring jobs has {planned}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", choices=SIZES, default=list(SIZES), metavar="N")
    parser.add_argument("--run", action="store_true", help="also run each study with jobs that are done at once")
    arguments = parser.parse_args()
    table = csv.DictWriter(sys.stdout, COLUMNS)
    table.writeheader()
    for size in arguments.sizes:
        for measured in simulate(size, arguments.run):
            table.writerow(measured)
            sys.stdout.flush()
