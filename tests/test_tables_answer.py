"""Summary, verdict and recommendation on tables written by hand."""

import math

import numpy as np
import pandas as pd
import pytest
from llmstudy.tables.columns import percent
from llmstudy.tables.recommendation import recommend
from llmstudy.tables.verdict import judge
from table_kit import make

REFERENCE = "bf16"
SMALLEST = {"tpot": 3.0, "memory": 3.0, "ppl": 0.5}
HEADLINE = {
    "reference": "bf16",
    "batch": 1,
    "prompt_tokens": 128,
    "new_tokens": 32,
    "corpus": "wiki",
    "protocol": "w1024",
}
SURE = 1e-6


def row(precision, tpot, memory, ratio, *, p=SURE, spread=0.01, quality_spread=0.001, base=(20.0, 12.0), **changes):
    """A summary row against a reference of 20 ms and 12 GiB; spreads are half intervals on the log scale."""
    speedup = base[0] / tpot
    columns = {"study": "s", "model": "m", "weights": "real", "precision": precision, "attention": "sdpa"}
    columns |= {"runtime": "generate", "device": "d", "status": "ok", "reason": "", "tpot_degrees": 8}
    columns |= {"tpot_ms": tpot, "tpot_low_ms": tpot * math.exp(-spread), "tpot_high_ms": tpot * math.exp(spread)}
    columns |= {"speedup": speedup, "speedup_low": speedup * 0.99, "speedup_high": speedup * 1.01, "speedup_p": p}
    columns |= {"memory_gib": memory, "memory_ratio": memory / base[1], "ppl_ratio": ratio, "top1_agreement": 0.97}
    columns |= {"ppl_ratio_low": ratio * math.exp(-quality_spread), "ppl_ratio_high": ratio * math.exp(quality_spread)}
    columns |= {"e2e_ms": math.nan}
    columns["ppl_ratio_p"] = math.erfc(abs(math.log(ratio)) / (quality_spread / 1.96) / math.sqrt(2))  # normal
    return columns | changes


BASE = row("bf16", 20.0, 12.0, math.nan, top1_agreement=math.nan)


def judged(*rows):
    return judge(pd.DataFrame([BASE, *rows]), REFERENCE, SMALLEST).set_index("precision")


def test_every_verdict():
    table = judged(
        row("fast", 10.0, 7.0, 1.0001),
        row("slow", 60.0, 12.0, 1.05),
        row("int8", 30.0, 7.0, 1.0),
        row("twin", 20.1, 12.1, 1.0002, p=0.6),
        row("gone", math.nan, math.nan, math.nan, status="oom", reason="out of memory at load"),
    )
    expected = {"bf16": "reference", "fast": "better", "slow": "worse", "int8": "mixed"}
    expected |= {"twin": "not distinguishable", "gone": "not measured"}
    assert table["verdict"].to_dict() == expected
    assert table["verdict_reason"]["gone"] == "oom: out of memory at load"
    assert "2 x" in table["verdict_reason"]["fast"] and "TPOT 10 ms against 20 ms" in table["verdict_reason"]["fast"]
    assert "7 GiB against 12 GiB" in table["verdict_reason"]["int8"]
    assert "higher PPL: +5 %" in table["verdict_reason"]["slow"]


def test_a_difference_must_be_real_and_matter():
    table = judged(
        row("unsure", 10.0, 12.0, 1.0, p=0.2),
        row("tiny", 19.9, 12.0, 1.0),
        row("wide", 20.0, 12.0, 1.05, p=1.0, quality_spread=0.2),
        row("trifle", 20.0, 12.0, 1.002, p=1.0),
    )
    assert (table["verdict"].drop("bf16") == "not distinguishable").all()
    assert "speed not distinguishable" in table["verdict_reason"]["unsure"]
    assert "speed differs by too little to matter" in table["verdict_reason"]["tiny"]
    assert "PPL differs by too little to matter" in table["verdict_reason"]["trifle"]


