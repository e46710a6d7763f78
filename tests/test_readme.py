"""README.md against the code: its example runs, its tables name what there is, its messages exist."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pages
import pytest
import tiny
import yaml
from llmstudy.runner import record as records

README = pages.read("README.md")
LIBRARY = pages.REPOSITORY / "workflow" / "scripts" / "llmstudy"
REGISTRY = "workflow/scripts/llmstudy/precisions/__init__.py"


def texts(folder: Path) -> set[str]:
    """String constants of the Python files in a folder; what an f-string fills in becomes ``…``."""
    found = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.add("".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
    return found


@pytest.fixture(scope="module")
def extended_library(tmp_path_factory) -> Path:
    """A copy of the library in which README's "Add a precision" has been followed."""
    steps = pages.section(README, "Add a precision")
    module, line = pages.blocks(steps, "python")
    file, registry = [
        span for span in pages.code_spans(steps) if span.startswith("workflow/") and "precisions/" in span
    ]
    assert registry == REGISTRY and pages.read(registry).count("MODULES = {\n") == 1
    scripts = tmp_path_factory.mktemp("library")
    shutil.copytree(LIBRARY, scripts / "llmstudy", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(LIBRARY.parents[1] / "schemas", scripts.parent / "schemas", dirs_exist_ok=True)
    (scripts / Path(file).relative_to("workflow/scripts")).write_text(module)
    target = scripts / Path(registry).relative_to("workflow/scripts")
    target.write_text(target.read_text().replace("MODULES = {\n", f"MODULES = {{\n{line}"))
    return scripts


def run_python(library: Path, *arguments: str) -> str:
    run = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": str(library), "HF_HUB_OFFLINE": "1"},
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


@pytest.mark.slow
def test_the_added_precision_is_measured(extended_library, tmp_path):
    """The worker of the extended library loads a tiny model in it: 4-bit weights, 8-bit scales, and text comes out."""
    tiny.save_model(tmp_path / "weights")
    model = tiny.fetch({"type": "path", "folder": str(tmp_path / "weights")}, tmp_path / "model")
    told = tiny.job("memory", model, tiny.save_corpus(tmp_path / "corpus"), precision="nf4-dq")
    (tmp_path / "job.json").write_text(json.dumps(told.to_dict()))
    (tmp_path / "artifacts").mkdir()
    files = [str(tmp_path / name) for name in ("job.json", "result.json", "artifacts")]
    run_python(extended_library, "-m", "llmstudy.runner.child", *files)
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["status"], result["reason"]) == ("ok", "")
    stored = result["results"]["weights"]["linears"]
    shapes = tiny.SHAPE
    heads = (shapes["num_attention_heads"] * 2 + shapes["num_key_value_heads"] * 2) * shapes["head_dim"]
    linear = shapes["num_hidden_layers"] * shapes["hidden_size"] * (heads + 3 * shapes["intermediate_size"])
    assert stored["uint8"] == linear / 2 + linear / 64  # two weights a byte, one byte per block of 64
    assert result["results"]["workloads"][0]["status"] == "ok"


def test_the_added_precision_is_known_to_the_config_and_refuses_random_weights(extended_library, tmp_path):
    study = tiny.study(tmp_path, precisions=["bf16", "nf4-dq"], reference="bf16")
    (tmp_path / "study.json").write_text(json.dumps(study))
    told = run_python(
        extended_library,
        "-c",
        "import json, sys; from types import SimpleNamespace as Made; from llmstudy import config, plan, precisions\n"
        "study = config.complete(json.load(open(sys.argv[1])))\n"
        "print([one.path('tiny') for one in plan.measurements(study, 'quality')])\n"
        "try: precisions.get('nf4-dq').load(Made(weights=Made(real=False)))\n"
        "except Exception as error: print(type(error).__name__)",
        str(tmp_path / "study.json"),
    )
    assert "quality/tiny-llama/nf4-dq.sdpa.generate.r0.json" in told and told.endswith("Unsupported\n")


@pytest.mark.slow
def test_a_model_of_ones_own_takes_five_lines(tmp_path):
    block = pages.blocks(pages.section(README, "Study your own model"), "yaml")[0]
    assert len(block.splitlines()) == 5
    folder = pages.workspace(tmp_path)
    (folder / "my-study.yaml").write_text(block)
    counts = pages.job_counts(pages.dry_run(folder, "--cores", "1", "--configfile", "my-study.yaml"))
    # three precisions, three repeats by default
    assert (counts["measure_latency"], counts["measure_quality"], counts["render_report"]) == (9, 3, 1)


