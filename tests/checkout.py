"""Checkouts of the workflow in a test's folder, and Snakemake in them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import tiny
import yaml
from llmstudy.tables.columns import read_table

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("Snakefile", "config", "envs", "slurm", "tools", "workflow")
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}


class Checkout:
    """A folder that Snakemake takes for a clone.

    Args:
        folder: where it is made, without anybody's results.
        copy: whether its files may be changed (True); links to those of this repository (False); or those that are
            there (None).
        study: changes of the tiny study in ``study.yaml``.
    """

    def __init__(self, folder: Path, copy: bool | None = False, **study):
        self.folder = folder
        self.study = study
        for name in PARTS if copy is not None else ():
            if copy and (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
            elif copy:
                shutil.copy(ROOT / name, folder)
            else:
                (folder / name).symlink_to(ROOT / name)

    def run(self, *arguments: str, seconds: float = 300, **environment: str) -> tuple[int, str]:
        """Run Snakemake; return its exit code and what it printed."""
        cores = [] if {"--profile", "--cores"} & set(arguments) else ["--cores", "1"]
        run = subprocess.run(
            [sys.executable, "-m", "snakemake", *cores, *arguments],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
            env=os.environ | ENVIRONMENT | environment,
        )
        return run.returncode, run.stdout

    def snakemake(self, *arguments: str, **environment: str) -> str:
        """Run Snakemake, which must succeed; return what it printed."""
        code, output = self.run(*arguments, **environment)
        assert code == 0, output
        return output

    def write(self, config: dict) -> str:
        """Write ``study.yaml``; return the option that names it."""
        (self.folder / "study.yaml").write_text(yaml.safe_dump(config))
        return "--configfile=study.yaml"

    def tiny(self, *arguments: str, **study) -> str:
        """Run the tiny study with some changes; see ``snakemake``. Names in capitals are of the environment."""
        environment = {key: study.pop(key) for key in list(study) if key.isupper()}
        config = tiny.study(self.folder / "data", **(self.study | study))
        return self.snakemake(self.write(config), *arguments, **environment)

    def dry_run(self, *arguments: str, **environment: str) -> dict[str, int]:
        """Return the jobs that a run would do now, by rule."""
        return jobs(self.snakemake("-n", *arguments, **environment))

    def planned(self, **study) -> dict[str, int]:
        """Return the jobs that a run of the tiny study would do now, by rule."""
        return jobs(self.tiny("-n", **study))

    def record(self, kind: str, precision: str, attention: str = "sdpa") -> dict:
        """Return a record of the tiny study."""
        name = f"results/tiny/records/{kind}/tiny-llama/{precision}.{attention}.generate.r0.json"
        return json.loads((self.folder / name).read_text())

    def table(self, name: str):
        """Return a table of the tiny study."""
        return read_table(self.folder / f"results/tiny/{name}.csv")


def jobs(output: str) -> dict[str, int]:
    """Return the jobs of a dry run by rule; none where nothing is to be done."""
    found = {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", output, flags=re.MULTILINE)}
    assert found or "Nothing to be done" in output, output
    assert sum(found.values()) == 2 * found.get("total", 0), output
    return {rule: count for rule, count in found.items() if rule not in ("total", "all")}


def measuring(jobs: dict[str, int]) -> dict[str, int]:
    """Return those jobs that fetch or measure."""
    return {rule: count for rule, count in jobs.items() if rule.startswith(("fetch", "measure"))}


def inputs(output: str, rule: str) -> str:
    """Return the inputs of a rule's first job, as a dry run prints them."""
    return re.search(rf"^(?:local)?rule {rule}:\n    input: (.*)\n", output, re.M)[1]
