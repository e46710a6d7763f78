"""The command ``llmstudy``: one measurement; installed from the repository it finds what the workflow has beside it."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import tiny
import yaml
from checkout import ROOT
from llmstudy import cli
from llmstudy.code import ROOT as LIBRARY

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny.save_model(folder)
    return folder


@pytest.mark.slow
def test_one_measurement_prints_its_record(model, tmp_path, capsys):
    workloads = [{"batch": 2, "prompt_tokens": 9, "new_tokens": 4}]
    settings = {"speed": {"workloads": workloads, "panels": {"seconds": 0}}, "threads": 1}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(settings | {"diagnostics": {"profile": {"enabled": True}}}))
    arguments = ["--model", str(model), "--precision", "fp32", "--config", str(tmp_path / "study.yaml")]
    assert cli.main(["measure", "probe", *arguments]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["status"] == "ok" and record["identity"]["precision"] == "fp32"
    assert [entry["workload"] for entry in record["results"]["workloads"]] == workloads
    assert cli.main(["measure", "panel", *arguments, "--runtime", "graph"]) == 0
    output = capsys.readouterr()
    entries = json.loads(output.out)["results"]["entries"]
    assert [(one["runtime"], one["again"], one["workload"]) for one in entries] == [
        ("graph", again, workloads[0]) for again in (False, True)
    ]
    first, second = output.err.splitlines()[-2:]
    assert first.startswith("batch 2, 9 + 4 tokens: TTFT ") and second.startswith("batch 2, 9 + 4 tokens, again: TTFT ")


@pytest.mark.slow
def test_a_measurement_that_fails_prints_its_record_and_its_log(model, tmp_path, capsys):
    (tmp_path / "text.txt").write_text("\n\n".join(tiny.DOCUMENTS))
    arguments = ["--model", str(model), "--precision", "bf16", "--text", str(tmp_path / "text.txt")]
    assert cli.main(["measure", "generations", *arguments, "--attention", "sdpa-cudnn"]) == 1
    output = capsys.readouterr()
    record = json.loads(output.out)
    assert record["status"] == "unsupported" and "sdpa-cudnn" in record["reason"] and output.err


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--precision", "int7"], "error: precisions: precision 'int7': not known; allowed: fp32, bf16"),
        (["--precision", "bf16", "--config", "gone.yaml"], "error: --config: 'gone.yaml' does not exist"),
        (["--precision", "bf16", "--text", "gone.txt"], "error: --text: 'gone.txt' does not exist"),
        (["--precision", "bf16", "--config", "long.yaml"], "error: speed.workloads: prompt_tokens 250 + new_tokens 7"),
        (["--precision", "bf16", "--runtime", "vllm"], "error: runtimes: 'vllm' is not known; allowed: generate"),
    ],
)
def test_a_mistake_is_one_line(model, tmp_path, monkeypatch, capsys, arguments, line):
    workload = {"batch": 1, "prompt_tokens": 250, "new_tokens": 7}
    (tmp_path / "long.yaml").write_text(yaml.safe_dump({"speed": {"workloads": [workload]}}))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["measure", "panel", "--model", str(model), *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith(line) and error.count("\n") == 1


def test_the_package_list_is_that_of_the_library():
    packages = {".".join(path.parent.relative_to(LIBRARY.parent).parts) for path in LIBRARY.rglob("__init__.py")}
    listed = set(PYPROJECT["tool"]["setuptools"]["packages"])
    assert {name for name in listed if not name.startswith("llmstudy.shared.")} == packages


@pytest.mark.slow
def test_an_installed_copy_finds_schema_and_templates(tmp_path):
    (tmp_path / "source").mkdir()
    shutil.copy(ROOT / "pyproject.toml", tmp_path / "source")  # pip leaves its build folder beside it
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "workflow", tmp_path / "source" / "workflow", ignore=ignored)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, "--target", tmp_path / "site", tmp_path / "source"], check=True)
    (tmp_path / "study.json").write_text(json.dumps(tiny.study(tmp_path / "data")))
    code = (
        "import json, sys; from llmstudy import config, files\n"
        "print(files.__file__, config.complete(json.load(open('study.json'))).name)\n"
        "templates = [files.shared_file('report') / name for name in ('REPORT.md.j2', 'background')]\n"
        "assert all(path.exists() for path in templates), templates"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    options = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True}
    run = subprocess.run([sys.executable, "-c", code], **options)
    assert run.stdout.split() == [str(tmp_path / "site/llmstudy/files.py"), "tiny"], run.stderr
    run = subprocess.run([tmp_path / "site/bin/llmstudy", "measure", "--help"], **options)
    assert "--precision" in run.stdout, run.stderr
