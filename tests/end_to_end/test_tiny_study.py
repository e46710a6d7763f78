"""A whole study through Snakemake, from weights and text to REPORT.md, in a copy of the workflow; what it then repeats.

One kernel of the study does not exist on a CPU, so that what fails is seen to cost the study nothing else.
"""

import getpass
import json
import math
import os
import platform
import re
import shutil
import statistics
from contextlib import contextmanager
from pathlib import Path

import local_task
import numpy as np
import pages
import pytest
import tiny
from checkout import Checkout, jobs, measuring
from llmstudy import cli

pytestmark = pytest.mark.slow

TASKS = {"enabled": True, "tasks": ["tiny_choice", "tiny_group"], "include_path": "tasks", "limit": 6}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The finished study."""
    folder = tmp_path_factory.mktemp("study")
    checkout = Checkout(folder, copy=True, attention=["sdpa-cudnn", "sdpa"], diagnostics={"tasks": TASKS})
    local_task.save(folder / "tasks")
    # Two jobs at once: nobody reads the times.
    checkout.tiny("--cores", "2", HF_HOME=str(folder / "cache"), HF_HUB_OFFLINE="1")
    return checkout


def row_of(table, **values):
    for column, value in ({"precision": "bf16", "attention": "sdpa"} | values).items():
        table = table[table[column] == value]
    assert len(table) == 1
    return table.iloc[0]


def entry_of(study, precision: str, again: bool = False) -> dict:
    """The entry of a precision in the panel's record."""
    entries = study.record("panel", "fp32")["results"]["entries"]
    (entry,) = [
        one for one in entries if (one["precision"], one["attention"], one["again"]) == (precision, "sdpa", again)
    ]
    assert entry["status"] == "ok" and all(len(call["itl_ms"]) == 5 for call in entry["calls"])
    return entry


def tpots_of(study, precision: str, again: bool = False) -> list[float]:
    """The TPOT of a precision in each round, ms, from the record."""
    return [sum(call["itl_ms"]) / 5 for call in entry_of(study, precision, again)["calls"]]


def tpot_of(study) -> float:
    """The TPOT of bf16, ms, from the record."""
    return statistics.median(tpots_of(study, "bf16"))


def test_everything_that_a_study_promises_is_there(study):
    for name in (
        "processes",
        "speed",
        "probes",
        "quality",
        "generations",
        "text",
        "summary",
        "advice",
        "tasks",
    ):
        assert len(study.table(name)) > 0, name
    results = study.folder / "results/tiny"
    figures = {path.name for path in (results / "figures").iterdir()}
    assert {"trade_off.svg", "trade_off.png", "distance.svg"} <= figures
    assert "windows scored" in (results / "logs/records/quality/tiny-llama/bf16.sdpa.generate.r0.log").read_text()
    assert (results / "details.md").exists() and "`bf16`" in (results / "first_answer.md").read_text()


def test_tpot_is_that_of_the_record_in_every_table(study):
    row = row_of(study.table("processes"))
    assert row["tpot_ms"] == pytest.approx(tpot_of(study), rel=1e-5)
    assert [float(time) for time in row["tpot_rounds_ms"].split()] == pytest.approx(tpots_of(study, "bf16"), rel=1e-5)
    ttft = statistics.median(call["ttft_ms"] for call in entry_of(study, "bf16")["calls"])
    assert row["ttft_ms"] == pytest.approx(ttft, rel=1e-5)
    for name in ("speed", "summary"):
        assert row_of(study.table(name))["tpot_ms"] == pytest.approx(tpot_of(study), rel=1e-5)


