"""The workflow itself: a dry run of every shipped config, linters, and mistakes that stop before any job."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import yaml
from checkout import ROOT, Checkout, inputs, jobs, measuring
from llmstudy import config as study_config
from llmstudy import kinds, tables
from llmstudy.runner import record as records

# By config: models, panels with diagnostics of time, all other jobs by kind, qualities.
EXPECTED = {
    "config.yaml": (1, 6, 6 + 6, 6),  # probes, generations
    # two attention kernels, and a runtime that has one: panels, profile, kernels; probes, generations, outliers,
    # sensitivity, invariance; quality, that of decoding, and the precisions for quality alone
    "full.yaml": (1, 6 + 18 + 2, 24 + 6 + 1 + 1 + 6, 6 + 6 + 6 + 4),
    "qwen2.5-1.5b.yaml": (1, 1, 7 + 7 + 1, 7 + 6),  # probes, generations, outliers; and for quality alone
    "quick.yaml": (1, 1, 6 + 3, 3),
    "llama2-7b.yaml": (1, 10, 12 + 6, 6),
    # one real model: 8 precisions; random ones: 6 × 2 runtimes (two of these) and 4 × 2; …, and what verifies capacity
    "h200.yaml": (4, 1 + 2 + 1 + 1 + 12 + 7, 8 + 12 + 12 + 8 + 8 + 1 + 1 + 8 + 12, 8 + 6),
}
RULES = ("fetch_weights", "measure_time", "measure", "measure_quality")
DIAGNOSTICS = {name for name, table in tables.every().items() if table.category == "Diagnostics"} | {"tasks"}


@pytest.fixture
def checkout(tmp_path):
    (tmp_path / "data" / "model").mkdir(parents=True)  # no dry run reads the model
    return Checkout(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPECTED)
def test_a_dry_run_plans_exactly_these_jobs(checkout, name):
    assert {path.name for path in (ROOT / "config").glob("*.yaml")} == set(EXPECTED)
    found = checkout.dry_run(*([] if name == "config.yaml" else [f"--configfile=config/{name}"]))
    assert measuring(found) == dict(zip(RULES, EXPECTED[name])) | {"fetch_corpus": 1, "measure_reference": 1}
    rest = found.keys() - measuring(found).keys()
    assert {found[rule] for rule in rest} == {1} and rest >= {"provenance", "plot", "first_answer", "render_report"}
    made = {rule.removeprefix("tabulate_") for rule in rest if rule.startswith("tabulate_")}
    assert set(tables.every()) - DIAGNOSTICS <= made <= set(tables.every())
    assert (made & DIAGNOSTICS != set()) == (name in ("full.yaml", "h200.yaml", "qwen2.5-1.5b.yaml"))


@pytest.mark.slow
def test_a_study_of_ones_own_takes_nothing_from_the_default_study(checkout):
    """Snakemake merges config files key by key; 20 documents of the default must not cut another study's text."""
    capacity = {"capacity": {"enabled": True, "verify": {"enabled": True}}}
    study = tiny.study(checkout.folder / "data", diagnostics=capacity)
    del study["speed"]["panels"]
    output = checkout.snakemake("-n", checkout.write(study))
    # the schema's ten panels, not the default study's six; probes, text, and what verifies capacity
    assert measuring(jobs(output)) | {"measure_time": 10, "measure": 2 + 2 + 2} == measuring(jobs(output))
    assert '"documents": 20' not in output and "'documents': 20" not in output
    assert inputs(output, "tabulate_capacity").count("records/capacity/tiny-llama/") == 2
    assert inputs(output, "provenance").count("records/capacity/tiny-llama/") == 2


@pytest.mark.slow
def test_without_measuring_tables_are_made_of_the_records_that_are_there(checkout):
    study = study_config.complete(yaml.safe_load((ROOT / "config" / "full.yaml").read_text()))
    there = [one.path for one in kinds.records(study) if one.kind != "invariance"]
    del there[-1]
    for path in there:
        record = checkout.folder / path
        record.parent.mkdir(parents=True, exist_ok=True)
        record.touch()
        record.with_suffix(".npz").touch()
    output = checkout.snakemake("-n", "--configfile=config/full.yaml", "--config", "measure=nothing")
    found = jobs(output)
    assert measuring(found) == {}
    assert "tabulate_attention" in found and "tabulate_invariance" not in found
    assert set(re.findall(r"[^ ,]+/records/[^ ,]+", inputs(output, "provenance"))) == set(there)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "line"),
    [
        (["measure=nothing", "study=nobody"], "measure: nothing, but results/nobody/records has no record of this"),
        (["measure=everything"], "measure: 'everything' is not allowed; allowed: all, nothing"),
        (
            ["runtimes=[generate,torch-compile]"],
            "runtimes: 'torch-compile' is not known; allowed: generate, compile, graph",
        ),
    ],
)
def test_a_mistake_stops_before_any_job_with_its_one_line(checkout, config, line):
    code, output = checkout.run("--config", *config)
    assert code != 0
    assert [found for found in output.splitlines() if line in found][1:] == [], output
    assert line in output and "Traceback" not in output and "Job stats" not in output
    assert not (checkout.folder / "results").exists() and not (checkout.folder / "resources").exists()


