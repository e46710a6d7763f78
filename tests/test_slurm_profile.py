"""The profile slurm/config.yaml, read and dry-run without a SLURM; tests/slurm runs it on one."""

import re
import shutil
import subprocess
import sys

import pytest
import tiny
import yaml
from checkout import ROOT, Checkout
from llmstudy.kinds import KINDS

PROFILE = ROOT / "slurm" / "config.yaml"
LINES = PROFILE.read_text().splitlines()
SETTINGS = yaml.safe_load(PROFILE.read_text())
MEASURING = {kind.rule for kind in KINDS.values()}
RULES = {path.name: path.read_text() for path in (ROOT / "workflow/rules").glob("*.smk")}


def test_every_key_is_explained_where_it_comes_first():
    known = MEASURING.copy()  # rules explain themselves
    for line, before in zip(LINES[1:], LINES):
        key = re.match(r" *([a-z_-]+):", line)
        assert not key or key[1] in known or before.lstrip().startswith("#"), line
        known.update([key[1]] if key else [])


def test_lines_that_a_site_edits_are_marked_and_alternatives_shown_as_comments():
    marked = [number for number, line in enumerate(LINES) if "SITE" in line and number > 2]
    below = "\n".join("\n".join(LINES[number : number + 4]) for number in marked)
    for setting in ("jobs:", "slurm_partition: cpu", "slurm_partition: &measuring gpu", "slurm_account:", "gpu_model:"):
        assert setting in below, setting
    comments = "\n".join(line for line in LINES if line.lstrip().startswith("#"))
    for alternative in ("device=cuda", "gres:", "constraint:", "software-deployment-method: conda"):
        assert alternative in comments, alternative


def test_measuring_rules_share_a_partition_and_what_measures_time_a_node_with_nobody():
    requested = SETTINGS["set-resources"]
    assert set(requested) == MEASURING and len({values["slurm_partition"] for values in requested.values()}) == 1
    assert {rule for rule, values in requested.items() if "exclusive" in str(values)} == {"measure_time"}
    assert {name for name, kind in KINDS.items() if kind.rule == "measure_time"} == {"panel", "profile", "attention"}


def test_jobs_are_repeated_by_the_profile_alone_and_what_cannot_mend_itself_is_not():
    assert SETTINGS["retries"] > 0
    retries = {name: re.findall(r"retries: (.*)", text) for name, text in RULES.items() if "retries:" in text}
    assert retries == {"fetch.smk": ["0"] * 3, "report.smk": ["0"]}
    for text in RULES.values():  # and rules request nothing that only SLURM knows
        assert not re.search(r"slurm_(partition|account|extra)=|gres=|gpu_model=|constraint=", text)


def test_what_was_seen_to_go_wrong_is_left_out():
    """Job arrays, two ways to request GPUs at once, a first look after SLURM forgot, a few failed looks in seconds."""
    text = "\n".join(line for line in LINES if not line.lstrip().startswith("#"))
    assert "array" not in text and "gpus" not in text and not ("gres:" in text and "gpu_model:" in text)
    assert SETTINGS["slurm-status-attempts"] / SETTINGS["max-status-checks-per-second"] >= 3600
    assert 3 * SETTINGS["slurm-init-seconds-before-status-checks"] <= 300  # SLURM's default MinJobAge


@pytest.mark.slow
def test_snakemake_knows_every_key():
    shown = subprocess.run([sys.executable, "-m", "snakemake", "--help"], capture_output=True, text=True, check=True)
    options = set(re.findall(r"--[a-z-]+", shown.stdout))
    assert {f"--{key}" for key in SETTINGS} <= options


@pytest.fixture(scope="module")
def planned(tmp_path_factory) -> str:
    """What a dry run through the profile shows of a tiny study on a GPU, where there is neither SLURM nor conda."""
    checkout = Checkout(tmp_path_factory.mktemp("checkout"))
    (checkout.folder / "data" / "model").mkdir(parents=True)
    study = tiny.study(checkout.folder / "data", device="cuda", diagnostics={"profile": {"enabled": True}})
    python_alone = checkout.folder / "bin"
    python_alone.mkdir()
    for name in ("bash", "which"):  # Snakemake runs the one, the plugin looks for SLURM with the other
        (python_alone / name).symlink_to(shutil.which(name))
    arguments = ["--profile", "slurm", checkout.write(study), "-n", "--sdm", "env-modules"]
    return checkout.snakemake(*arguments, PATH=str(python_alone))


def requests(planned: str, rule: str) -> list[dict[str, str]]:
    """The resources of each job of a rule."""
    blocks = re.findall(rf"^(?:local)?rule {rule}:\n((?: .*\n)+)", planned, re.MULTILINE)
    lines = [re.search(r"resources: (.*)", block)[1] for block in blocks]
    return [dict(part.split("=", 1) for part in line.split(", ")) for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "count"), {"measure_time": 3, "measure": 4, "measure_reference": 1, "measure_quality": 2}.items()
)
def test_a_measuring_job_requests_a_gpu_in_its_partition(planned, rule, count):
    found = requests(planned, rule)
    assert len(found) == count
    for one in found:
        assert (one["slurm_partition"], one["gpu"]) == ("gpu", "1")
        assert int(one["mem_mb"]) > 0 and int(one["runtime"]) > 0
        assert (one.get("slurm_extra") == "--exclusive") == (rule == "measure_time")


@pytest.mark.parametrize("file", ["fetch.smk", "tables.smk", "report.smk"])
def test_fetching_tables_and_report_stay_where_snakemake_runs(file):
    """Compute nodes often have no network, and a table takes a second."""
    rules = re.findall(r"^ *rule ?(\w*):\n|^use rule \w+ as (\w+) with:\n", RULES[file], re.MULTILINE)
    listed = re.search(r"^localrules:\n((?: +\w+,\n)+)", RULES[file], re.MULTILINE)
    local = re.findall(r"\w+", listed[1]) if listed else re.findall("localrule: True", RULES[file])
    assert len(rules) == len(local) > 0