def test_many_comparisons_are_adjusted_within_a_model():
    alone = judged(row("a", 15.0, 12.0, 1.0, p=0.02))
    crowd = judged(row("a", 15.0, 12.0, 1.0, p=0.02), *(row(f"b{i}", 20.0, 12.0, 1.0, p=0.9) for i in range(3)))
    assert alone["verdict"]["a"] == "better" and crowd["verdict"]["a"] == "not distinguishable"
    assert crowd["speedup_p_holm"]["a"] == pytest.approx(0.08)
    failed = [row(f"b{i}", 20.0, 12.0, 1.0, p=0.9, status="oom") for i in range(3)]
    assert judged(row("a", 15.0, 12.0, 1.0, p=0.02), *failed)["verdict"]["a"] == "better"


def test_a_speed_without_interval_that_would_matter_makes_the_verdict_undecided():
    single = {"speedup_low": math.nan, "speedup_high": math.nan, "tpot_degrees": math.nan, "p": math.nan}
    table = judged(
        row("fast", 5.0, 12.0, 1.0, **single),
        row("slow and small", 80.0, 6.0, 1.0, **single),
        row("small", 20.1, 6.0, 1.0, **single),
        row("small and wrong", 80.0, 6.0, 1.1, **single),
        row("wrong", 80.0, 12.0, 1.1, **single),
    )
    assert table["verdict"].drop("bf16").tolist() == ["undecided", "undecided", "better", "mixed", "undecided"]
    assert table["verdict_reason"]["fast"].startswith("speed undecided: 4 x (no interval)")
    assert table["verdict_reason"]["small"].startswith("speed not distinguishable: 0.995 x")


def test_the_reference_under_graph_is_judged_against_the_reference_under_generate():
    table = judge(pd.DataFrame([BASE, row("bf16", 5.0, 12.0, math.nan, runtime="graph")]), REFERENCE, SMALLEST)
    assert table["verdict"].tolist() == ["reference", "better"]
    assert "quality not compared" in table["verdict_reason"][1]


def test_without_a_measured_reference_nothing_is_compared():
    rows = [BASE | {"status": "timeout"}, row("a", 5.0, 6.0, 1.0), row("b", 5.0, 6.0, 1.0, attention="eager")]
    table = judge(pd.DataFrame(rows), REFERENCE, SMALLEST)
    assert table["verdict"].tolist() == ["not measured", "not comparable", "not comparable"]


def test_random_weights_and_broken_models():
    table = judged(row("random", 5.0, 12.0, 1.5, weights="synthetic"), row("broken", 20.0, 12.0, math.inf, p=1.0))
    assert table["verdict"]["random"] == "better" and "random weights" in table["verdict_reason"]["random"]
    assert table["verdict"]["broken"] == "worse"


def test_pareto_set_by_exhaustive_definition_with_ties():
    rows = [
        row("fast", 5.0, 12.0, 1.02),
        row("small", 15.0, 4.0, 1.01),
        row("small-again", 15.0, 4.0, 1.01),
        row("beaten", 15.0, 5.0, 1.01),
        row("unknown", 1.0, 1.0, math.nan),
        row("failed", 1.0, 1.0, 1.0, status="error"),
    ]
    pareto = judged(*rows)["pareto"]
    assert pareto[pareto].index.tolist() == ["bf16", "fast", "small", "small-again"]


def recommended(*rows, limits=None):
    table = judge(pd.DataFrame([BASE, *rows]), REFERENCE, SMALLEST)
    return recommend(table, REFERENCE, limits or {}, SMALLEST)


def test_the_fastest_within_the_limits_is_taken():
    rows = [row("int8", 12.0, 7.0, 1.001), row("nf4", 8.0, 4.0, 1.2)]
    answer = recommended(*rows, limits={"ppl_loss_percent": 1.0, "memory_gib": 8.0, "tpot_ms": None})
    assert answer["precision"] == "int8" and answer["meets_limits"]
    assert answer["sentence"].startswith("Take int8 (sdpa, generate), the only configuration within the limits: ")
    assert "memory 7 GiB <= 8 GiB" in answer["sentence"] and "PPL loss 0.1 % <= 1 %" in answer["sentence"]
    assert answer["sentence"].endswith("; 1.67 x the decode speed of bf16 (sdpa, generate) at 0.583 x its memory.")


