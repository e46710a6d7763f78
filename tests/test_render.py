"""REPORT.md and details.md: every number from a table, every link and image there, no cell without a word."""

import dataclasses
import json
import re
from pathlib import Path

import hand_made
import numpy as np
import pages
import pandas as pd
import pytest
from conftest import REPOSITORY
from llmstudy import kinds, tables
from llmstudy.report import figures, markdown, provenance, render
from llmstudy.report import study as studies
from llmstudy.tables import columns
from llmstudy.tables.columns import number

LONGEST = 30  # words of a sentence
PAGES = ("REPORT.md", "results/h200/details.md")


@pytest.fixture(scope="module")
def place(finished):
    """The finished studies, with figures as empty files, beside one that has not finished and one of version 1."""
    for study in ("h200", "default"):
        (finished / f"results/{study}/figures").mkdir(exist_ok=True)
        for name in figures.FIGURES:
            (finished / f"results/{study}/figures/{name}.svg").touch()
    version1 = ("speed.csv", "summary.csv", "provenance.json")
    for study, name in (("unfinished", "speed.csv"), *(("version1", name) for name in version1)):
        (finished / "results" / study).mkdir(exist_ok=True)
        (finished / "results" / study / name).touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(finished)
        render.write(Path("results"), "default", Path("REPORT.md"), Path("results/default/details.md"))
        render.write(Path("results"), "h200", Path("REPORT.md"), Path("results/h200/details.md"))
    return finished


