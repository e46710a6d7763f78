"""The workflow itself: a dry run of every shipped config, linters, and mistakes that stop before any job."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
import yaml
from llmstudy.report import figures

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
# Once each in every study.
ONCE = [
    "aggregate_latency",
    "aggregate_memory",
    "aggregate_provenance",
    "aggregate_quality",
    "aggregate_samples",
    "aggregate_text",
    "judge_precisions",
    "render_report",
    "all",
]
EXPECTED = {
    # 6 precisions × 2 attention kernels (× 2 repeats); quality (and one ruler's) and samples under one kernel
    "config.yaml": {
        "fetch_weights": 1,
        "fetch_corpus": 1,
        "measure_latency": 24,
        "measure_memory": 12,
        "keep_reference": 1,
        "measure_quality": 6 + 1,
        "generate_samples": 6,
        "measure_extra": 1 + 1 + 6 + 6 + 2,  # outliers, sensitivity, invariance, profile, attention kernels
        "measure_sweep": 6,
        "aggregate_extra": 5,
        "aggregate_sweep": 1,
        "find_crossovers": 1,
        "predict_capacity": 1,
    },
    # 5 precisions × 2 attention kernels (× 5 repeats)
    "llama2-7b.yaml": {
        "fetch_weights": 1,
        "fetch_corpus": 1,
        "measure_latency": 50,
        "measure_memory": 10,
        "keep_reference": 1,
        "measure_quality": 5,
        "generate_samples": 5,
    },
    # one real model: 8 precisions; random ones: 6 × 2 runtimes (× 2 repeats), 6 × 2 and 4 × 2
    "h200.yaml": {
        "fetch_weights": 4,
        "fetch_corpus": 1,
        "measure_latency": 8 + 24 + 12 + 8,
        "measure_memory": 8 + 12 + 12 + 8,
        "keep_reference": 1,
        "measure_quality": 8 + 2,
        "generate_samples": 8,
        "measure_extra": 1 + 1 + 8 + 12 + 7,  # outliers, sensitivity, invariance, profile, attention kernels
        "measure_sweep": 6,
        "verify_capacity": 12,
        "aggregate_extra": 5,
        "aggregate_sweep": 1,
        "find_crossovers": 1,
        "predict_capacity": 1,
    },
}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of what a fresh clone has, without anybody's results."""
    folder = tmp_path_factory.mktemp("checkout")
    for part in ("workflow", "config", "envs"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "Snakefile", folder)
    return folder


def snakemake(folder: Path, *arguments: str) -> tuple[int, str]:
    command = [BIN / "snakemake", *arguments]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    return run.returncode, run.stdout + run.stderr


def jobs(output: str) -> dict[str, int]:
    """Jobs by rule, from the table that a dry run prints."""
    found = dict(re.findall(r"^(\w+) +(\d+)$", output, flags=re.MULTILINE))
    assert sum(int(count) for rule, count in found.items() if rule != "total") == int(found.pop("total"))
    return {rule: int(count) for rule, count in found.items()}


def write(folder: Path, config: dict) -> str:
    (folder / "study.yaml").write_text(yaml.safe_dump(config))
    return "study.yaml"


def test_every_shipped_config_is_expected():
    assert {path.name for path in (ROOT / "config").glob("*.yaml")} == set(EXPECTED)


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPECTED)
def test_a_dry_run_plans_exactly_these_jobs(checkout, name):
    arguments = [] if name == "config.yaml" else ["--configfile", f"config/{name}"]
    code, output = snakemake(checkout, "-n", "--cores", "1", *arguments)
    assert code == 0, output
    found = jobs(output)
    plots = {rule: count for rule, count in found.items() if rule.startswith("plot_")}
    assert {rule: count for rule, count in found.items() if rule not in plots} == EXPECTED[name] | dict.fromkeys(
        ONCE, 1
    )
    assert set(plots.values()) == {1} and {rule.removeprefix("plot_") for rule in plots} <= set(figures.FIGURES)


@pytest.mark.slow
def test_a_study_of_ones_own_takes_nothing_from_the_default_study(checkout, tmp_path):
    """Snakemake merges config files key by key; 20 documents of the default must not cut another study's text."""
    (tmp_path / "model").mkdir()
    study = tiny.study(tmp_path)
    del study["speed"]["repeats"]
    code, output = snakemake(checkout, "-n", "--cores", "1", "--configfile", write(checkout, study))
    assert code == 0, output
    assert jobs(output)["measure_latency"] == 2 * 3  # the schema's three repeats, not the default study's two
    assert '"documents": 20' not in output and "'documents': 20" not in output
    del study["reference"]
    code, output = snakemake(checkout, "-n", "--cores", "1", "--configfile", write(checkout, study))
    assert code != 0 and "key 'reference' is missing" in output