def test_a_speedup_is_that_of_calls_of_the_same_round(study):
    speed = study.table("speed")
    speed = speed[(speed["attention"] == "sdpa") & (speed["again"] == "no")].set_index("precision")
    base = speed["against"].iloc[0].split(" ")[0]
    other = {"fp32": "bf16", "bf16": "fp32"}[base]
    logs = [math.log(a / b) for a, b in zip(tpots_of(study, base), tpots_of(study, other))]
    assert speed.loc[other, "tpot_speedup"] == pytest.approx(math.exp(statistics.median(logs)), rel=1e-5)
    assert speed.loc[base, ["tpot_speedup", "tpot_verdict"]].tolist() == [1, "base"]
    assert speed.loc[other, "tpot_verdict"] == "not enough data" and math.isnan(speed.loc[other, "tpot_speedup_low"])
    again = row_of(study.table("speed"), precision="fp32", again="yes")
    logs = [math.log(a / b) for a, b in zip(tpots_of(study, "fp32"), tpots_of(study, "fp32", again=True))]
    assert again["tpot_speedup"] == pytest.approx(math.exp(statistics.median(logs)), rel=1e-5)


def test_perplexity_is_that_of_the_losses_of_the_tokens(study):
    nll = {}
    for precision in ("fp32", "bf16"):
        path = study.folder / f"results/tiny/records/quality/tiny-llama/{precision}.sdpa.generate.r0.npz"
        nll[precision] = np.load(path)["tiny-text/w64-s32/nll"].astype(float)
        recorded = study.record("quality", precision)["results"]["protocols"][0]["mean_nll"]
        assert recorded == pytest.approx(nll[precision].mean(), rel=1e-5)
        assert len(nll[precision]) == 6 * 60 - 1  # six documents of 60 tokens, the first token of all aside
    row = row_of(study.table("quality"))
    assert row["ppl"] == pytest.approx(math.exp(nll["bf16"].mean()), rel=1e-4)
    assert row["ppl_ratio"] == pytest.approx(math.exp((nll["bf16"] - nll["fp32"]).mean()), rel=1e-4)
    assert row["kl_nats"] > 0 and row["kl_tokens"] == 200
    itself = row_of(study.table("quality"), precision="fp32")
    assert itself["ppl_ratio"] == 1 and itself["kl_nats"] < row["kl_nats"] / 10 and itself["top1_agreement"] == 1


def test_a_folder_of_tasks_becomes_a_table(study):
    fetched = json.loads((study.folder / "resources/tasks/tiny.json").read_text())
    assert fetched["tiny_choice"]["tiny_choice"]["documents"] == 8
    table = study.table("tasks")
    assert table[["precision", "task", "status", "documents"]].values.tolist() == [
        [precision, *rest]
        for precision in ("fp32", "bf16")
        for rest in (["tiny_choice", "ok", 6], ["tiny_group", "ok", 12])
    ]
    assert table.loc[:1, "accuracy_change"].isna().all()
    bf16 = table.loc[2:]
    gained = (bf16["wrong_to_correct"] - bf16["correct_to_wrong"]) / bf16["documents"]
    assert bf16["accuracy_change"].tolist() == pytest.approx(gained.tolist(), rel=1e-5)
    assert (bf16["answers_changed"] >= bf16["wrong_to_correct"] + bf16["correct_to_wrong"]).all()


def test_the_report_says_what_the_records_say(study):
    report, details = ((study.folder / name).read_text() for name in ("REPORT.md", "results/tiny/details.md"))
    assert all(word in report[:4000] for word in ("one user", "`fp32`", "`bf16`"))  # the answer first
    ppl = math.exp(study.record("quality", "bf16")["results"]["protocols"][0]["mean_nll"])
    weights = study.record("probe", "bf16")["results"]["weights"]
    gib = sum(sum(counts.values()) for counts in weights.values()) / 2**30
    for title, value in (("TPOT, ms", tpot_of(study)), ("token PPL", ppl), ("weights, GiB", gib)):
        rows = [row for row in pages.table_with(title, details) if "`bf16`" in row["precision"]]
        (cell,) = [row[title] for row in rows if row.get("attention", "sdpa") == "sdpa"]
        assert float(re.match(r"[\d,.]+", cell)[0].replace(",", "")) == pytest.approx(value, rel=0.01), title
    prompt = study.record("generations", "fp32")["results"]["prompts"][0]
    assert prompt["prompt"] in details and len(prompt["tokens"]) == 8


