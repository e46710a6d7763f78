"""README.md against the code: its examples run, its tables name what there is, the messages exist."""

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
from checkout import Checkout
from llmstudy import tables
from llmstudy.runner import record as records
from llmstudy.tables.columns import SHARED

README = pages.read("README.md")
TROUBLESHOOTING = pages.read("docs/troubleshooting.md")
LIBRARY = pages.REPOSITORY / "workflow" / "scripts" / "llmstudy"


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


@pytest.mark.slow
def test_the_added_precision_is_measured(tmp_path):
    """A copy of the library in which "Add a precision" was followed measures it: 4-bit weights and 8-bit scales."""
    steps = pages.section(README, "Add a precision")
    module, line = pages.blocks(steps, "python")
    file, registry = re.findall(r"`workflow/(scripts/llmstudy/models/precisions/\w+\.py)`", steps)
    for part in ("scripts", "schemas"):
        shutil.copytree(LIBRARY.parents[1] / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / file).write_text(module)
    before = (tmp_path / registry).read_text()
    assert before.count("MODULES = {\n") == 1
    (tmp_path / registry).write_text(before.replace("MODULES = {\n", f"MODULES = {{\n{line}"))

    tiny.save_model(tmp_path / "model", max_position_embeddings=1024)  # the default protocol has as many tokens
    text = tiny.save_corpus(tmp_path / "text") / "text.jsonl"
    command = [sys.executable, "-m", "llmstudy.cli", "measure", "probe", "--precision", "nf4-dq"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "scripts")}
    measured = subprocess.run(
        [*command, "--model", tmp_path / "model", "--text", text], capture_output=True, text=True, env=environment
    )
    assert measured.returncode == 0, measured.stderr
    results = json.loads(measured.stdout)["results"]
    shape = tiny.SHAPE
    heads = (shape["num_attention_heads"] * 2 + shape["num_key_value_heads"] * 2) * shape["head_dim"]
    weights = shape["num_hidden_layers"] * shape["hidden_size"] * (heads + 3 * shape["intermediate_size"])
    # two weights a byte, and one byte for each block of 64
    assert results["weights"]["linears"]["uint8"] == weights / 2 + weights / 64
    assert results["workloads"][0]["status"] == "ok"


@pytest.mark.slow
def test_a_model_of_your_own_takes_a_few_lines(tmp_path):
    (block,) = pages.blocks(pages.section(README, "Study your own model"), "yaml")
    (tmp_path / "my-study.yaml").write_text(block)
    counts = Checkout(tmp_path).dry_run("--configfile", "my-study.yaml")
    # ten panels at most by default; quality once a precision
    assert (counts["measure_time"], counts["measure_quality"], counts["render_report"]) == (10, 4, 1)


@pytest.mark.slow
def test_a_fresh_checkout_measures_although_a_report_is_committed(tmp_path):
    """Snakemake goes back from REPORT.md only as far as files are missing or old; every record must be a goal too."""
    shutil.copytree(pages.REPOSITORY / "results" / "cpu", tmp_path / "results" / "cpu")
    (tmp_path / "REPORT.md").write_text("the report of another machine\n")
    counts = Checkout(tmp_path).dry_run()
    assert (counts["measure_time"], counts["render_report"]) == (6, 1)  # panels


def test_every_message_exists_in_the_code():
    import pip
    import snakemake

    known = set().union(texts(LIBRARY), *(texts(Path(one.__file__).parent) for one in (snakemake, pip)))
    known |= {os.strerror(2) + ": '…'"}
    for message, advice in pages.rows(pages.section(TROUBLESHOOTING, "Messages")):
        words = message.strip("`").replace("results/…", "…")
        pattern = re.compile(".*".join(map(re.escape, words.split("…"))), re.S)
        assert any(pattern.search(text) for text in known), message
        assert advice


def test_every_status_is_explained():
    explained = [row[0].strip("`") for row in pages.rows(pages.section(TROUBLESHOOTING, "Status"))]
    assert explained == list(records.STATUSES)


def test_tables_columns_and_verdicts_exist():
    about = pages.section(README, "Read the results")
    named = {row[0].strip("`").removesuffix(".csv"): set(pages.code_spans(row[2])) for row in pages.rows(about)}
    for table, columns in named.items():
        there = {column.name for column in tables.columns_of(table)}
        assert columns - {"_min", "_max"} <= there, table
    diagnostics = re.search(r"With \[`diagnostics`\].*?\n\n", about, re.S)[0]
    config = yaml.safe_load(pages.read("workflow/schemas/config.schema.yaml"))["properties"]["diagnostics"]
    assert set(re.findall(r"`(\w+)\.csv`", diagnostics)) == set(config["properties"])
    assert set(named) | set(config["properties"]) == set(tables.TABLES)
    assert {column.name for column in SHARED} <= set(pages.code_spans(about))
    verdicts = set(pages.code_spans(re.search(r"Verdicts are (.*?)\.\s", about, re.S)[1]))
    assert len(verdicts) == 8 and verdicts <= texts(LIBRARY / "tables") | texts(LIBRARY / "stats")


def test_what_is_said_of_the_default_study():
    config = yaml.safe_load(pages.read("config/config.yaml"))
    assert len(config["precisions"]) == 6 and "measures six precisions" in README
    assert config["models"][0]["source"]["member"].endswith("SmolLM2-135M-Instruct.Q4_1.gguf")
    vocabulary = 49152  # of SmolLM2's tokenizer
    needed = config["quality"]["kl_tokens"] * vocabulary * 2 / 2**30
    assert f"another {needed:.1f} GiB hold the reference's distributions" in " ".join(README.split())


def test_what_is_said_of_conda_is_what_snakemake_asks_for():
    import snakemake

    wanted = re.search(r"conda >= (\d+\.\d+\.\d+)", README)[1]
    assert f"conda ≥ {wanted}" in TROUBLESHOOTING
    assert any(wanted in text for text in texts(Path(snakemake.__file__).parent / "deployment"))