def test_the_gain_is_against_the_reference_at_its_fastest_too():
    graph = {"runtime": "graph"}
    dense = row("bf16", 6.0, 13.0, math.nan, top1_agreement=math.nan, e2e_ms=80.0, **graph)
    answer = recommended(dense, row("int8", 4.0, 6.5, 1.0, e2e_ms=90.0, **graph))
    assert answer["sentence"].endswith(
        "; 1.5 x the decode speed of bf16 (sdpa, graph) at 0.5 x its memory (end to end 90 ms against 80 ms), 5 x "
        "the decode speed of bf16 (sdpa, generate) at 0.542 x its memory."
    )
    answer = recommended(dense, row("int8", 9.0, 6.5, 1.0, **graph))
    assert answer["sentence"].startswith("Take bf16 (sdpa, graph)")
    assert answer["sentence"].endswith("; 3.33 x the decode speed of bf16 (sdpa, generate) at 1.08 x its memory.")
    assert "x the decode speed" not in recommended(row("int8", 90.0, 6.5, 1.0))["sentence"]


def test_a_loss_that_nobody_allowed_is_not_taken():
    rows = [row("int8", 12.0, 7.0, 1.001), row("nf4", 8.0, 4.0, 1.2), row("unchecked", 7.0, 4.0, math.nan)]
    rows[2]["top1_agreement"] = math.nan
    answer = recommended(*rows)
    assert answer["precision"] == "int8"
    assert "the fastest by TPOT of 2 without a shown loss of quality" in answer["sentence"]
    assert answer["sentence"].endswith(
        " Left out: 1 with a loss of quality, which no limit in the config allows; 1 whose quality is not known."
    )
    within = recommended(*rows, limits={"memory_gib": 8.0})
    assert "the only configuration within the limits and without a shown loss of quality" in within["sentence"]
    assert recommended(*rows, limits={"ppl_loss_percent": 30.0})["precision"] == "nf4"
    forced = recommended(rows[1], limits={"memory_gib": 5.0})
    assert forced["precision"] == "nf4" and "Each choice loses quality" in forced["sentence"]
    assert recommended(*rows, limits={"top1_agreement": 0.9})["precision"] == "nf4"


def test_where_each_choice_loses_quality_the_least_loss_is_taken():
    rows = [row("int8", 12.0, 7.0, 1.008), row("nf4", 11.5, 5.0, 1.01), row("fp4", 11.0, 4.0, 1.57)]
    answer = recommended(*rows, limits={"memory_gib": 8.0})
    assert answer["precision"] == "nf4" and "within the limits and with the least loss of quality" in answer["sentence"]
    answer = recommended(*rows, row("new", 9.0, 4.0, math.nan), limits={"memory_gib": 8.0})
    assert answer["precision"] == "nf4" and answer["sentence"].endswith(
        " Each choice whose quality is known loses quality. Left out: 1 whose quality is not known."
    )
    unknown = [line | {"ppl_ratio": math.nan, "ppl_ratio_p": math.nan} for line in rows]
    answer = recommended(*unknown, limits={"memory_gib": 8.0})
    assert answer["precision"] == "fp4" and answer["sentence"].endswith(" Their quality is not known.")


NO_INTERVAL = {"ppl_ratio_low": math.nan, "ppl_ratio_high": math.nan, "ppl_ratio_p": math.nan}


def test_a_loss_without_an_interval_is_neither_shown_nor_overlooked():
    table = judged(row("fp4", 10.0, 4.0, 1.8, **NO_INTERVAL), row("int8", 10.0, 7.0, 1.001, **NO_INTERVAL))
    assert table["verdict"].drop("bf16").tolist() == ["undecided", "better"]
    assert "PPL undecided: +80 % (no interval)" in table["verdict_reason"]["fp4"]
    assert recommended(row("fp4", 10.0, 4.0, 1.8, **NO_INTERVAL))["precision"] == "bf16"


