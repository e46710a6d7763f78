"""REPORT.md: every number from a table, every link and image there, no cell without a word."""

import csv
import json
import re
import shutil
from pathlib import Path

import hand_made
import numpy as np
import pandas as pd
import pytest
from conftest import REPOSITORY
from llmstudy.report import answer, diagrams, markdown, speed
from llmstudy.report import provenance as machine
from llmstudy.report import render as report
from llmstudy.report import study as studies
from llmstudy.report.figures import FIGURES
from llmstudy.tables import columns, generations, memory, processes, quality
from llmstudy.tables import text as text_table
from llmstudy.tables.columns import number

LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with two finished studies, their figures as empty files, and a study that has not finished."""
    folder = tmp_path_factory.mktemp("report")
    hand_made.write_study(folder / "results/h200")
    hand_made.write_study(folder / "results/default", models=("smollm2-135m",), bandwidth=28.0)
    for study in ("h200", "default"):
        (folder / f"results/{study}/figures").mkdir()
        for name in FIGURES:
            (folder / f"results/{study}/figures/{name}.svg").touch()
    (folder / "results/unfinished").mkdir()
    (folder / "results/unfinished/processes.csv").touch()
    return folder


@pytest.fixture(scope="module")
def text(place):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        report.write(Path("results"), ["h200"], "default", Path("REPORT.md"))
    return (place / "REPORT.md").read_text(encoding="utf-8")


def anchors(text):
    """What GitHub makes of headings, and explicit ids."""
    plain = FENCE.sub("", text)
    found = set(re.findall(r'<a id="([^"]+)"', plain))
    for heading in re.findall(r"^#+ (.+)$", plain, re.MULTILINE):
        found.add(re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-"))
    return found


def tables(text):
    """Blocks of table lines."""
    return [block.splitlines() for block in re.findall(r"(?:^\|.*\|\n)+", text + "\n", re.MULTILINE)]


def cells(line):
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def test_every_relative_link_and_image_is_there(text, place):
    targets = set(LINK.findall(FENCE.sub("", text)))
    files = {target.split("?")[0] for target in targets if not target.startswith(("http", "#"))}
    assert any(target.endswith(".svg") for target in files)
    assert any(target.startswith("workflow/scripts/") for target in files)
    missing = [target for target in files if not ((place / target).exists() or (REPOSITORY / target).exists())]
    assert not missing
    assert not {target[1:] for target in targets if target.startswith("#")} - anchors(text)


def test_no_cell_is_empty_or_a_leaked_nothing(text):
    for block in tables(text):
        width = len(cells(block[0]))
        for line in block[2:]:
            assert len(cells(line)) == width, line
            assert all(cells(line)[1:]), line
            assert not {"nan", "None", "NaN", "nan %"} & set(cells(line)), line


def test_markup_is_balanced(text):
    assert text.count("<details") == text.count("</details>")
    assert text.count("```") % 2 == 0
    assert "{{" not in FENCE.sub("", text) and "{%" not in text


def test_the_lead_stands_first_then_the_configured_then_the_rest(text):
    assert re.findall(r"^### Study (\w+)$", text, re.MULTILINE) == ["h200", "default"]
    assert studies.in_order(["a", "b", "c"], ["c", "gone"], "b") == ["c", "b", "a"]


def test_a_study_without_a_summary_is_left_out(place, text):
    assert studies.finished(place / "results") == ["default", "h200"]
    assert "unfinished" not in text


def test_the_first_screen_answers(text, place):
    screen = text.split("## Results")[0]
    with (place / "results/h200/recommendation.csv").open() as file:
        for row in csv.DictReader(file):
            assert row["sentence"] in screen
    block = next(block for block in tables(screen) if block[0].startswith("| metric"))
    assert cells(block[0])[1:4] == ["`bf16`<br>original", "`llm-int8`<br>8-bit", "`llm-int8-t0`<br>8-bit"]
    assert len(block) < 14, "more than a screen can hold"
    assert {cells(line)[0].split("<br>")[-1] for line in block[2:]} == set(answer.FIRST)
    assert "trade_off.svg" in screen
    with (place / "results/default/recommendation.csv").open() as file:
        assert next(csv.DictReader(file))["sentence"] in screen.split("| metric")[0], "all answers before any table"


def metrics(text):
    """The tables of metric × precision: the first screen's, then one per study."""
    return [block for block in tables(text) if block[0].startswith("| metric")]