@pytest.mark.slow
def test_a_gpu_that_is_not_here_stops_before_any_job(checkout):
    code, output = checkout.run("--config", "device=cuda", CUDA_VISIBLE_DEVICES="-1")
    assert code != 0 and "device: 'cuda', but CUDA_VISIBLE_DEVICES=-1 hides every GPU; allowed here: " in output
    assert "Traceback" not in output and not (checkout.folder / "resources").exists()


@pytest.mark.slow
def test_a_study_works_in_another_folder_and_with_spaces_in_paths(tmp_path):
    for name in ("a clone", "else where"):
        (tmp_path / name).mkdir()
    checkout = Checkout(tmp_path / "a clone")
    environment = {"LC_ALL": "POSIX", "HOME": "", "XDG_CACHE_HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
    output = checkout.snakemake("-n", "--directory", str(tmp_path / "else where"), **environment)
    assert jobs(output)["render_report"] == 1
    assert "../a clone/workflow/report/REPORT.md.j2" in inputs(output, "render_report")
    assert "    input: workflow/report/" in checkout.snakemake("-n")  # and in its own folder as in every other clone


@pytest.mark.slow
def test_a_key_that_stands_twice_in_the_config_file_is_told_with_its_lines(checkout):
    """Snakemake reads the file before this code does, and YAML takes the last."""
    option = checkout.write(tiny.study(checkout.folder / "data"))
    with open(checkout.folder / "study.yaml", "a") as file:
        file.write("threads: 1\n")
    code, output = checkout.run("-n", option)
    assert code != 0 and re.search(r"study.yaml: key 'threads' stands twice, in lines \d+ and \d+; keep one", output)


@pytest.mark.slow
def test_a_run_fails_while_a_model_has_no_record_that_is_ok(checkout):
    """After its report, in one line, again in the next run, and without losing a file; names have dots all the way."""
    study = tiny.study(checkout.folder / "data", study="tiny-1.0", precisions=["fp32"])
    study["models"][0]["name"], study["corpora"][0]["name"] = "llama-3.1", "text.v2"
    option, results = checkout.write(study), checkout.folder / "results/tiny-1.0"
    first, *rest = (checkout.folder / one.path for one in kinds.records(study_config.complete(study)))
    for path in (first, *rest):
        record = {"schema": records.SCHEMA, "identity": {"model": "llama-3.1"}, "status": "error", "reason": "no luck"}
        records.write(record, path)
    (results / "details.md").touch()
    alone = (
        option,
        "--config",
        "measure=nothing",
        "--allowed-rules",
        "check_outcome",
        "--",
        "results/tiny-1.0/logs/outcome.txt",
    )
    for _ in range(2):
        code, output = checkout.run(*alone)
        told = f"error: llama-3.1 has no record that is ok ({len(rest) + 1} error). {first}: no luck".replace(
            f"{checkout.folder}/", ""
        )
        assert code == 1 and [told in line for line in output.splitlines()[-25:]].count(True) == 1, output
        assert (results / "details.md").exists() and all(path.exists() for path in (first, *rest))
    records.write(record | {"status": "ok"}, first)
    checkout.snakemake(*alone)
    assert (results / "logs/outcome.txt").read_text() == f"llama-3.1: 1 ok, {len(rest)} error\n"


@pytest.mark.slow
def test_a_fetch_that_cannot_mend_itself_is_tried_once(checkout):
    study = tiny.study(checkout.folder / "data")
    tiny.save_model(checkout.folder / "data/model")
    (checkout.folder / "data/model/config.json").unlink()
    code, output = checkout.run(checkout.write(study), "--", "resources/models/tiny-llama/manifest.json")
    assert code == 1 and output.count("error: ") == output.count("no config.json") == 1, output


# Packages that measure or report, and the plugin for SLURM, which brings some of them, look as if not installed.
ABSENT = """
import pkgutil, sys
BLOCKED = {"matplotlib", "numpy", "pandas", "safetensors", "scipy", "seaborn", "torch", "tqdm", "transformers"}
class Absent:
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent)
installed = pkgutil.iter_modules
pkgutil.iter_modules = lambda *args: (one for one in installed(*args) if one.name != "snakemake_executor_plugin_slurm")
"""


@pytest.mark.slow
def test_the_workflow_is_parsed_where_snakemake_has_its_own_dependencies_alone(checkout):
    (checkout.folder / "sitecustomize.py").write_text(ABSENT)
    path = f"{ROOT / 'tests' / 'bin'}{os.pathsep}{os.environ['PATH']}"  # with a conda
    arguments = ["--use-conda", "--configfile=config/h200.yaml"]  # the study with every kind but tasks
    assert checkout.dry_run(*arguments, PATH=path, PYTHONPATH=str(checkout.folder))


@pytest.mark.slow
def test_snakemakes_own_linter_is_content(checkout):
    checkout.snakemake("--lint")


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
    binary = Path(sys.executable).parent / command[0]
    run = subprocess.run([binary, *command[1:]], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
