"""The sentences above the tables of optional measurements."""

from pathlib import Path

import pandas as pd
from llmstudy.report import findings
from llmstudy.report import study as studies


def found(**tables):
    return studies.Study("s", Path("results/s"), {name: pd.DataFrame(rows) for name, rows in tables.items()}, {})


def test_findings_say_which_precisions_depend_on_the_batch():
    rows = [
        {"model": "m", "status": "ok", "precision": precision, "neighbours": neighbours, "top1_changes": changes,
         "positions": 128}
        for precision, neighbours, changes in [
            ("bf16", "copies", 0), ("bf16", "others 1", 0), ("llm-int8", "copies", 3), ("llm-int8", "others 1", 5),
            ("llm-int8", "others 2", 7), ("nf4", "copies", 0), ("nf4", "others 1", 1), ("fp16", "others 1", 0)]
    ]  # fmt: skip
    rows.append({"model": "m", "status": "error", "precision": "fp4"})
    told = findings.invariance(found(invariance=rows))
    assert told == (
        "Beside copies of itself, first choices of `m` change: `llm-int8` up to 3 of 128; in `bf16`, `nf4` none. "
        "Beside other texts, first choices of `m` change: `llm-int8` up to 7 of 128, `nf4` up to 1 of 128; in `bf16`, "
        "`fp16` none."
    )
    assert "no first choice of `m` changes" in findings.invariance(found(invariance=rows[:1]))
    assert findings.invariance(found()) == ""


def test_findings_weigh_the_decomposition_against_none():
    rows = [
        {"model": "m", "status": "ok", "threshold": threshold, "ppl_ratio": ratio, "ppl_ratio_low": ratio - 0.002,
         "ppl_ratio_high": ratio + 0.002, "tpot_ms": tpot, "tokens": 512}
        for threshold, ratio, tpot in [(0, 1.026, 50.0), (2, 1.005, 110.0), (6, 1.016, 75.0)]
    ]  # fmt: skip
    told = findings.sweep(found(sweep=rows))
    assert "threshold 2 loses 0.5 % [0.3, 0.7] of perplexity where no decomposition loses 2.6 % [2.4, 2.8]" in told
    assert "512 tokens" in told and "2.2 times" in told
    assert findings.sweep(found(sweep=rows[1:])) == findings.sweep(found(sweep=rows[:1])) == ""


def test_findings_set_the_most_launches_beside_the_fewest():
    rows = [
        {"model": "m", "status": "ok", "precision": precision, "attention": "sdpa", "runtime": runtime,
         "launches_per_token": launches, "syncs_per_token": syncs, "device_busy_share": busy}
        for precision, runtime, launches, syncs, busy in [
            ("bf16", "graph", 1, 0, 0.99), ("llm-int8", "eager", 3271, 259, 0.11), ("nf4", "eager", 900, 3, 0.2)]
    ]  # fmt: skip
    told = findings.profile(found(profile=rows))
    assert "`llm-int8` (sdpa, eager) 3,271 launches and 259 waits of the host" in told
    assert "`bf16` (sdpa, graph) 1 launch and 0 waits" in told and "nf4" not in told
    assert findings.profile(found(profile=rows[:1])) == ""
    assert findings.profile(found(profile=[row | {"launches_per_token": None} for row in rows])) == ""  # a CPU