def test_a_number_of_the_answer_comes_from_the_table(text, place):
    table = pd.read_csv(place / "results/h200/processes.csv")
    own = table[(table["model"] == "llama-2-7b") & (table["precision"] == "int8-fused") & (table["runtime"] == "graph")]
    own = own[(own["batch"] == 1) & (own["prompt_tokens"] == 512)]["e2e_ms"]
    assert len(own) == 3
    block = metrics(text)[1]  # in full, after the first screen's
    column = next(index for index, cell in enumerate(cells(block[0])) if "int8-fused" in cell)
    line = next(line for line in block if "llama-2-7b" in line)
    assert cells(line)[column].startswith(number(np.exp(np.log(own).mean())))
    assert "synthetic weights" in cells(line)[0]


def test_a_failed_cell_says_status_and_reason(text):
    block = next(block for block in tables(text) if block[0].startswith("| metric"))
    line = next(line for line in block if "llama-2-70b" in line)
    assert cells(line)[1].startswith("`oom`: CUDA out of memory")
    failures = text.split("#### Failures (h200)")[1]
    assert "runtime graph cannot capture nf4: it decides on the host" in failures
    assert "no answer after 600 s" in failures


def test_what_failed_at_another_workload_has_a_row(place):
    study = studies.load(place / "results/h200")
    frame = study.tables["processes"]
    lost = (frame["model"] == "llama-2-7b") & (frame["precision"] == "bf16") & (frame["runtime"] == "graph")
    lost &= frame["batch"] > 1
    study.tables["processes"] = frame.assign(
        status=frame["status"].where(~lost, "oom"), reason=frame["reason"].where(~lost, "full")
    )
    rows = [cells(line) for line in speed.workloads(study, "llama-2-7b").splitlines()[2:]]
    assert {tuple(row[4:6]) for row in rows if row[1:4:2] == ["`bf16`", "graph"]} >= {("`oom`: full", "`oom`")}


def test_every_verdict_has_its_reason(text, place):
    summary = pd.read_csv(place / "results/h200/summary.csv")
    own = summary[summary["model"] == "llama-2-7b"]
    told = text.split("verdicts and their reasons")[2].split("</details>")[0]  # the second model's
    assert len(own) == len(tables(told)[0]) - 2
    assert all(markdown.plain(reason).split(";")[0] in told for reason in own["verdict_reason"])


def test_llm_int8_is_told_of_as_the_library_has_it(place):
    study = studies.load(place / "results/h200")
    told = answer.library_int8(study, "llama-2-7b")
    own = study.of_model("summary", "llama-2-7b")
    row = own[(own["precision"] == "llm-int8") & (own["runtime"] == "eager")].sort_values("tpot_ms").iloc[0]
    assert f"TPOT {number(row['tpot_ms'])} ms, {number(row['speedup'])} x the decode speed of bf16" in told
    assert "PPL" not in told and told.endswith(f"Verdict: {row['verdict']}.")
    assert "PPL loss" in answer.library_int8(study, "smollm2-135m")
    study.tables["summary"] = own[own["precision"] != "llm-int8"]
    assert answer.library_int8(study, "llama-2-7b") is None


def test_energy_is_told_where_a_counter_was_read(place):
    study = studies.load(place / "results/h200")
    latency = study.tables["processes"]
    study.tables["processes"] = latency.assign(joules_per_token=2.5)
    assert speed.without_energy(study) == ""
    ran = [cells(line) for line in speed.table(study, "llama-2-7b").splitlines()[2:] if "ms" not in line]
    assert {row[7] for row in ran} <= {"2.5", "`oom`", "`unsupported`", "`timeout`", "`error`"} and "2.5" in {
        row[7] for row in ran
    }
    study.tables["processes"] = latency.assign(joules_per_token=np.nan)
    assert "No energy is told" in speed.without_energy(study)
    assert "| – |" in speed.table(study, "llama-2-7b")


def test_figures_have_the_captions_of_the_html_report():
    for name in FIGURES:
        told = report.caption(name)
        assert len(told) > 60 and "\n" not in told and "``" not in told


def test_a_link_leads_to_the_row(place):
    tables = report.joined([studies.load(place / f"results/{name}") for name in ("h200", "default")])
    for study in ("h200", "default"):
        lines = (place / f"results/{study}/memory.csv").read_text().splitlines()
        for row in tables["memory"][tables["memory"]["study"] == study].to_dict("records"):
            assert lines[row["line"] - 1].startswith(f"{study},{row['model']},")
            assert f"{row['precision']},{row['attention']}" in lines[row["line"] - 1]
    assert "line" not in tables["generations"]


def test_synthetic_models_are_labelled_wherever_their_numbers_stand(text):
    results = text.split("## Results")[1].split("## Method")[0]
    titles = re.findall(r"<summary>(.*llama-2.*)</summary>", results)
    assert titles and all("synthetic weights" in title for title in titles)
    assert "llama-2-7b" not in results.split("#### Quality (h200)")[1].split("#### Samples")[0]


