"""What the report tells of where configurations overtake each other."""

import dataclasses

import hand_made
import pytest
from llmstudy.report import explanations
from llmstudy.report import render as report
from llmstudy.report import study as studies


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return studies.load(hand_made.write_study(tmp_path_factory.mktemp("results") / "small", models=("smollm2-135m",)))


def test_all_kinds_of_cross_over_stand_in_one_table_with_what_both_sides_share(study):
    lines = explanations.crossover(study).splitlines()[2:]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert {row[3] for row in rows} == {"tokens/s", "TTFT", "prefill, kernel alone", "decode step, kernel alone"}
    assert len(rows) == len(study.table("crossover"))
    precision = next(row for row in rows if row[3] == "tokens/s" and row[1] == "`nf4`")
    assert precision[2] == "`bf16`" and precision[4] == "eager, eager, prompt 512, 64 new tokens"
    assert precision[5].startswith("batch size: ")
    kernel = next(row for row in rows if row[3] == "TTFT")
    assert kernel[1:3] == ["`sdpa`", "`eager`"] and kernel[4] == "bf16, eager, batch 1, 64 new tokens"
    prefill, decode = [row for row in rows if row[3].endswith("alone")]
    # hand-made: n² against 1 024 n, over repeats that differ by a few per cent
    assert prefill[4] == "bf16, batch 1" and prefill[5].startswith("context tokens: overtakes at 1024 (95 % interval ")
    assert decode[5] == "context tokens: behind throughout: none up to 8192"


def test_the_report_says_where_the_intervals_come_from(study):
    words = " ".join(report.render([study]).split())
    assert "those of a kernel alone are over the repeats of one process" in words


def test_neighbours_that_change_nothing_are_left_out_of_the_table(study):
    frame = study.table("invariance")
    changed = frame["max_abs_delta_logit"] > 0
    lines = explanations.invariance(study).splitlines()[2:]
    assert len(lines) == (changed | (frame["status"] != "ok")).sum() > 0
    still = dataclasses.replace(study, tables={"invariance": frame.assign(status="ok", max_abs_delta_logit=0.0)})
    assert explanations.invariance(still) is None
