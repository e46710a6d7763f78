"""The profile slurm/config.yaml, read and dry-run without a SLURM; tests/slurm runs it on one."""

import os
import re
import shutil
import subprocess
import sys

import pytest
import tiny
import yaml
from conftest import REPOSITORY

PROFILE = REPOSITORY / "slurm" / "config.yaml"
LINES = PROFILE.read_text().splitlines()
SETTINGS = yaml.safe_load(PROFILE.read_text())
KEY = re.compile(r"^( *)([a-z_-]+):")


def rules_of(name: str) -> set[str]:
    return set(re.findall(r"^rule (\w+):", (REPOSITORY / "workflow/rules" / name).read_text(), re.MULTILINE))


MEASURING = rules_of("measure.smk") | rules_of("measure_extras.smk") | {"measure_tasks"}


def test_every_key_is_explained_where_it_first_stands():
    known = set()
    for number, line in enumerate(LINES):
        found = KEY.match(line)
        # Rules are named by the rules themselves.
        if found and found[2] not in known | MEASURING:
            assert LINES[number - 1].lstrip().startswith("#"), line
        known.update([found[2]] if found else [])


def test_lines_that_a_site_edits_are_marked():
    marked = [number for number, line in enumerate(LINES) if "SITE" in line and number > 2]
    below = "\n".join("\n".join(LINES[number : number + 4]) for number in marked)
    for setting in ("jobs:", "slurm_partition: cpu", "slurm_partition: &measuring gpu", "slurm_account:", "gpu_model:"):
        assert setting in below, setting


@pytest.mark.parametrize("alternative", ["device=cuda", "gres:", "constraint:", "software-deployment-method: conda"])
def test_alternatives_are_shown_as_comments(alternative):
    assert any(alternative in line and line.lstrip().startswith("#") for line in LINES)


def test_every_measuring_rule_goes_to_the_same_partition():
    assert set(SETTINGS["set-resources"]) == MEASURING
    assert len({values["slurm_partition"] for values in SETTINGS["set-resources"].values()}) == 1


def test_what_measures_time_takes_a_whole_node():
    exclusive = {rule for rule, values in SETTINGS["set-resources"].items() if "exclusive" in str(values)}
    assert exclusive == {"measure_latency", "measure_extra", "measure_sweep"}


def test_jobs_are_repeated_by_the_profile_and_by_downloads_alone():
    assert SETTINGS["retries"] > 0
    for file in (REPOSITORY / "workflow/rules").glob("*.smk"):
        text = file.read_text()
        blocks = re.split(r"^(?=rule )", text, flags=re.MULTILINE)
        repeating = [
            block.split(":")[0].removeprefix("rule ") for block in blocks if re.search(r"^ +retries:", block, re.M)
        ]
        assert all(name.startswith("fetch_") for name in repeating), (file.name, repeating)


def test_rules_ask_for_nothing_that_only_slurm_knows():
    for file in (REPOSITORY / "workflow/rules").glob("*.smk"):
        assert not re.search(r"slurm_(partition|account|extra)=|gres=|gpu_model=|constraint=", file.read_text()), file


def test_no_job_arrays_and_no_second_way_to_ask_for_gpus():
    text = "\n".join(line for line in LINES if not line.lstrip().startswith("#"))
    assert "array" not in text
    assert "gpus" not in text and not ("gres:" in text and "gpu_model:" in text)


def test_states_come_from_squeue_and_are_looked_at_before_slurm_forgets_them():
    assert SETTINGS["slurm-status-command"] == "squeue"
    assert 3 * SETTINGS["slurm-init-seconds-before-status-checks"] <= 300  # SLURM's default MinJobAge


@pytest.mark.slow
def test_snakemake_knows_every_key():
    shown = subprocess.run([sys.executable, "-m", "snakemake", "--help"], capture_output=True, text=True, check=True)
    options = set(re.findall(r"--[a-z-]+", shown.stdout))
    assert {f"--{key}" for key in SETTINGS} <= options


@pytest.fixture(scope="module")
def planned(tmp_path_factory) -> str:
    """What a dry run through the profile shows of a tiny study on a GPU, where there is neither SLURM nor conda."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("workflow", "config", "slurm", "envs"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "Snakefile", folder)
    sample = tiny.study(folder / "sample", device="cuda")
    (folder / "study.yaml").write_text(yaml.safe_dump(sample))
    command = ["--profile", "slurm", "--configfile=study.yaml", "--dry-run", "--sdm", "env-modules"]
    python_alone = folder / "bin"
    python_alone.mkdir()
    for name in ("bash", "which"):  # Snakemake runs the one, the plugin looks for SLURM with the other
        (python_alone / name).symlink_to(shutil.which(name))
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", *command],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PATH": str(python_alone)},
    )
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


def resources(planned: str, rule: str) -> list[dict[str, str]]:
    """The resources of each job of a rule."""
    blocks = re.findall(rf"^(?:local)?rule {rule}:\n((?: .*\n)+)", planned, re.MULTILINE)
    lines = [re.search(r"resources: (.*)", block)[1] for block in blocks]
    return [dict(part.split("=", 1) for part in line.split(", ")) for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize("rule", sorted(rules_of("measure.smk")))
def test_a_measuring_job_asks_for_a_gpu_in_its_partition(planned, rule):
    asked = resources(planned, rule)
    assert asked
    for one in asked:
        assert (one["slurm_partition"], one["gpu"]) == ("gpu", "1")
        assert int(one["mem_mb"]) > 0 and int(one["runtime"]) > 0
        assert (one.get("slurm_extra") == "--exclusive") == (rule == "measure_latency")


def test_fetching_stays_where_snakemake_runs():
    """Compute nodes often have no network."""
    text = (REPOSITORY / "workflow/rules/weights.smk").read_text()
    assert set(re.search(r"^localrules:\n((?: +\w+,\n)+)", text, re.MULTILINE)[1].replace(",", "").split()) == rules_of(
        "weights.smk"
    )