def test_generated_text_cannot_become_markup(text):
    block = text.split("#### Samples (h200)")[1].split("####")[0]
    assert "&lt;b&gt;nothing&lt;/b&gt;" in block and "<b>" not in block
    assert r"\*fox\* \| a hen" in block


def test_a_study_without_optional_tables_or_quality_renders(tmp_path):
    folder = hand_made.write_study(tmp_path / "speed", models=("llama-2-7b",))
    for name in ("attention", "profile", "crossover", "capacity"):
        (folder / f"{name}.csv").unlink()
    text = report.render([studies.load(folder)])
    assert "#### Memory (speed)" in text
    assert "#### Quality (speed)" not in text and "Attention kernels (speed)" not in text
    assert ".svg" not in text, "no figure was drawn"


def test_the_speed_chapter_says_how_far_apart_the_same_lies(tmp_path):
    folder = hand_made.write_study(tmp_path / "twice", models=("llama-2-7b",))
    table = pd.read_csv(folder / "processes.csv")
    table.loc[table["status"] == "ok", "tpot_ms"] = table["repeat"].map({0: 100.0, 1: 101.0, 2: 104.0})
    table.to_csv(folder / "processes.csv", index=False)
    chapter = report.render([studies.load(folder)]).split("#### Speed (twice)")[1].split("#### Memory")[0]
    pairs = (table["status"] == "ok").sum()  # three of every three processes
    assert f"Measured over {pairs} pairs of processes" in chapter
    assert "by 3.0% in the median" in chapter and "by 4.0% at most" in chapter  # of 1, 2.97 and 4 %
    table[table["repeat"] == 0].to_csv(folder / "processes.csv", index=False)
    assert "pairs of processes" not in report.render([studies.load(folder)])


def test_predicted_capacity_stands_beside_what_verified_it(tmp_path):
    folder = hand_made.write_study(tmp_path / "full", models=("llama-2-7b",))
    unverified = report.render([studies.load(folder)])
    assert "Predictions run" not in unverified and "verified: ran" not in unverified
    table = pd.read_csv(folder / "capacity.csv").astype({"prediction": object, "prediction_reason": object})
    table.loc[0, ["usable_gib", "verified_fits", "verified_oom", "prediction"]] = [138.5, 20, 24, "held"]
    table.loc[2, ["usable_gib", "verified_fits", "verified_oom", "prediction"]] = [138.5, 17, 18, "missed"]
    table.loc[4, ["prediction", "prediction_reason"]] = ["unsupported", "no *such* kernel"]
    table.to_csv(folder / "capacity.csv", index=False)
    text = report.render([studies.load(folder)])
    missed = table.loc[2]
    assert "Predictions run on the device: 1 of 2 held" in text
    assert (
        f"Missed: `llama-2-7b` `{missed['precision']}` ({missed['attention']}, {missed['runtime']}) at 2048 tokens was "
        f"predicted to fit {missed['largest_batch']:.0f}; 17 ran, 18 did not."
    ) in text
    assert r"1 not verified: `unsupported`: no \*such\* kernel." in text
    block = next(block for block in tables(text) if "verified: ran" in block[0])
    assert sum(cells(line)[-1] == "held" for line in block[2:]) == 1
    table.drop(index=[0, 2]).to_csv(folder / "capacity.csv", index=False)
    assert "predictions that were run" not in report.render([studies.load(folder)])


def test_a_study_of_which_nothing_ran_renders(tmp_path):
    folder = hand_made.write_study(tmp_path / "failed", models=("smollm2-135m",))
    for path in folder.glob("*.csv"):
        if path.stem == "recommendation":
            continue
        table = pd.read_csv(path)
        kept = [
            *columns.SHARED,
            *columns.WORKLOAD,
            "corpus",
            "protocol",
            "prompt",
            "text",
            "reference_text",
            "verdict",
        ]
        table["status"], table["reason"] = "timeout", "the limit of 600 s | was reached"
        table[[column for column in table.columns if column not in kept]] = np.nan
        table.to_csv(path, index=False)
    text = report.render([studies.load(folder)])
    assert r"`timeout`: the limit of 600 s \| was reached" in text
    assert not any("nan" in cells(line) for block in tables(text) for line in block)


def test_method_names_columns_and_files_that_exist():
    lines = (REPOSITORY / "workflow/report/method.md.j2").read_text().splitlines()
    rows = [cells(line) for line in lines if line.startswith("| ")][2:]
    columns = {
        "speed": processes.COLUMNS,
        "memory": memory.COLUMNS,
        "quality": quality.COLUMNS,
        "generations": generations.COLUMNS,
        "text": text_table.COLUMNS,
    }
    checked = 0
    for row in rows:
        table = row[1].split(" ")[0]
        for column in re.findall(r"`(\w+)`", row[1]) if table in columns else []:
            assert column in columns[table], (table, column)
            checked += 1
        for target in LINK.findall(" ".join(row)):
            assert (REPOSITORY / target).exists(), target
    assert checked > 20