def test_a_quality_that_could_not_be_measured_makes_the_verdict_undecided():
    broken = row("int8", 10.0, 7.0, math.nan, reason="quality: 7 of 100 tokens are not finite")
    table = judged(broken)
    assert table["verdict"]["int8"] == "undecided" and "not finite" in table["verdict_reason"]["int8"]


def test_the_interval_of_a_loss_is_in_the_sentence():
    wide = row("fp4", 10.0, 4.0, 1.10, quality_spread=0.2)
    assert "PPL loss 10 % (95 % -9.94 to 34.4)" in recommended(wide)["sentence"]
    limited = recommended(wide, limits={"ppl_loss_percent": 20.0})
    assert "though the interval of PPL loss reaches 34.4 %" in limited["sentence"]


def test_quality_counts_once_per_precision_in_its_family():
    rows = [row("int8", 10.0, 7.0, 1.01, quality_spread=0.0085), row("nf4", 10.0, 4.0, 1.2)]
    alone = judge(pd.DataFrame([BASE, *rows]), REFERENCE, SMALLEST).set_index("precision")
    kernels = [line | {"attention": kernel} for kernel in ("eager", "sdpa", "flash") for line in (BASE, *rows)]
    crowd = judge(pd.DataFrame(kernels), REFERENCE, SMALLEST)
    assert 0.01 < alone["ppl_ratio_p_holm"]["int8"] < 0.05
    assert crowd.loc[crowd["precision"] == "int8", "ppl_ratio_p_holm"].tolist() == pytest.approx(
        3 * [alone["ppl_ratio_p_holm"]["int8"]]
    )
    assert crowd.loc[crowd["precision"] == "bf16", "ppl_ratio_p_holm"].isna().all()


def test_large_changes_have_no_exponents():
    changes = [percent(ratio) for ratio in (1.0186, 1.996, 4.0, 0.5, 40.0)]
    assert changes == ["+1.9 %", "+100 %", "+300 %", "-50 %", "x 40"]


def test_a_tie_in_speed_goes_to_quality_then_memory():
    wide = {"spread": 0.2}
    rows = [row("a", 10.0, 7.0, 1.03, **wide), row("b", 10.8, 9.0, 1.011, **wide), row("c", 10.7, 6.0, 1.01, **wide)]
    limits = {"ppl_loss_percent": 5.0}
    answer = recommended(*rows, limits=limits)
    assert answer["precision"] == "c"
    assert "not distinguishable in speed from a (sdpa, generate) (10 ms) and lower in PPL" in answer["sentence"]
    trap = [row("A", 10.0, 7.0, 1.006), row("B", 10.2, 9.0, 1.0), row("C", 10.1, 9.0, 1.0049)]
    answer = recommended(*trap, limits=limits)
    assert answer["precision"] == "C"
    assert "at most 3 % slower than A (sdpa, generate) (10 ms) and lower in PPL" in answer["sentence"]
    narrow = [line | {"tpot_low_ms": line["tpot_ms"] * 0.999, "tpot_high_ms": line["tpot_ms"] * 1.001} for line in rows]
    assert recommended(*narrow, limits=limits)["precision"] == "a"


def test_one_repeat_still_gets_an_answer_without_an_interval():
    single = {"tpot_degrees": math.nan, "tpot_low_ms": math.nan, "tpot_high_ms": math.nan, "p": math.nan}
    answer = recommended(row("a", 10.0, 7.0, 1.0, **single), row("b", 12.0, 7.0, 1.0, **single))
    assert answer["precision"] == "a" and "TPOT 10 ms (no interval)" in answer["sentence"]


def test_an_interval_that_crosses_the_limit_is_mentioned():
    answer = recommended(row("a", 9.9, 7.0, 1.0, spread=0.1), limits={"tpot_ms": 10.0})
    assert answer["meets_limits"] and "reaches 10.9 ms" in answer["sentence"]