def test_what_cannot_run_here_is_a_result_with_its_reason(study):
    record = study.record("probe", "bf16", "sdpa-cudnn")
    assert record["status"] == "unsupported" and "sdpa-cudnn" in record["reason"]
    for name in ("probes", "processes", "speed"):
        row = row_of(study.table(name), attention="sdpa-cudnn")
        assert row["status"] == "unsupported" and "no such kernel" in row["reason"]
    assert math.isnan(row_of(study.table("processes"), attention="sdpa-cudnn")["tpot_ms"])
    details = (study.folder / "results/tiny/details.md").read_text()
    assert "`unsupported`" in details and "no such kernel" in details


def test_records_name_the_machine_but_no_host_or_user(study):
    records = [path.read_text() for path in (study.folder / "results/tiny/records").rglob("*.json")]
    assert len(records) == 4 + 1 + 1 + 2 + 2 + 2  # probes, a panel, reference, quality, generations, tasks
    for word in {platform.node(), getpass.getuser()} - {"", "vm", "root", "localhost", "runner"}:
        assert not any(word in text for text in records)
    assert all(json.loads(text)["provenance"]["packages"]["torch"] for text in records)


def test_two_studies_are_compared(study, tmp_path, capsys):
    before, after = study.folder / "results/tiny", tmp_path / "after"
    assert cli.main(["compare", str(before), str(before), "--output", str(tmp_path / "all.csv")]) == 0
    assert "no change past its limit" in capsys.readouterr().out and (tmp_path / "all.csv").exists()
    shutil.copytree(before, after, ignore=shutil.ignore_patterns("records", "logs", "figures"))
    table = study.table("probes")
    table["memory_gib"] *= 1.1
    table.to_csv(after / "probes.csv", index=False)
    assert cli.main(["compare", str(before), str(after)]) == 1
    assert "memory_gib" in capsys.readouterr().out
    assert cli.main(["compare", str(before), str(after), "--memory-percent", "20"]) == 0
    assert cli.main(["compare", str(before), str(tmp_path / "nowhere")]) == 1
    assert capsys.readouterr().err.startswith("error: ")


# ---------------------------------------------------------------------------------------- what a finished study repeats


def test_nothing_is_repeated_for_what_a_job_may_take(study):
    assert measuring(study.planned(jobs={"minutes": 9, "oom_attempts": 2})) == {}


