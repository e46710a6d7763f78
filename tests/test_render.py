"""REPORT.md: every number from a table, every link and image there, no cell without a word."""

import csv
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
from llmstudy.report import diagrams, figures, markdown, provenance, render
from llmstudy.report import study as studies
from llmstudy.tables import columns
from llmstudy.tables.columns import number

FENCE = pages.FENCE


@pytest.fixture(scope="module")
def place(finished):
    """The finished studies, with figures as empty files, beside a study that has not finished and one of version 1."""
    for study in ("h200", "default"):
        (finished / f"results/{study}/figures").mkdir(exist_ok=True)
        for name in figures.FIGURES:
            (finished / f"results/{study}/figures/{name}.svg").touch()
    for study, name in (("unfinished", "speed.csv"), ("version1", "summary.csv"), ("version1", "provenance.json")):
        (finished / "results" / study).mkdir(exist_ok=True)
        (finished / "results" / study / name).touch()
    return finished


@pytest.fixture(scope="module")
def text(place):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        render.write(Path("results"), ["h200"], "default", Path("REPORT.md"))
    return (place / "REPORT.md").read_text(encoding="utf-8")


def test_every_relative_link_and_image_is_there(text, place):
    targets = set(re.findall(r"!?\[[^\]]*\]\(([^)\s]+)\)", FENCE.sub("", text)))
    files = {target for target in targets if not target.startswith(("http", "#"))}
    assert any(target.endswith(".svg") for target in files)
    assert any(target.startswith("workflow/scripts/") for target in files)
    assert not [target for target in files if not ((place / target).exists() or (REPOSITORY / target).exists())]
    assert not {target[1:] for target in targets if target.startswith("#")} - pages.anchors(text)


def test_no_cell_is_empty_or_a_leaked_nothing(text):
    for header, *rows in pages.tables(text):
        for row in rows:
            assert len(row) == len(header), row
            assert all(row[1:]), row
            assert not {"nan", "None", "NaN", "nan %"} & set(row), row


def test_markup_is_balanced_and_leaves_no_gaps(text):
    assert text.count("<details") == text.count("</details>")
    assert text.count("```") % 2 == 0
    assert "{{" not in FENCE.sub("", text) and "{%" not in text and "None" not in text
    assert "\n\n\n" not in text


def test_the_lead_is_first_then_the_configured_then_the_rest(text):
    assert re.findall(r"^### Study (\w+)$", text, re.MULTILINE) == ["h200", "default"]
    assert studies.in_report_order(["a", "b", "c"], ["c", "gone"], "b") == ["c", "b", "a"]


def test_a_study_without_an_answer_or_of_version_1_is_left_out(place, text):
    assert studies.finished(place / "results") == ["default", "h200"]
    assert "unfinished" not in text and "version1" not in text


def test_the_first_screen_answers(text, place):
    screen = text.split("## Results")[0]
    with (place / "results/h200/recommendation.csv").open() as file:
        for row in csv.DictReader(file):
            assert row["sentence"] in screen
    header, *rows = next(table for table in pages.tables(screen) if table[0][0] == "metric")
    assert header[1:5] == [
        "`bf16`<br>original", "`llm-int8`<br>8-bit", "`llm-int8-t0`<br>8-bit", "`int8-fused`<br>8-bit"
    ]  # fmt: skip
    assert len(rows) < 12, "more than a screen can hold"
    assert {row[0].split("<br>")[-1] for row in rows} == {"TPOT, ms", "memory, GiB", "PPL ratio"}
    assert "trade_off.svg" in screen
    with (place / "results/default/recommendation.csv").open() as file:
        assert next(csv.DictReader(file))["sentence"] in screen.split("| metric")[0], "all answers before any table"


def test_a_number_of_the_answer_comes_from_the_table(text, place):
    table = pd.read_csv(place / "results/h200/speed.csv")
    own = table[(table["model"] == "llama-2-7b") & (table["precision"] == "int8-fused") & (table["runtime"] == "graph")]
    row = own[(own["batch"] == 1) & (own["prompt_tokens"] == 512)].iloc[0]
    header, *rows = [table for table in pages.tables(text) if table[0][0] == "metric"][1]  # after the first screen's
    line = next(row for row in rows if "llama-2-7b" in row[0])
    low, high = (number(row[f"e2e_ms_{end}"]) for end in ("low", "high"))
    assert line[header.index("`int8-fused`<br>8-bit")] == f"{number(row['e2e_ms'])}<br>[{low}, {high}]"
    assert "synthetic weights" in line[0]