def test_summary_columns_named_by_the_method_exist(place):
    summary = pd.read_csv(place / "results/h200/summary.csv")
    text = (REPOSITORY / "workflow/report/method.md.j2").read_text()
    for cell in re.findall(r"\| summary ([^|]+)\|", text):
        assert set(re.findall(r"`(\w+)`", cell)) <= set(summary.columns)


def test_the_data_flow_names_rules_that_exist(place):
    drawn = diagrams.data_flow(studies.load(place / "results/h200"))
    rules = set(
        re.findall(r"^rule (\w+):", "".join(p.read_text() for p in REPOSITORY.glob("workflow/rules/*.smk")), re.M)
    )
    named = set(re.findall(r"\b(?:fetch|measure|generate|keep|render)_\w+", drawn))
    assert named and named <= rules


def test_optional_tables_have_a_section_each(text):
    for title in (
        "Outliers of LLM.int8()",
        "Threshold sweep",
        "What loses most",
        "Does the batch change",
        "Attention kernels",
    ):
        assert f"#### {title}" in text
    folded = re.findall(r"<summary>(.*)</summary>", text)
    for title in (
        "Where one configuration overtakes another",
        "The largest batch that fits",
        "Launches, synchronisations",
    ):
        assert any(summary.startswith(title) for summary in folded)


def test_the_architecture_has_the_shapes_of_the_config(place):
    drawn = diagrams.architecture(studies.load(place / "results/h200"), "smollm2-135m")
    assert "30 times" in drawn and "k, v 192 × 576" in drawn and "gate, up 1536 × 576" in drawn
    assert "the embedding again" in drawn


def test_an_empty_cell_is_refused():
    with pytest.raises(ValueError, match="missing cell"):
        markdown.table(["a", "b"], [["x", " "]])


def test_a_ratio_near_one_keeps_its_digits():
    assert markdown.with_interval(1.0186, 1.0181, 1.019, markdown.ratio) == "1.0186<br>[1.0181, 1.0190]"
    assert markdown.with_interval(2.5, np.nan, np.nan) == "2.5"
    assert markdown.value(np.nan) == "n/a"


def test_a_study_says_what_is_missing(place):
    study = studies.load(place / "results/default")
    assert machine.missing(study) == ""
    study.provenance["missing"] = {"latency of m": 2, "memory of n": 3}
    total = study.provenance["records"] + 5
    told = f"This study is not complete: 5 of its {total} records are not measured yet (2 latency of m, 3 memory of n)."
    assert machine.missing(study) == told


def test_a_cpu_study_names_its_processor(tmp_path, place):
    folder = tmp_path / "default"
    shutil.copytree(place / "results/default", folder)
    content = json.loads((folder / "provenance.json").read_text())
    content["environments"][0].pop("gpu")
    (folder / "provenance.json").write_text(json.dumps(content))
    assert machine.device(studies.load(folder)) == "CPU a processor, 16 threads"


def test_the_answer_says_up_to_which_batch_it_holds(place):
    study = studies.load(place / "results/h200")
    taken = study.table("recommendation").set_index("model", drop=False).loc["llama-2-7b"]
    crossings = study.of_model("crossover", "llama-2-7b")
    same = (crossings["along"] == "batch") & (crossings[["precision", "attention", "runtime"]] == taken[
        ["precision", "attention", "runtime"]]).all(axis=1)  # fmt: skip
    told = answer.over_batches(study, taken)
    assert same.any() and told.startswith(" Batch size against bf16 (tokens/s of whole calls, prompt ")
    assert told.endswith(f", both under runtime `{taken['runtime']}`): {crossings[same].iloc[0]['text']}.")
    assert any(line.endswith(told) for line in answer.sentences(study))
    assert answer.over_batches(study, taken.replace(taken["precision"], "bf16")) == ""


def test_a_workload_of_its_own_is_told_beside_the_usual_one(place):
    study = studies.load(place / "results/h200")
    usual = answer.workload(study, "llama-2-7b")
    assert answer.workloads(study) == usual
    study.provenance["headline"]["llama-2-70b"]["new_tokens"] = 8
    other = answer.workload(study, "llama-2-70b")
    assert answer.workloads(study) == f"{usual} (`llama-2-70b` (synthetic weights): {other})"


def test_the_fastest_measured_configuration_speaks_for_a_precision(place):
    study = studies.load(place / "results/h200")
    rows = answer.model_rows(study, "llama-2-7b", ["bf16", "nf4"])
    assert answer.model_rows(study, "llama-2-7b", ["none"])[0][1] == "–"
    assert rows[-1] == ["measured as", "sdpa, graph", "sdpa, eager"]