@pytest.fixture(scope="module")
def text(place):
    return (place / "REPORT.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def details(place):
    return (place / "results/h200/details.md").read_text(encoding="utf-8")


def own(text):
    """The report without its background."""
    return text.split("## Background")[0]


def sentences(text):
    """Sentences of paragraphs, lists and quotations, without headings, tables, captions and the targets of links."""
    text = re.sub(r"\]\([^)]*\)", "]", pages.prose(text))
    blocks = re.split(r"\n\n|\n>? ?- ", text)
    prose = [block for block in blocks if not block.lstrip(">\n").startswith(("|", "#", "*", "![", "<"))]
    return [one for block in prose for one in re.split(r"(?<=[.:;])\s", " ".join(block.replace("\n>", "\n").split()))]


@pytest.mark.parametrize("page", PAGES)
def test_every_relative_link_and_image_is_there(page, place):
    text, folder = (place / page).read_text(encoding="utf-8"), (place / page).parent
    targets = set(re.findall(r"!?\[[^\]]*\]\(([^)\s]+)\)", pages.prose(text)))
    files = {target.partition("#")[0] for target in targets if not target.startswith(("http", "#"))}
    assert any(target.endswith(".svg") for target in files)
    missing = {target for target in files - {"records"} if not (folder / target).exists()}
    # the repository's own files are not in the temporary folder
    assert not {target for target in missing if not (REPOSITORY / target.removeprefix("../../")).exists()}
    assert not {target[1:] for target in targets if target.startswith("#")} - pages.anchors(text)


@pytest.mark.parametrize("page", PAGES)
def test_no_cell_is_empty_or_a_leaked_nothing(page, place):
    text = (place / page).read_text(encoding="utf-8")
    for header, *rows in pages.tables(text):
        for row in rows:
            assert len(row) == len(header), row
            assert all(row[1:]), row
            assert not {"nan", "None", "NaN", "nan %", "nan ×"} & set(row), row
    assert text.count("<details") == text.count("</details>")
    assert text.count("```") % 2 == 0
    assert "{{" not in pages.prose(text) and "{%" not in text and "None" not in text
    assert "\n\n\n" not in text and "distinguishable" not in text


def test_the_report_is_short_and_so_are_its_sentences(text):
    assert own(text).count("\n") <= 370 and len(own(text).encode()) <= 30_000
    assert len(re.findall(r"!\[", text)) <= 6
    words = {one: len(one.split()) for one in sentences(own(text))}
    assert len(words) > 60
    assert not {one: count for one, count in words.items() if count > LONGEST}


def test_the_first_screen_answers_before_anything_else(text, h200):
    screen = text.split("## What the numbers show")[0]
    assert screen.index("**Measured**") < screen.index("## Take this") < screen.index("**Before you believe it**")
    for model in h200.models:
        assert screen.count(h200.label(model)) >= 1
    assert len(pages.tables(screen)) == len(h200.models)
    for rows, model in zip(pages.tables(screen), h200.models):
        assert [row[0].split("<br>")[0] for row in rows[1:]] == list(h200.table("advice", model)["use"])
        assert [re.sub(r"[][]|\(.*", "", title) for title in rows[0]] == [
            "use", "take", "speed", "memory", "loss", "evidence", "how"
        ]  # fmt: skip


def test_a_number_of_the_answer_comes_from_the_table_that_its_heading_leads_to(text, place):
    table = pd.read_csv(place / "results/h200/speed.csv")
    row = table.query("model == 'llama-2-7b' and precision == 'int8-fused' and runtime == 'graph' and batch == 1")
    row = row.query("prompt_tokens == 512").iloc[0]
    header, first, *_ = pages.tables(text)[1]
    assert header[2] == "[speed](results/h200/speed.csv)"
    ends = f"[{number(row['tpot_speedup_low'])}, {number(row['tpot_speedup_high'])}]"
    text = f"{number(row['tpot_ms'])} ms a token, {number(row['tpot_speedup'])} × {ends} "
    assert first[2] == text + markdown.coded(row["against"])
    assert "fastest in this study: `int8-fused` (sdpa, graph)" in first[1] and "random weights" in first[4]


def test_other_studies_are_a_line_each_and_unfinished_ones_none(place, text):
    assert studies.finished(place / "results") == ["default", "h200"]
    assert "- [default](results/default/details.md): NVIDIA H200; 6 precisions" in text
    assert "unfinished" not in text and "version1" not in text
    assert text.count("smollm2-135m") > text.count("default") == 2


def test_every_claim_has_a_heading_and_its_figure(text, h200):
    claims = render.claims(dataclasses.replace(h200, folder=Path("results/h200")))
    assert [claim.figure for claim in claims] == list(figures.FIGURES)[:6]
    for claim in claims:
        assert f"### {claim.heading}\n" in text and f"figures/{claim.figure}.svg" in text
        assert claim.text in text


def test_a_study_on_a_cpu_with_one_workload_claims_little(tmp_path):
    folder = hand_made.write_study(tmp_path / "cpu", models=("smollm2-135m",))
    for path in folder.glob("*.csv"):
        table = columns.read_table(path)
        if "runtime" in table:
            table = table[table["runtime"] == "generate"].assign(device="cpu")
        if path.stem in ("speed", "processes", "probes"):
            table = table[(table["batch"] == 1) & (table["prompt_tokens"] == 512)]
        table.to_csv(path, index=False)
    (folder / "attention.csv").unlink()
    study = studies.load(folder)
    claims = render.claims(study)
    assert [claim.figure for claim in claims] == ["floor", "trade_off", "", "distance"]
    assert "memory verdict" in claims[2].table
    text = render.render(study, [])
    assert "weights and KV cache, which are exact" in text and "nvidia-smi" not in text
    assert ".svg" not in text, "no figure was drawn"


def test_synthetic_models_are_labeled_wherever_their_numbers_are(details):
    titles = re.findall(r"<summary>(.*llama-2.*)</summary>", details)
    assert titles and all("synthetic weights" in title for title in titles)
    assert "llama-2-7b" not in details.split("## Quality")[1].split("## Diagnostics")[0]


def test_details_have_every_table_of_the_study(details, h200):
    made = pages.table_with("computed in", details)
    assert {re.match(r"\[(\w+)\.csv\]", row["table"])[1] for row in made} == set(h200.tables)
    for row in made:
        for path in re.findall(r"\]\(\.\./\.\./([^)]*)\)", row["computed in"]):
            assert (REPOSITORY / path).exists()
    for name in h200.tables:
        assert details.count(f"({name}.csv)") > 1, name


def test_details_name_columns_that_exist():
    source = (render.TEMPLATES / "details.md.j2").read_text(encoding="utf-8")
    found = re.findall(r'table\("(\w+)", \w+, ("[^"]*"|shape), "([^"]*)"', source)
    assert len(found) > 10
    shape = re.search(r'shape = "([^"]*)"', source)[1]
    for name, names, values in found:
        wanted = {*(shape if names == "shape" else names.strip('"')).split(), *values.split()}
        assert wanted <= {column.name for column in tables.columns_of(name)}, name


def test_the_reference_against_itself_is_apart_from_the_other_rows(text, details, h200):
    again = h200.table("speed", again=True)
    assert len(again) == len(hand_made.WORKLOADS) * 2 + 4  # the 70B reference ran out of memory, in every workload
    assert (h200.table("speed")["again"] == "no").all()
    line = next(one for one in own(text).splitlines() if one.startswith("The reference against itself"))
    assert "called a second time in each round, `bf16` of `smollm2-135m` came out" in line
    assert line.replace("results/h200/", "") in details


def test_what_failed_says_why_in_a_users_words(text, details):
    assert "- Does not fit: memory ran out: `bf16` (eager, generate), `bf16` (sdpa, generate) and `bf16` (sdpa" in text
    failures = details.split("## Failures")[1]
    assert "runtime graph cannot capture nf4: it decides on the host" in failures
    assert "CUDA out of memory" in failures and "no answer after 600 s" in failures
    shown = next(row for row in pages.rows(details) if "llama-2-70b" not in row[0] and "does not fit" in " ".join(row))
    assert "CUDA" not in " ".join(shown)


def test_generated_text_cannot_become_markup(details):
    assert "&lt;b&gt;nothing&lt;/b&gt;" in details and "<b>" not in details
    assert r"\*fox\* \| a hen" in details


def test_a_study_without_optional_tables_or_quality_renders(tmp_path):
    folder = hand_made.write_study(tmp_path / "speed", models=("llama-2-7b",))
    for name in ("attention", "profile", "crossover", "capacity"):
        (folder / f"{name}.csv").unlink()
    study = studies.load(folder)
    details = render.render_details(study)
    assert "## Quality\n\nNot measured." in details and "Attention kernels alone" not in details
    assert "nearest to the original" not in render.render(study, [])


def test_a_study_of_which_nothing_ran_renders(tmp_path):
    folder = hand_made.write_study(tmp_path / "failed", models=("smollm2-135m",))
    kept = ["corpus", "protocol", "prompt", "text", "reference_text", "again", "flags", "use", "verdict", "sentence"]
    kept += [*columns.WORKLOAD, *(column.name for column in columns.SHARED)]
    for path in folder.glob("*.csv"):
        table = columns.read_table(path)
        table["status"], table["reason"] = "timeout", "the limit of 600 s | was reached"
        table[[column for column in table.columns if column not in kept]] = np.nan
        table.to_csv(path, index=False)
    study = studies.load(folder)
    text, details = render.render(study, []), render.render_details(study)
    assert "Took longer than a job may take" in text and r"the limit of 600 s \| was reached" in details
    assert not any("nan" in row for table in pages.tables(text + details) for row in table)
    assert not [name for name in figures.FIGURES if len(figures.rows(name, study))]


def test_a_kind_that_the_report_does_not_know_has_its_section(tmp_path, monkeypatch):
    """A made-up kind is in the registries alone: its table is in the details."""
    folder = hand_made.write_study(tmp_path / "made_up", models=("llama-2-7b",))
    declared = [*columns.SHARED, columns.Column("weight_kg", "weight, kg"), columns.Column("gone", "never measured")]
    declared += [*columns.interval("height_m", "height_low_m", "height_high_m", "height, m")]
    kind = kinds.Kind("How heavy a model is", "measure.scale", None, None, table="tables.scale")
    monkeypatch.setitem(kinds.KINDS, "scale", kind)
    module = type("module", (), {"COLUMNS": {"scale": declared}})
    original = tables.import_module
    monkeypatch.setattr(tables, "import_module", lambda name: module if name.endswith("scale") else original(name))
    markdown.declarations.cache_clear()
    one = {"study": "made_up", "model": "llama-2-7b", "attention": "sdpa", "runtime": "generate", "height_m": 1.5}
    one |= {"height_low_m": 1.25, "height_high_m": 2}
    rows = [
        one | {"precision": "bf16", "status": "ok", "reason": "", "weight_kg": 12.5},
        one | {"precision": "nf4", "status": "unsupported", "reason": "too heavy", "weight_kg": None},
    ]
    columns.write_table(rows, declared, folder / "scale.csv")
    details = render.render_details(studies.load(folder))
    header, *shown = pages.tables(details.split("### How heavy a model is")[1])[0]
    assert header == ["model", "precision", "attention", "runtime", "weight, kg", "height, m"]
    assert shown[0][-2:] == ["12.5", "1.5<br>[1.25, 2]"] and shown[1][-2] == "does not run here: too heavy"
    assert "measure/scale.py" in details
    markdown.declarations.cache_clear()


def test_a_gpu_that_was_not_used_is_a_warning_at_the_top(finished):
    study = studies.load(finished / "results/h200")
    assert provenance.warnings(study) == []
    study.provenance["environments"][0]["unused_gpu"] = "H100: PyTorch 2 is a build_without CUDA"
    (warning,) = provenance.warnings(study)
    assert warning == (
        "PyTorch could not use a GPU, so these are numbers of a CPU: H100: PyTorch 2 is a build\\_without CUDA."
    )


def test_a_study_says_what_is_missing(finished):
    study = studies.load(finished / "results/default")
    assert provenance.missing(study) is None
    study.provenance["missing"] = {"panel of m": 2, "probe of n": 3}
    total = study.provenance["records"] + 5
    assert provenance.missing(study) == f"5 of {total} records are not measured yet (2 panel of m, 3 probe of n)."


def test_every_environment_has_its_line(finished):
    study = studies.load(finished / "results/default")
    first = study.provenance["environments"][0]
    later = json.loads(json.dumps(first)) | {
        "git_dirty": True,
        "last_started": "2026-11-09T10:00:00+00:00",
        "records": 3,
    }
    del later["gpu"]
    study.provenance["environments"].append(later)
    rows = pages.tables(provenance.environments(study))[0][1:]
    assert [row[0] for row in rows] == ["60", "3"]
    assert "NVIDIA H200" in rows[0][3] and "NVIDIA" not in rows[1][3] and "uncommitted changes" in rows[1][2]
    assert provenance.when(study) == "2026-11-01 to 2026-11-09"


def test_a_cpu_study_names_its_processor(finished):
    study = studies.load(finished / "results/default")
    study.provenance["environments"][0].pop("gpu")
    assert study.device() == "CPU a processor, 16 threads"