def test_a_failed_cell_says_status_and_reason(text):
    _, *rows = next(table for table in pages.tables(text) if table[0][0] == "metric")
    assert next(row for row in rows if "llama-2-70b" in row[0])[1].startswith("`oom`: CUDA out of memory")
    failures = text.split("#### Failures (h200)")[1]
    assert "runtime graph cannot capture nf4: it decides on the host" in failures
    assert "no answer after 600 s" in failures


def test_every_verdict_has_its_reason(text, h200):
    own = h200.table("summary", "llama-2-7b")
    block = text.split("verdicts and their reasons")[2].split("</details>")[0]  # the second model's
    assert len(own) == len(pages.tables(block)[0]) - 1
    assert all(markdown.plain(reason).split(";")[0] in block for reason in own["verdict_reason"])


def test_figures_have_the_captions_of_the_html_report():
    for name in figures.FIGURES:
        caption = render.caption(name)
        assert len(caption) > 60 and "\n" not in caption and "``" not in caption


def test_synthetic_models_are_labeled_wherever_their_numbers_are(text):
    results = text.split("## Results")[1].split("## Method")[0]
    titles = re.findall(r"<summary>(.*llama-2.*)</summary>", results)
    assert titles and all("synthetic weights" in title for title in titles)
    assert "llama-2-7b" not in results.split("#### Quality (h200)")[1].split("#### Generated texts")[0]


def test_generated_text_cannot_become_markup(text):
    block = text.split("#### Generated texts (h200)")[1].split("####")[0]
    assert "&lt;b&gt;nothing&lt;/b&gt;" in block and "<b>" not in block
    assert r"\*fox\* \| a hen" in block


def test_a_study_without_optional_tables_or_quality_renders(tmp_path):
    folder = hand_made.write_study(tmp_path / "speed", models=("llama-2-7b",))
    for name in ("attention", "profile", "crossover", "capacity"):
        (folder / f"{name}.csv").unlink()
    text = render.render([studies.load(folder)])
    assert "#### Memory (speed)" in text
    assert "#### Quality (speed)" not in text and "Attention kernels alone (speed)" not in text
    assert ".svg" not in text, "no figure was drawn"


def test_a_study_of_which_nothing_ran_renders(tmp_path):
    folder = hand_made.write_study(tmp_path / "failed", models=("smollm2-135m",))
    kept = ["corpus", "protocol", "prompt", "text", "reference_text", "verdict", *columns.WORKLOAD]
    kept += [column.name for column in columns.SHARED]
    for path in folder.glob("*.csv"):
        if path.stem != "recommendation":
            table = pd.read_csv(path)
            table["status"], table["reason"] = "timeout", "the limit of 600 s | was reached"
            table[[column for column in table.columns if column not in kept]] = np.nan
            table.to_csv(path, index=False)
    study = studies.load(folder)
    text = render.render([study])
    assert r"`timeout`: the limit of 600 s \| was reached" in text
    assert not any("nan" in row for table in pages.tables(text) for row in table)
    assert not [name for name in figures.FIGURES if len(figures.rows(name, study))]


@pytest.mark.parametrize("architecture", [{}, {"hidden_size": 768, "n_head": 12}], ids=["unknown", "no LLaMA"])
def test_a_model_whose_shape_is_not_known_has_its_report(tmp_path, architecture):
    """Its config.json may not be at hand, where records were copied from another machine."""
    folder = hand_made.write_study(tmp_path / "copied", models=("llama-2-7b",))
    content = json.loads((folder / "provenance.json").read_text())
    content["models"]["llama-2-7b"]["architecture"] = architecture
    (folder / "provenance.json").write_text(json.dumps(content))
    study = studies.load(folder)
    text = render.render([study])
    assert pages.table_with("layers × width", text)[0]["layers × width"] == "not recorded"
    assert "decoder layer, 32 times" not in text and not len(figures.rows("roofline", study))


