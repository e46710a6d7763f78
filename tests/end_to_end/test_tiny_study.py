"""A whole study through Snakemake, from weights and text to REPORT.md, in a copy of the workflow.

One kernel of the study does not exist on a CPU, so that what fails is seen to cost the study nothing else.
"""

import json
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import yaml
from llmstudy.tables.columns import read_table

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
STUDY = {"attention": ["sdpa-cudnn", "sdpa"]}


class Checkout:
    """A copy of the repository's workflow with a tiny study in it."""

    def __init__(self, folder: Path):
        self.folder = folder
        for part in ("workflow", "config", "envs"):
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "Snakefile", folder)

    def snakemake(self, *arguments: str, **study) -> str:
        """Run the study (with changes) and return what Snakemake said; it must succeed."""
        config = tiny.study(self.folder / "data", **(STUDY | study))
        (self.folder / "study.yaml").write_text(yaml.safe_dump(config))
        command = [BIN / "snakemake", "--cores", "1", "--configfile", "study.yaml", *arguments]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
        run = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, env=environment, timeout=900)
        assert run.returncode == 0, run.stdout + run.stderr
        return run.stdout + run.stderr

    def planned(self, **study) -> dict[str, int]:
        """Jobs that a run would do now, by rule."""
        found = re.findall(r"^(\w+) +(\d+)$", self.snakemake("-n", **study), flags=re.MULTILINE)
        return {rule: int(count) for rule, count in found if rule not in ("total", "all")}

    @property
    def results(self) -> Path:
        return self.folder / "results" / "tiny"

    def record(self, kind: str, precision: str, attention: str = "sdpa") -> dict:
        path = self.results / "records" / kind / "tiny-llama" / f"{precision}.{attention}.generate.r0.json"
        return json.loads(path.read_text())

    def table(self, name: str):
        return read_table(self.results / f"{name}.csv")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    checkout = Checkout(tmp_path_factory.mktemp("study"))
    checkout.snakemake()
    return checkout


def row_of(table, **values):
    for column, value in ({"precision": "bf16", "attention": "sdpa"} | values).items():
        table = table[table[column] == value]
    assert len(table) == 1
    return table.iloc[0]


def cells(report: str, precision: str, header: str) -> dict[str, str]:
    """A precision's row in the report's table whose header holds ``header``, under sdpa if attention is a column."""
    lines = report.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("| precision |") and header in line)
    names = [name.strip() for name in lines[start].strip("|").split("|")]
    for line in lines[start + 2 :]:
        values = [value.strip() for value in re.split(r"(?<!\\)\|", line.strip("|"))]
        found = dict(zip(names, values))
        if values[0].split(" ")[0] == f"`{precision}`" and found.get("attention", "sdpa") == "sdpa":
            return found
    raise AssertionError(f"no row of {precision} under {header}")


def number(cell: str) -> float:
    """The first number of a cell, per cent signs and thousands separators aside."""
    return float(re.match(r"[-+]?[\d,.]+(e[-+]\d+)?", cell)[0].replace(",", ""))


def test_everything_that_a_study_promises_is_there(study):
    for name in ("speed", "memory", "quality", "generations", "text", "summary", "recommendation"):
        assert len(study.table(name)) > 0, name
    figures = {path.name for path in (study.results / "figures").iterdir()}
    assert {"latency.svg", "memory.svg", "perplexity.svg", "agreement.svg", "trade_off.svg", "trade_off.png"} <= figures
    assert (study.folder / "REPORT.md").stat().st_size > 1000
    logs = (study.results / "logs" / "measure_quality" / "tiny-llama" / "bf16.sdpa.generate.r0.log").read_text()
    assert "windows scored" in logs  # progress


def test_latency_in_the_table_is_that_of_the_record(study):
    entry = study.record("speed", "bf16")["results"]["workloads"][0]
    assert entry["status"] == "ok" and all(len(run["itl_ms"]) == 5 for run in entry["runs"])
    row = row_of(study.table("processes"))
    tpot = statistics.median(sum(run["itl_ms"]) / 5 for run in entry["runs"])
    assert row["tpot_ms"] == pytest.approx(tpot, rel=1e-5)
    assert row["ttft_ms"] == pytest.approx(statistics.median(run["ttft_ms"] for run in entry["runs"]), rel=1e-5)
    assert row_of(study.table("summary"))["tpot_ms"] == pytest.approx(tpot, rel=1e-5)


def test_perplexity_in_the_table_is_that_of_the_per_token_losses(study):
    nll = {}
    for precision in ("fp32", "bf16"):
        path = study.results / "records" / "quality" / "tiny-llama" / f"{precision}.sdpa.generate.r0.npz"
        nll[precision] = np.load(path)["tiny-text/w64-s32/nll"].astype(float)
        recorded = study.record("quality", precision)["results"]["protocols"][0]["mean_nll"]
        assert recorded == pytest.approx(nll[precision].mean(), rel=1e-5)
        assert len(nll[precision]) == 6 * 60 - 1  # six documents of 60 tokens, the first token of all aside
    row = row_of(study.table("quality"))
    assert row["ppl"] == pytest.approx(math.exp(nll["bf16"].mean()), rel=1e-4)
    assert row["ppl_ratio"] == pytest.approx(math.exp((nll["bf16"] - nll["fp32"]).mean()), rel=1e-4)
    assert row["kl_nats"] > 0 and row["kl_tokens"] == 200
    itself = row_of(study.table("quality"), precision="fp32")
    assert math.isnan(itself["ppl_ratio"]) and itself["kl_nats"] < row["kl_nats"] / 10 and itself["top1_agreement"] == 1