@pytest.mark.slow
def test_a_fresh_checkout_measures_although_a_report_is_committed(tmp_path):
    """Snakemake goes back from REPORT.md only as far as files are missing or old; every record must be a goal too."""
    folder = pages.workspace(tmp_path)
    tracked = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "results"], cwd=pages.REPOSITORY, capture_output=True, text=True
    )
    for name in tracked.stdout.splitlines():
        if (pages.REPOSITORY / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(pages.REPOSITORY / name, folder / name)
    (folder / "REPORT.md").write_text("the report of another machine\n")
    counts = pages.job_counts(pages.dry_run(folder, "--cores", "1"))
    # six precisions × two attention kernels, two repeats of the timing
    assert (counts["measure_latency"], counts["measure_memory"], counts["render_report"]) == (24, 12, 1)


def rule_files() -> str:
    """All rules; those made in a loop look like the others, with what the loop fills in in angle brackets."""
    text = "\n".join(path.read_text() for path in sorted((pages.REPOSITORY / "workflow/rules").glob("*.smk")))
    return re.sub(r'^    rule:\n        name:\n            f"(\w+)\{(\w+)\}"', r"rule \1<\2>:", text, flags=re.M)


def rules() -> dict[str, str]:
    """Rule → its text."""
    parts = re.split(r"^rule ([\w<>]+):\n", rule_files(), flags=re.M)
    return {name: body.split("\n\n\n")[0] for name, body in zip(parts[1::2], parts[2::2])}


def local_rules() -> set[str]:
    listed = re.findall(r"^localrules:\n((?: +\w+,\n)+)", rule_files(), re.M)
    return set(re.findall(r"\w+", " ".join(listed))) | {
        name for name, body in rules().items() if "localrule: True" in body
    }


def test_the_table_of_rules_is_that_of_the_workflow():
    there = rules()
    table = {row[0].strip("`"): row[1:] for row in pages.rows(pages.section(README, "What runs where"))}
    assert set(table) == set(there)
    for name, (makes, environment, where) in table.items():
        body = there[name]
        assert f'"../../envs/{environment.strip("`")}.yaml"' in body, name
        assert where.startswith("where Snakemake runs") == (name in local_rules()), name
        assert ("GPU" in where) == ("gpu=" in body), name
        for variable, meant in (
            ("{RESULTS}/", ""),
            ("{COMPARISON}", "results/comparisons/<baseline>_<candidate>"),
            ("{extras.SWEPT}", "<precision>"),
        ):
            body = body.replace(variable, meant)
        written = re.sub(r"\{\{?(\w+)\}\}?", r"<\1>", body)
        paths = [span for span in re.findall(r"`([^`]+)`", makes) if not span.startswith(".")]
        assert paths and all(f'"{path}"' in written for path in paths), (name, paths, written)


def test_every_message_exists_in_the_code():
    import snakemake

    known = texts(LIBRARY) | texts(Path(snakemake.__file__).parent) | {os.strerror(2) + ": '…'"}
    for message, advice in pages.rows(pages.section(README, "When something fails")):
        words = message.strip("`").replace("results/…", "…")
        pattern = re.compile(".*".join(map(re.escape, words.split("…"))), re.S)
        assert any(pattern.search(text) for text in known), message
        assert advice


def test_every_status_is_explained():
    explained = [row[0].strip("`") for row in pages.rows(pages.section(README, "Read the results")) if len(row) == 2]
    assert explained == list(records.STATUSES)


def test_columns_and_verdicts_exist():
    from llmstudy.tables.columns import SHARED

    there = texts(LIBRARY / "tables") | texts(LIBRARY / "statistics")
    about = pages.section(README, "Read the results")
    tables = [row for row in pages.rows(about) if len(row) == 3]
    made = " ".join(rules().values())
    assert all(f'/{row[0].strip("`")}"' in made for row in tables)
    columns = {column for row in tables for column in re.findall(r"`(\w+)`", row[2])}
    assert len(columns) > 25 and columns <= there
    assert set(SHARED) <= set(pages.code_spans(about))
    assert {"better", "worse", "mixed", "not distinguishable"} <= there
    schema = yaml.safe_load(pages.read("workflow/schemas/config.schema.yaml"))
    extras = re.search(r"With \[`extras`\].*?\n\n", about, re.S)[0]
    assert set(re.findall(r"`(\w+)\.csv`", extras)) == set(schema["properties"]["extras"]["properties"])


def test_what_is_said_of_the_default_study():
    config = yaml.safe_load(pages.read("config/config.yaml"))
    assert len(config["precisions"]) == 6 and "measures six precisions" in README
    assert config["models"][0]["source"]["member"].endswith("SmolLM2-135M-Instruct.Q4_1.gguf")
    vocabulary = 49152  # of SmolLM2's tokenizer
    needed = config["quality"]["kl_tokens"] * vocabulary * 2 / 2**30
    assert f"another {needed:.1f} GiB hold the reference's distributions" in " ".join(README.split())


def test_what_is_said_of_conda_is_what_snakemake_asks_for():
    import snakemake

    wanted = re.search(r"conda [>≥]=? (\d+\.\d+\.\d+)", README)[1]
    assert any(wanted in text for text in texts(Path(snakemake.__file__).parent / "deployment"))
