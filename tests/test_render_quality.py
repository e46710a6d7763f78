"""What the report tells of quality: every protocol, agreement of greedy texts, sensitivity to rounding."""

import dataclasses
import re

import hand_made
import numpy as np
import pandas as pd
import pytest
from llmstudy.report import quality
from llmstudy.report import render as report
from llmstudy.report import study as studies


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


def test_the_distance_to_the_reference_is_told_in_full(study):
    table = study.table("quality").copy()
    nf4 = (table["precision"] == "nf4") & (table["protocol"] == "w1024-s512")
    told = {"delta_nll": 0.25, "delta_nll_se": 0.01, "kl_median_nats": 0.1, "kl_p90_nats": 0.7, "kl_p99_nats": 1.9}
    told |= {"kl_p999_nats": np.nan, "kl_max_nats": 6.5, "delta_p_mean": -0.05, "delta_p_low": -0.06}
    told |= {"delta_p_high": -0.04, "delta_p_rms": 0.12, "delta_p_p1": -0.5, "delta_p_p99": 0.3}
    for column, value in told.items():
        if column not in table:
            table[column] = np.nan
        table.loc[nf4, column] = value
    changed = dataclasses.replace(study, tables={"quality": table})
    _, rows = table_with("KL p99.9", quality.distances(changed, "smollm2-135m") + "\n")
    row = next(row for row in rows if row[0] == "`nf4`")
    assert row[1:] == [
        "+0.2500 ± 0.0100", "0.1", "0.7", "1.9", "n/a", "6.5", "-5.00<br>[-6.00, -4.00]", "12.0", "-50.0", "30.0"
    ]  # fmt: skip
    assert "`bf16`" not in [row[0] for row in rows], "the reference against itself says nothing"


def test_texts_that_must_be_equal_are_explained(study):
    texts = study.table("generations")
    one = texts[texts["precision"] == "nf4"]
    both = [one.assign(precision=name) for name in ("int8-fused", "int8-w8a8")]
    equal = dataclasses.replace(study, tables={"generations": pd.concat(both)})
    assert "`int8-w8a8` writes the texts of `int8-fused`" in quality.same_texts(equal, "smollm2-135m")
    both[1] = both[1].assign(text="another")
    other = dataclasses.replace(study, tables={"generations": pd.concat(both)})
    assert quality.same_texts(other, "smollm2-135m") == quality.same_texts(study, "smollm2-135m") == ""