@pytest.mark.slow
def test_a_verified_capacity_comes_after_the_memory_that_predicts_it(checkout, tmp_path):
    (tmp_path / "model").mkdir()
    study = tiny.study(tmp_path) | {"extras": {"capacity": {"enabled": True, "verify": {"enabled": True}}}}
    code, output = snakemake(checkout, "-n", "--cores", "1", "--configfile", write(checkout, study))
    assert code == 0, output
    found = jobs(output)
    assert found["verify_capacity"] == found["measure_memory"] == 2 and found["predict_capacity"] == 1
    told = {
        rule: re.search(rf"^(?:local)?rule {rule}:\n    input: (.*)\n", output, re.M)[1]
        for rule in ("verify_capacity", "predict_capacity", "aggregate_provenance")
    }
    assert "records/memory/tiny-llama/" in told["verify_capacity"]
    assert told["predict_capacity"].count("records/capacity/tiny-llama/") == 2
    assert told["aggregate_provenance"].count("records/capacity/tiny-llama/") == 2


@pytest.mark.slow
def test_without_measuring_only_tables_are_made_of_the_records_that_are_there(checkout, tmp_path):
    folder = shutil.copytree(checkout, tmp_path / "checkout")
    shutil.copytree(ROOT / "results" / "cpu" / "records", folder / "results" / "cpu" / "records")
    lost = "results/cpu/records/profile/smollm2-135m/bf16.sdpa.generate.r0.json"
    shutil.rmtree(folder / "results" / "cpu" / "records" / "sweep")
    (folder / lost).unlink()
    code, output = snakemake(folder, "-n", "--cores", "1", "--config", "study=cpu", "measure=nothing")
    assert code == 0, output
    found = jobs(output)
    assert not {rule for rule in found if rule.startswith(("measure_", "keep_", "generate_", "fetch_"))}
    assert found["aggregate_extra"] == 5 and "aggregate_sweep" not in found and "plot_sweep" not in found
    told = re.search(r"^(?:local)?rule aggregate_provenance:\n    input: (.*)\n", output, re.M)[1]
    assert lost not in told and "records/profile/" in told and "records/latency/" in told

    code, output = snakemake(folder, "-n", "--cores", "1", "--config", "study=cpu", "measure=everything")
    assert code != 0 and "measure: 'everything'" in output


@pytest.mark.slow
def test_without_measuring_and_without_a_record_there_is_nothing_to_tell(checkout):
    code, output = snakemake(checkout, "-n", "--config", "measure=nothing", "study=nobody")
    assert code != 0 and "results/nobody/records has no record of this study" in output


def test_a_mistake_stops_before_any_job_with_its_one_line(checkout, tmp_path):
    (tmp_path / "model").mkdir()
    study = tiny.study(tmp_path, precisions=["fp32", "int7"])
    code, output = snakemake(checkout, "--cores", "1", "--configfile", write(checkout, study))
    assert code != 0
    told = [line for line in output.splitlines() if "int7" in line]
    assert len(told) == 1 and "precisions: 'int7' is not known; allowed: fp32, fp16, bf16" in told[0]
    assert "Traceback" not in output and "Job stats" not in output
    assert not (checkout / "results").exists() and not (checkout / "resources").exists()


@pytest.mark.slow
def test_a_sweep_is_repeated_for_another_reference_but_not_for_another_threshold(checkout, tmp_path):
    folder = shutil.copytree(checkout, tmp_path / "checkout")
    model, corpus = "smollm2-135m", "wikipedia"
    sweep = f"results/default/records/sweep/{model}/llm-int8.sdpa.eager"
    reference = [f"resources/reference/default/{model}/{corpus}{end}" for end in (".logprobs.f16", ".top5.npy")]
    made = [[f"resources/models/{model}/manifest.json", f"resources/corpora/{corpus}/text.jsonl"]]
    made += [[f"results/default/records/reference/{model}.json", *reference]]
    made += [[f"{sweep}.t{threshold}{end}" for threshold in (0, 6) for end in (".json", ".npz")]]
    later = time.time() + 100  # than the library
    for step, paths in enumerate(made):
        for path in paths:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).touch()
            os.utime(folder / path, (later + step, later + step))

    def planned():
        targets = [f"{sweep}.t{threshold}.json" for threshold in (0, 4, 6)]
        code, output = snakemake(folder, "-n", "--cores", "1", "--rerun-triggers", "mtime", "--", *targets)
        assert code == 0, output
        return jobs(output)

    assert planned() == {"measure_sweep": 1}  # the threshold that has no record
    os.utime(folder / reference[0], (later + 9, later + 9))
    assert planned() == {"measure_sweep": 3}


@pytest.mark.slow
def test_snakemakes_own_linter_is_content(checkout):
    code, output = snakemake(checkout, "--lint")
    assert code == 0, output


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check", "--no-cache", "."],
        ["ruff", "format", "--no-cache", "--check", "."],
        ["snakefmt", "--check", "Snakefile", "workflow/rules"],
    ],
    ids=["ruff check", "ruff format", "snakefmt"],
)
def test_code_is_linted_and_formatted(command):
    run = subprocess.run([BIN / command[0], *command[1:]], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