def test_a_configuration_without_key_value_heads_has_as_many_as_heads(tmp_path):
    """LLaMA 1's config.json has no ``num_key_value_heads``."""
    folder = hand_made.write_study(tmp_path / "first", models=("llama-2-7b",))
    content = json.loads((folder / "provenance.json").read_text())
    del content["models"]["llama-2-7b"]["architecture"]["num_key_value_heads"]
    (folder / "provenance.json").write_text(json.dumps(content))
    study = studies.load(folder)
    text = render.render([study])
    assert pages.table_with("layers × width", text)[0]["heads, key-value heads"] == "32, 32"
    assert "k, v 4096 × 4096" in text and len(figures.rows("roofline", study))


def test_a_kind_that_the_report_does_not_know_has_its_section(tmp_path, monkeypatch):
    """A made-up kind is in the registries alone: its table is in the details, and in the diagram of the data."""
    folder = hand_made.write_study(tmp_path / "made_up", models=("llama-2-7b",))
    declared = [*columns.SHARED, columns.Column("weight_kg", "weight, kg"), columns.Column("gone", "never measured")]
    declared += [*columns.interval("height_m", "height_low_m", "height_high_m", "height, m")]
    kind = kinds.Kind("How heavy a model is", "measure.scale", None, None, table="tables.scale")
    monkeypatch.setitem(kinds.KINDS, "scale", kind)
    module = type("module", (), {"COLUMNS": {"scale": declared}})
    original = tables.import_module
    monkeypatch.setattr(tables, "import_module", lambda name: module if name.endswith("scale") else original(name))
    markdown.declarations.cache_clear()
    rows = [{"study": "made_up", "model": "llama-2-7b", "precision": name, "attention": "sdpa", "runtime": "generate",
             "status": status, "reason": reason, "weight_kg": weight, "height_m": 1.5, "height_low_m": 1.25,
             "height_high_m": 2} for name, status, reason, weight in (("bf16", "ok", "", 12.5),
                                                                     ("nf4", "oom", "too heavy", None))]  # fmt: skip
    columns.write_table(rows, declared, folder / "scale.csv")
    text = render.render([studies.load(folder)])
    section = text.split("#### How heavy a model is (made_up)")[1].split("####")[0]
    header, *shown = pages.tables(section)[0]
    assert header == ["model", "precision", "attention", "runtime", "weight, kg", "height, m"]
    assert shown[0][-2:] == ["12.5", "1.5<br>[1.25, 2]"] and shown[1][-2] == "`oom`: too heavy"
    assert 'measure_scale -- "records" --> scale[("scale.csv")]' in text
    markdown.declarations.cache_clear()


def test_every_kind_of_a_diagnostic_has_a_section_and_a_place_in_the_diagram(text, h200):
    for name in ("outliers", "sensitivity", "invariance", "attention"):
        assert f"#### {kinds.KINDS[name].title} (h200)" in text
    drawn = diagrams.data_flow(h200)
    for name, table in tables.every().items():
        if name in h200.tables:
            assert f"  {name} --> report" in drawn
            assert all(f"measure_{kind}" in drawn for kind in table.kinds)
    folded = re.findall(r"<summary>(.*)</summary>", text)
    for title in ("Where one configuration overtakes another", "The largest batch that fits", "Launches, synchroniz"):
        assert any(summary.startswith(title) for summary in folded)


def test_method_names_columns_and_files_that_exist(text):
    checked = 0
    for row in pages.table_with("computed in", text):
        table = row["table and column"].split(" ")[0]
        names = re.findall(r"`(\w+)`", row["table and column"])
        assert not names or set(names) <= {column.name for column in tables.columns_of(table)}
        checked += len(names)
    assert checked > 40


def test_the_architecture_has_the_shapes_of_the_config(h200):
    drawn = diagrams.architecture([h200])
    assert "`smollm2-135m`" in drawn and "30 times" in drawn and "the embedding again" in drawn
    assert "k, v 192 × 576" in drawn and "gate, up 1536 × 576" in drawn


def test_a_study_says_what_is_missing(finished):
    study = studies.load(finished / "results/default")
    assert provenance.missing(study) is None
    study.provenance["missing"] = {"speed of m": 2, "memory of n": 3}
    total = study.provenance["records"] + 5
    assert provenance.missing(study) == (
        f"**This study is not complete: 5 of its {total} records are not measured yet (2 speed of m, 3 memory of n).**"
    )


def test_a_cpu_study_names_its_processor(finished):
    study = studies.load(finished / "results/default")
    study.provenance["environments"][0].pop("gpu")
    assert study.device() == "CPU a processor, 16 threads"