def test_when_nothing_meets_the_limits_the_sentence_says_which_and_what_is_nearest():
    rows = [row("int8", 12.0, 7.0, 1.001), row("nf4", 8.0, 4.0, 1.2)]
    answer = recommended(*rows, limits={"memory_gib": 3.5, "ppl_loss_percent": 25.0})
    assert not answer["meets_limits"] and answer["precision"] == "nf4"
    assert "memory of 3.5 GiB is out of reach of all" in answer["sentence"]
    assert "memory 4 GiB > 3.5 GiB" in answer["sentence"] and "PPL loss 20 % <= 25 %" in answer["sentence"]
    torn = recommended(*rows, limits={"memory_gib": 5.0, "ppl_loss_percent": 1.0})
    assert "each limit is met by some configuration" in torn["sentence"] and torn["precision"] == "int8"


def test_a_limit_on_what_was_not_measured_is_not_met():
    table = judge(pd.DataFrame([BASE]).assign(memory_gib=math.nan), REFERENCE, SMALLEST)
    answer = recommend(table, REFERENCE, {"memory_gib": 100.0}, SMALLEST)
    assert not answer["meets_limits"] and "memory not measured" in answer["sentence"]


def test_the_reference_may_be_the_answer_and_everything_may_fail():
    answer = recommended(row("slow", 60.0, 12.0, 1.05))
    assert answer["precision"] == "bf16" and "the decode speed of" not in answer["sentence"]
    table = judge(pd.DataFrame([BASE | {"status": "oom"}, row("a", 1, 1, 1, status="timeout")]), REFERENCE, SMALLEST)
    answer = recommend(table, REFERENCE, {}, SMALLEST)
    assert (
        answer["sentence"] == "No configuration was measured (bf16 (sdpa, generate): oom, a (sdpa, generate): timeout)."
    )
    assert answer["precision"] == "" and not answer["meets_limits"]
    assert (answer["device"], answer["status"]) == ("d", "oom")


def test_random_weights_are_chosen_by_speed_and_memory():
    rows = [BASE | {"weights": "synthetic"}, row("fast", 10.0, 7.0, 1.5, weights="synthetic")]
    table = judge(pd.DataFrame(rows), REFERENCE, SMALLEST)
    answer = recommend(table, REFERENCE, {"ppl_loss_percent": 1.0}, SMALLEST)
    assert answer["precision"] == "fast" and "PPL" not in answer["sentence"] and "Random weights" in answer["sentence"]


def study_tables():
    """Return three tables: TPOT of int8 is half of bf16's, graph a quarter; the last configuration failed."""
    noise = np.exp([0.0, 0.02, -0.02])
    processes, memory, quality = [], [], []
    for precision, runtime, tpot, peak, status in (
        ("bf16", "generate", 20.0, 12.0, "ok"),
        ("int8", "generate", 10.0, 7.0, "ok"),
        ("int8", "graph", 5.0, 7.5, "ok"),
        ("fp32", "generate", math.nan, math.nan, "oom"),
    ):
        shared = {"study": "s", "model": "m", "weights": "real", "precision": precision, "attention": "sdpa"}
        shared |= {"runtime": runtime, "device": "d", "status": status, "reason": "" if status == "ok" else "too large"}
        other = dict.fromkeys(("itl_p50_ms", "itl_p90_ms", "cold_ms", "load_s", "compile_s", "joules_per_token"))
        other |= {"bandwidth_gb_s": 20.0, "step_bytes": 1e9, "attention_kernels": "flash"}
        for batch in (1, 8):
            workload = {"batch": batch, "prompt_tokens": 128, "new_tokens": 32}
            for repeat, factor in enumerate(noise):
                times = {"ttft_ms": 50.0, "tpot_ms": batch * tpot * factor, "e2e_ms": 700.0, "tokens_per_s": 45.0}
                times |= {"repeat": repeat, "mbu": 0.5, "flags": "clocks; load"}
                processes.append(shared | other | workload | times)
            memory.append(shared | workload | {"weights_gib": peak - 1, "peak_load_gib": 0.0, "peak_decode_gib": peak})
        if runtime == "generate":
            at_protocol = {"corpus": "wiki", "protocol": "w1024", "ppl": 20.0, "ppl_ratio": 1.01, "kl_nats": 0.02}
            at_protocol["top1_agreement"] = 0.95
            quality.append(shared | at_protocol | {"ppl_ratio_low": 1.0, "ppl_ratio_high": 1.02, "ppl_ratio_p": 0.05})
    return {"processes": pd.DataFrame(processes), "memory": pd.DataFrame(memory), "quality": pd.DataFrame(quality)}