def test_the_report_says_what_the_records_say(study):
    report = (study.folder / "REPORT.md").read_text()
    for precision in ("fp32", "bf16"):
        entry = study.record("speed", precision)["results"]["workloads"][0]
        quality = study.record("quality", precision)["results"]["protocols"][0]
        weights = study.record("memory", precision)["results"]["weights"]
        speed = cells(report, precision, "TPOT, ms")
        tpot = statistics.median(sum(run["itl_ms"]) / 5 for run in entry["runs"])
        assert number(speed["TPOT, ms"]) == pytest.approx(tpot, rel=0.01)
        ttft = statistics.median(run["ttft_ms"] for run in entry["runs"])
        assert number(speed["TTFT, ms"]) == pytest.approx(ttft, rel=0.01)
        loss = cells(report, precision, "top-1 agreement")
        assert number(loss["perplexity"]) == pytest.approx(math.exp(quality["mean_nll"]), rel=0.001)
        held = sum(sum(counts.values()) for counts in weights.values()) / 2**30
        assert number(cells(report, precision, "workspace, GiB")["weights, GiB"]) == pytest.approx(held, rel=0.01)
    said = study.record("generations", "fp32")["results"]["prompts"][0]
    assert said["prompt"] in report and len(said["tokens"]) == 8


def test_the_report_answers_first(study):
    head = (study.folder / "REPORT.md").read_text()[:3000]
    assert "Take " in head and "`fp32`" in head and "`bf16`" in head and "trade_off.svg" in head


def test_what_cannot_run_here_is_a_result_with_its_reason(study):
    for kind in ("speed", "memory"):
        record = study.record(kind, "bf16", "sdpa-cudnn")
        assert record["status"] == "unsupported" and "sdpa-cudnn" in record["reason"]
        row = row_of(study.table(kind), attention="sdpa-cudnn")
        assert row["status"] == "unsupported" and "no such kernel" in row["reason"]
    assert math.isnan(row_of(study.table("processes"), attention="sdpa-cudnn")["tpot_ms"])
    report = (study.folder / "REPORT.md").read_text()
    assert "`unsupported`" in report and "no such kernel" in report


def test_records_name_the_machine_but_no_host_or_user(study):
    import getpass
    import platform

    records = [path.read_text() for path in (study.results / "records").rglob("*.json")]
    assert len(records) == 4 + 4 + 1 + 2 + 2
    for word in {platform.node(), getpass.getuser()} - {"", "vm", "root", "localhost", "runner"}:
        assert not any(word in text for text in records)
    assert all(json.loads(text)["provenance"]["packages"]["torch"] for text in records)


def test_a_second_run_does_nothing(study):
    before = (study.folder / "REPORT.md").stat().st_mtime_ns
    assert "Nothing to be done" in study.snakemake()
    assert (study.folder / "REPORT.md").stat().st_mtime_ns == before


def test_another_precision_measures_itself_alone(study):
    planned = study.planned(precisions=["fp32", "bf16", "nf4"])
    measured = {rule: count for rule, count in planned.items() if rule.startswith(("fetch", "measure", "gen", "keep"))}
    assert measured == {
        "measure_latency": 2,
        "measure_memory": 2,
        "measure_quality": 1,
        "generate_samples": 1,
    }
    assert planned["render_report"] == planned["aggregate_latency"] == 1


def test_a_precision_less_measures_nothing(study):
    planned = study.planned(precisions=["fp32"])
    assert not [rule for rule in planned if rule.startswith(("fetch", "measure", "generate", "keep"))]
    assert planned["render_report"] == 1


def test_another_reference_compares_quality_anew(study):
    planned = study.planned(reference="bf16")
    assert (planned["keep_reference"], planned["measure_quality"]) == (1, 2)
    assert not {"measure_latency", "measure_memory", "generate_samples", "fetch_weights"} & set(planned)


@pytest.mark.parametrize(
    ("module", "rules"),
    [
        ("precisions/four_bit.py", set()),  # no precision of this study
        ("measure/footprint.py", {"measure_latency", "measure_memory"}),
        ("measure/generation.py", {"generate_samples"}),
        ("measure/scoring.py", {"measure_quality", "keep_reference"}),
        ("tables/memory.py", set()),
        ("sources/wikipedia.py", {"fetch_corpus"}),
    ],
)
def test_a_change_in_the_library_repeats_what_runs_through_it(study, module, rules):
    path = study.folder / "workflow" / "scripts" / "llmstudy" / module
    original = path.read_text()
    try:
        path.write_text(f"{original}\n# changed\n")
        planned = study.planned()
    finally:
        path.write_text(original)
    # what a repeated fetch leaves is read by all: only the first step of a chain tells
    first = {rule for rule in planned if rule.startswith(("fetch", "measure", "generate", "keep"))}
    assert first == rules or ("fetch_corpus" in rules and "fetch_corpus" in first)
    assert ("aggregate_memory" in planned) == (module == "tables/memory.py" or "measure_memory" in first)
