"""What the report tells of quality: every protocol, agreement of greedy texts, sensitivity to rounding."""

import dataclasses
import re

import hand_made
import numpy as np
import pytest
from llmstudy import studies
from llmstudy.rendering import quality, report


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = hand_made.write_study(tmp_path_factory.mktemp("results") / "small", models=("smollm2-135m",))
    (folder / "figures").mkdir()
    (folder / "figures/agreement.svg").touch()
    return studies.load(folder)


@pytest.fixture(scope="module")
def text(study):
    return report.render([study])


@pytest.fixture(scope="module")
def chapter(text):
    return text.split("#### Quality (small)")[1].split("#### Samples (small)")[0]


def cells(line):
    return [cell.strip() for cell in line.split("|")[1:-1]]


def table_with(title, text):
    """Header and rows, as cells, of the first table whose header has a column of this title."""
    blocks = [block.splitlines() for block in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE)]
    found = next(block for block in blocks if title in cells(block[0]))
    return cells(found[0]), [cells(line) for line in found[2:]]


def test_every_protocol_is_a_column_labelled_as_in_the_table(chapter):
    header, rows = table_with("`w2048-s2048`", chapter)
    assert header[1:] == ["`w1024-s512`", "`w512-s512`", "`w1024-s1024`", "`w2048-s2048`"]  # in the order of the config
    lines = {name: values for name, *values in rows}
    assert lines["`nf4`"][0] == "26.90<br>× 1.2816 [1.2743, 1.2889]"
    assert [cell.split("<br>")[0] for cell in lines["`bf16`"]] == ["20.99", "23.51", "22.25", "21.20"]
    _, every = table_with("word PPL", chapter)
    assert [row[2] for row in every[:4]] == header[1:]


def test_a_protocol_that_failed_says_so_in_its_column(study):
    table = study.table("quality").copy()
    failed = (table["precision"] == "nf4") & (table["protocol"] == "w2048-s2048")
    table.loc[failed, ["status", "reason", "ppl", "ppl_ratio"]] = ["oom", "CUDA out of memory", np.nan, np.nan]
    changed = dataclasses.replace(study, tables={"quality": table})
    _, rows = table_with("precision", quality.protocols(changed, "smollm2-135m") + "\n")
    row = next(row for row in rows if row[0] == "`nf4`")
    assert row[-1] == "`oom`: CUDA out of memory" and row[1].startswith("26.90")
    single = dataclasses.replace(study, tables={"quality": table[table["protocol"] == "w1024-s512"]})
    assert quality.protocols(single, "smollm2-135m") is None


def test_agreement_of_greedy_texts_stands_in_the_quality_chapter(chapter):
    header, rows = table_with("texts identical", chapter)
    lines = {name: values for name, *values in rows}
    # both texts of nf4 part at token 3 of 48; all of int8-fused's are the reference's
    assert lines["`nf4`"][:5] == ["0 of 2", "3", "3.0 of 48", "0.0 %", "0.0 %"]
    assert lines["`int8-fused`"][:4] == ["2 of 2", "half or more never part", "48.0 of 48", "100.0 %"]
    assert lines["`bf16` (reference)"][0] == "–" and lines["`bf16` (reference)"][-2] == "0.900"
    assert "identical after 32" in header and "identical after 64" not in header
    assert "figures/agreement.svg" in chapter and "/text.csv" in chapter


def test_sensitivity_is_ranked_by_divergence(text):
    _, rows = table_with("KL, nats per token", text)
    # hand-made: the least delta_nll has the most divergence, 0.03 - 0.0002 with t(7) · 0.001 on each side
    assert rows[0][1:4] == ["1", "all", "0.0298<br>[0.0274, 0.0322]"]