def test_weights_rewritten_in_place_are_fetched_and_measured_again(study):
    """Of the same size, so that only their time of writing and their bytes tell."""
    file = study.folder / "data/model/model.safetensors"
    data, about = file.read_bytes(), file.stat()
    file.write_bytes(bytes([*data[:-1], data[-1] ^ 1]))
    try:
        found = measuring(study.planned())
    finally:
        file.write_bytes(data)
        os.utime(file, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert found.pop("fetch_weights") == 1
    assert sum(found.values()) == len(list((study.folder / "results/tiny/records").rglob("*.json")))
    assert study.planned() == {}


def test_a_dry_run_shows_what_the_fetched_checkpoint_is(study):
    assert "tiny-llama: llama, 0.1 M parameters, float32, not quantized, head of its own, " in study.tiny("-n")


def test_another_precision_measures_itself_alone_and_one_less_nothing(study):
    planned = study.planned(precisions=["fp32", "nf4"])
    # its probes and text, and the panel in which it is compared
    assert measuring(planned) == {"measure_time": 1, "measure": 2 + 1, "measure_quality": 1, "measure_tasks": 1}
    assert planned["render_report"] == planned["tabulate_processes"] == 1


def test_another_reference_compares_quality_anew(study):
    # and the panel whose reference it is
    assert measuring(study.planned(reference="bf16")) == QUALITY | {"measure_time": 1}


@contextmanager
def changed(study, replacements: dict[str, tuple[str, str]]):
    """Replace text in modules of the library for the time of the context."""
    library = study.folder / "workflow/scripts/llmstudy"
    before = {path: path.read_text() for path in library.rglob("*.py")}
    for name, (old, new) in replacements.items():
        path = library / f"{name}.py"
        assert old in before[path], (path, old)
        path.write_text(before[path].replace(old, new, 1))
    try:
        yield library
    finally:
        for path, text in before.items():
            path.write_text(text)


QUALITY = {"measure_reference": 1, "measure_quality": 2}
REGISTRY = {"models/precisions/__init__": ("MODULES = {\n", 'MODULES = {\n    "another": "dense",\n')}


def test_comments_docstrings_and_a_new_precision_repeat_nothing(study):
    with changed(study, REGISTRY) as library:
        tiny.change_comments(library)
        assert study.planned() == {}


@pytest.mark.parametrize(
    ("module", "change", "rules"),
    [
        ("models/precisions/four_bit", ("\n", "\nCHANGED = 1 + 1\n"), {}),  # no precision of this study
        ("measure/footprint", (" * ", " / "), {"measure_time": 1, "measure": 6, **QUALITY}),
        ("measure/__init__", ("> context", ">= context"), {"measure_time": 1, "measure": 6, **QUALITY}),
        ("fetch/wikipedia", (" == ", " != "), {"fetch_corpus": 1}),
    ],
)
def test_a_changed_operator_repeats_what_runs_through_it(study, module, change, rules):
    with changed(study, {module: change}):
        planned = measuring(study.planned())
    planned.pop("measure_tasks", None)
    if "fetch_corpus" in rules:  # what a repeated fetch makes is read by all
        planned = {"fetch_corpus": planned["fetch_corpus"]}
    assert planned == rules


MEASURING_ECHO = """
from dataclasses import dataclass

@dataclass(frozen=True)
class Settings:
    word: str

def measure(session):
    return {"answer": session.settings_as(Settings).word.upper() + " " + session.job.identity.precision}
"""
TABLE_ECHO = """
from llmstudy.tables.columns import SHARED, Column
from llmstudy.tables.records import identity

COLUMNS = {"echo": [*SHARED, Column("answer", "answer", "text")]}

def echo(sources):
    return [identity(record) | {"answer": record["results"]["answer"]} for record in sources.of_kind("echo")]
"""
ECHO = """KINDS = {
    "echo": Kind(
        "Echo of a made-up kind", "measure.echo", each_precision, lambda *_: {"word": "hello"}, table="tables.echo"
    ),
"""
COMPILE = """MODULES = {
    "torch-compile": Facts("generate", "GenerateRuntime"),
"""


def test_a_kind_is_added_in_one_place(study):
    """It is planned, measured, recorded, tabulated and shown; a runtime added beside it may have a hyphen."""
    additions = {"kinds": ("KINDS = {\n", ECHO), "runtimes/__init__": ("MODULES = {\n", COMPILE)}
    with changed(study, additions) as library:
        modules = {library / "measure/echo.py": MEASURING_ECHO, library / "tables/echo.py": TABLE_ECHO}
        for path, text in modules.items():
            path.write_text(text)
        planned = study.planned(runtimes=["generate", "torch-compile"])
        assert measuring(planned) == {"measure_time": 1, "measure": 4 + 2} and planned["tabulate_echo"] == 1
        rules = ["measure", "tabulate_echo", "render_report"]  # other tables and figures stay, to be quick
        output = study.tiny("--cores", "2", "--allowed-rules", *rules, "--", "REPORT.md", "results/tiny/echo.csv")
        for path in modules:
            path.unlink()
    assert measuring(jobs(output)) == {"measure": 2}, output
    assert study.record("echo", "bf16")["results"] == {"answer": "HELLO bf16"}
    assert study.table("echo")["answer"].tolist() == ["HELLO fp32", "HELLO bf16"]
    details = (study.folder / "results/tiny/details.md").read_text()
    assert "Echo of a made-up kind" in details and "HELLO bf16" in details


def test_the_walk_to_a_number_names_files_that_exist(repository):
    page = (repository / "workflow/README.md").read_text()
    walk = page.split("## How a number is made")[1].split("\n\nBetween")[0]
    files = [Path("workflow") / target for target in re.findall(r"\]\(([^)]+)\)", walk)]
    assert [path.name for path in files] == ["Snakefile", "measure.smk", "kinds.py", "panel.py"]
    assert all((repository / path).exists() for path in files)