def summarized(folder, sources, **headline):
    study = {"headline": {"m": HEADLINE | headline}}
    make(folder, "speed", sources={"processes": sources.pop("processes")}, **study)
    return make(folder, "summary", sources=sources, **study).set_index(["precision", "runtime"])


def test_summary_joins_the_tables_at_the_headline(tmp_path):
    table = summarized(tmp_path, study_tables())
    assert len(table) == 4
    fast = table.loc[("int8", "graph")]
    assert (fast["tpot_ms"], fast["speedup"]) == pytest.approx((5.0, 4.0))
    assert fast["tpot_low_ms"] < 5.0 < fast["tpot_high_ms"] and fast["speedup_low"] < 4.0 < fast["speedup_high"]
    assert fast["memory_ratio"] == pytest.approx(7.5 / 12) and fast["weights_gib"] == 6.5
    assert fast["ppl_ratio"] == 1.01 and fast["quality_from"] == "sdpa, generate"
    assert pd.isna(table.loc[("int8", "generate"), "quality_from"])
    assert table.loc[("int8", "generate"), "flags"] == "clocks; load"
    base = table.loc[("bf16", "generate")]
    assert base["speedup"] == 1 and base[["speedup_low", "speedup_high", "speedup_p"]].isna().all()
    assert base["ppl_ratio"] == 1.0
    lost = table.loc[("fp32", "generate")]
    assert (lost["status"], lost["reason"], lost["repeats"]) == ("oom", "too large", 0)
    assert lost[["tpot_ms", "speedup", "memory_gib", "ppl"]].isna().all()
    assert table["verdict"].tolist() == ["reference", "better", "better", "not measured"]


def test_summary_takes_memory_from_the_nearest_number_of_new_tokens(tmp_path):
    sources = study_tables()
    near, far = (sources["memory"].assign(new_tokens=n, peak_decode_gib=peak) for n, peak in ((24, 5.0), (128, 9.0)))
    table = summarized(tmp_path, sources | {"memory": pd.concat([far, near])})
    assert table.loc[("int8", "generate"), "memory_gib"] == 5.0
    elsewhere = study_tables()
    elsewhere["memory"] = elsewhere["memory"].assign(prompt_tokens=64)
    assert summarized(tmp_path, elsewhere)["memory_gib"].isna().all()


def test_summary_of_partly_failed_repeats_and_of_an_unmeasured_workload(tmp_path):
    sources = study_tables()
    processes, memory = sources["processes"], sources["memory"]
    processes.loc[processes["repeat"] == 0, ["status", "reason"]] = ["timeout", "600 s"]
    memory.loc[memory["precision"] == "int8", ["status", "reason"]] = ["error", "driver"]
    row = summarized(tmp_path, sources).loc[("int8", "generate")]
    assert (row["status"], row["repeats"]) == ("ok", 2) and math.isnan(row["memory_gib"])
    assert row["reason"] == "1 of 3 repeats failed (timeout: 600 s); memory: driver"
    other = summarized(tmp_path, study_tables(), batch=4)
    assert (other["reason"] == "this workload was not measured").all() and (other["verdict"] == "not measured").all()


def test_from_tables_to_a_sentence(tmp_path):
    limits = {"memory_gib": 8, "ppl_loss_percent": 2}
    summarized(tmp_path, study_tables())
    (row,) = make(tmp_path, "recommendation", headline={"m": HEADLINE}, limits=limits).to_dict("records")
    assert (row["precision"], row["runtime"], row["meets_limits"]) == ("int8", "graph", True)
    assert row["sentence"].startswith("Take int8 (sdpa, graph), the fastest by TPOT of 2 within the limits: ")
