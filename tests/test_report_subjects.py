"""Tables and sentences of the report by subject: the right row, the right numbers, nothing where there is none."""

import dataclasses

import hand_made
import numpy as np
import pages
import pandas as pd
import pytest
from llmstudy.report import answer, diagnostics, markdown, memory, quality, speed
from llmstudy.report.study import Study, load, of_family, ordered
from llmstudy.tables.columns import Column, number

SMALL = "smollm2-135m"


def changed(study, **tables) -> Study:
    """The study with some tables replaced."""
    return dataclasses.replace(study, tables=study.tables | tables)


def rows_of(text, *names):
    """Rows of a Markdown table as lists of cells, by the cells of its first columns without marks of code."""
    _, *rows = pages.tables(text)[0]
    return {tuple(cell.strip("`") for cell in row[: len(names) or 1]): row[len(names) or 1 :] for row in rows}


# Markdown


def test_a_table_takes_titles_alignment_and_format_from_the_declarations():
    rows = pd.DataFrame(
        [
            {"model": "m", "status": "ok", "reason": "", "ppl_ratio": 1.01856, "ppl_ratio_low": 1.0181,
             "ppl_ratio_high": 1.019, "mbu": 0.0456, "tokens": 1290591.0, "mine": "**x**", "load_s": np.nan},
            {"model": "n", "status": "oom", "reason": "a | *b*", "ppl_ratio": np.nan, "ppl_ratio_low": np.nan,
             "ppl_ratio_high": np.nan, "mbu": np.nan, "tokens": 12.0, "mine": None, "load_s": np.nan},
        ]
    )  # fmt: skip
    text = markdown.table(rows, ["model"], ["load_s", "ppl_ratio", "mbu", "tokens", Column("mine", "own", "markdown")])
    assert text.splitlines() == [
        "| model | PPL ratio | MBU | tokens | own |",
        "| --- | ---: | ---: | ---: | --- |",
        "| `m` | 1.0186<br>[1.0181, 1.0190] | 4.56 % | 1,290,591 | **x** |",
        r"| `n` | `oom`: a \| \*b\* | `oom` | 12 | `oom` |",
    ]
    assert markdown.table(rows.iloc[:0], ["model"], ["mbu"]) is None
    assert markdown.table(rows.iloc[1:], ["model"], ["load_s", "mbu"]).endswith(r"| `n` | `oom`: a \| \*b\* |")


def test_an_empty_cell_is_refused():
    with pytest.raises(ValueError, match="missing cell"):
        markdown.grid(["a", "b"], [["x", " "]])


@pytest.mark.parametrize(
    ("show", "value", "text"),
    [("number", 1234.5, "1,234"), ("percent", 0.9996, "100 %"), ("percent", 0.00048, "0.048 %"), ("ratio", 2.5, "2.5"),
     ("signed", -0.5, "-0.5"), ("points", 0.025, "+2.5"), ("p", 0.00108, "0.0011"), ("perplexity", 9.99951, "10.000"),
     ("count", 4064.0, "4,064"), ("text", "a_b", r"a\_b"), ("code", "a_b", "`a_b`"), ("number", np.nan, "")],
)  # fmt: skip
def test_a_cell_is_shown_as_its_column_says(show, value, text):
    assert markdown.cell({"x": value}, Column("x", "x", show)) == text


@pytest.mark.parametrize(
    ("name", "low"),
    [("tpot_ms", "tpot_low_ms"), ("tpot_ms", "tpot_ms_low"), ("ppl", "ppl_low"), ("top1_agreement", "top1_low"),
     ("delta_p_mean", "delta_p_low"), ("delta_p_p99", None), ("ppl_ratio", None), ("accuracy_change", None)],
)  # fmt: skip
def test_the_ends_of_an_interval_are_found_by_name(name, low):
    others = ["delta_p_low", "ppl_low", "accuracy_low", "top1_low"]
    found = markdown.ends_of(name, [*others, low] if low else others)
    assert found == (low and (low, low.replace("low", "high")))


# Answer


def test_the_library_s_int8_is_compared_with_the_reference_launched_alike(h200):
    text = answer.library_int8(h200, "llama-2-7b")
    own = h200.table("summary", "llama-2-7b")
    row = own[(own["precision"] == "llm-int8") & (own["runtime"] == "generate")].sort_values("tpot_ms").iloc[0]
    assert f"TPOT {number(row['tpot_ms'])} ms, {number(row['speedup'])} x the decode speed of bf16" in text
    assert "PPL" not in text and text.endswith(f"Verdict: {row['verdict']}.")
    assert "PPL loss" in answer.library_int8(h200, SMALL)
    without = own[~own["precision"].str.startswith("llm-int8")]
    assert answer.library_int8(changed(h200, summary=without), "llama-2-7b") is None


def test_the_answer_says_up_to_which_batch_it_holds(h200):
    taken = h200.table("recommendation").set_index("model", drop=False).loc["llama-2-7b"]
    crossings = h200.table("crossover", "llama-2-7b")
    names = ["precision", "attention", "runtime"]
    same = (crossings["along"] == "batch") & (crossings[names] == taken[names]).all(axis=1)
    text = answer.over_batches(h200, taken)
    assert same.any() and text.startswith(" Batch size against bf16 (tokens/s of whole calls, prompt ")
    assert text.endswith(f", both under runtime `{taken['runtime']}`): {crossings[same].iloc[0]['text']}.")
    assert any(line.endswith(text) for line in answer.sentences(h200))
    assert answer.over_batches(h200, taken.replace(taken["precision"], "bf16")) == ""


def test_a_workload_of_its_own_is_named_beside_the_usual_one(h200):
    usual = h200.workload("llama-2-7b")
    assert answer.workloads(h200) == usual
    h200.provenance["headline"]["llama-2-70b"]["new_tokens"] = 8
    other = h200.workload("llama-2-70b")
    assert answer.workloads(h200) == f"{usual} (`llama-2-70b` (synthetic weights): {other})"


def test_a_precision_stands_for_its_fastest_configuration(h200):
    _, *rows = pages.tables(answer.table(h200))[0]
    header = pages.tables(answer.table(h200))[0][0]
    own = rows[[row[0] for row in rows].index(next(row[0] for row in rows if "llama-2-7b" in row[0])) :]
    measured = next(row for row in own if row[0] == "measured as")
    assert measured[header.index("`bf16`<br>original")] == "sdpa, graph"
    assert measured[header.index("`nf4`")] == "sdpa, generate"
    assert (
        own[0][header.index("`int8-fused-outlier`<br>8-bit")] == "–"
        if "`int8-fused-outlier`<br>8-bit" in header
        else True
    )


# Speed


def test_what_failed_at_another_workload_has_a_row(h200):
    frame = h200.table("speed")
    lost = (frame["model"] == "llama-2-7b") & (frame["precision"] == "bf16") & (frame["runtime"] == "graph")
    lost &= frame["batch"] > 1
    numbers = [column for column in frame if column.endswith(("_ms", "_per_s")) or column == "mbu"]
    failed = frame.assign(status=frame["status"].mask(lost, "oom"), reason=frame["reason"].mask(lost, "full"))
    failed[numbers] = failed[numbers].mask(lost)
    rows = rows_of(speed.workloads(changed(h200, speed=failed), "llama-2-7b"), "workload", "precision", "a", "runtime")
    assert rows[("32 × (512 + 64)", "bf16", "sdpa", "graph")] == ["`oom`: full", "`oom`", "`oom`", "`oom`"]


def test_energy_has_a_column_where_a_counter_was_read(h200):
    frame = h200.table("speed")
    read = changed(h200, speed=frame.assign(joules_per_token=2.5))
    assert {row["J/token"] for row in pages.table_with("J/token", speed.table(read, "llama-2-7b"))} >= {"2.5"}
    assert "J/token" not in speed.table(h200, "llama-2-7b")


def test_the_same_configuration_twice_says_how_far_apart_processes_lie(h200):
    frame = h200.table("processes")
    ok = frame["status"] == "ok"
    frame.loc[ok, "tpot_ms"] = frame["repeat"].map({0: 100.0, 1: 101.0, 2: 104.0})
    text = speed.same_against_same(h200)
    assert f"over {ok.sum()} pairs of processes" in text  # three of every three processes
    assert "by 3.0% in the median" in text and "by 4.0% at most" in text  # of 1, 2.97 and 4 %
    assert speed.same_against_same(changed(h200, processes=frame[frame["repeat"] == 0])) is None


def test_all_kinds_of_cross_over_are_in_one_table_with_what_both_sides_share(finished):
    study = load(finished / "results/default")
    _, *rows = pages.tables(speed.crossover(study))[0]
    assert {row[3] for row in rows} == {"tokens/s", "TTFT", "prefill, kernel alone", "decode step, kernel alone"}
    assert len(rows) == len(study.table("crossover"))
    precision = next(row for row in rows if row[3] == "tokens/s" and row[1] == "`nf4`")
    assert precision[2] == "`bf16`" and precision[4] == "eager, generate, prompt 512, 64 new tokens"
    assert precision[5].startswith("batch size: ")
    kernel = next(row for row in rows if row[3] == "TTFT")
    assert kernel[1:3] == ["`sdpa`", "`eager`"] and kernel[4] == "bf16, generate, batch 1, 64 new tokens"
    prefill, decode = [row for row in rows if row[3].endswith("alone")]
    # hand-made: n² against 1 024 n, over repeats that differ by a few per cent
    assert prefill[4] == "bf16, batch 1" and prefill[5].startswith("context tokens: overtakes at 1024 (95 % interval ")
    assert decode[5] == "context tokens: behind throughout: none up to 8192"


# Memory


def test_predicted_capacity_is_beside_what_verified_it(h200):
    assert memory.capacity_verified(h200) is None and "verified" not in memory.capacity(h200)
    table = h200.table("capacity").astype({"prediction": object, "prediction_reason": object}).reset_index(drop=True)
    table.loc[0, ["usable_gib", "verified_fits", "verified_oom", "prediction"]] = [138.5, 20, 24, "held"]
    table.loc[2, ["usable_gib", "verified_fits", "verified_oom", "prediction"]] = [138.5, 17, 18, "missed"]
    table.loc[4, ["prediction", "prediction_reason"]] = ["unsupported", "no *such* kernel"]
    study, missed = changed(h200, capacity=table), table.loc[2]
    text = memory.capacity_verified(study)
    assert text.startswith("Predictions run on the device: 1 of 2 held")
    assert (
        f"Missed: `{missed['model']}` `{missed['precision']}` ({missed['attention']}, {missed['runtime']}) at 2048 "
        f"tokens was predicted to fit {missed['largest_batch']:.0f}; 17 ran, 18 did not."
    ) in text
    assert text.endswith(r"1 not verified: `unsupported`: no \*such\* kernel.")
    rows = pages.table_with("verified: ran", memory.capacity(study))
    assert [row["prediction"] for row in rows].count("held") == 1
    assert {"table": "capacity", "status": "`unsupported`"}.items() <= pages.table_with(
        "status", speed.failures(study)
    )[-1].items()


# Quality


def test_every_protocol_is_a_column(h200):
    header, *rows = pages.tables(quality.protocols(h200, SMALL))[0]
    assert header[1:] == ["`w1024-s512`", "`w512-s512`", "`w1024-s1024`", "`w2048-s2048`"]  # in the order of the config
    lines = {name: cells for name, *cells in rows}
    assert lines["`nf4`"][0] == "26.90<br>× 1.2816 [1.2743, 1.2889]"
    assert [cell.split("<br>")[0] for cell in lines["`bf16`"]] == ["20.99", "23.51", "22.25", "21.20"]
    every = pages.table_with("word PPL", quality.normalizations(h200, SMALL))
    assert [row["protocol"] for row in every[:4]] == header[1:]


def test_a_protocol_that_failed_says_so_in_its_column(h200):
    table = h200.table("quality").copy()
    failed = (table["precision"] == "nf4") & (table["protocol"] == "w2048-s2048")
    table.loc[failed, ["status", "reason", "ppl", "ppl_ratio"]] = ["oom", "CUDA out of memory", np.nan, np.nan]
    rows = rows_of(quality.protocols(changed(h200, quality=table), SMALL))
    assert rows[("nf4",)][-1] == "`oom`: CUDA out of memory"
    one = h200.table("quality")
    one = one[one["protocol"] == "w1024-s512"]
    assert quality.protocols(changed(h200, quality=one), SMALL) is None


def test_the_distance_to_the_reference_is_there_in_full(h200):
    table = h200.table("quality").copy()
    nf4 = (table["precision"] == "nf4") & (table["protocol"] == "w1024-s512")
    values = {"delta_nll": 0.25, "delta_nll_se": 0.01, "kl_median_nats": 0.1, "kl_p90_nats": 0.7, "kl_p99_nats": 1.9}
    values |= {"kl_p999_nats": np.nan, "kl_max_nats": 6.5, "delta_p_mean": -0.05, "delta_p_low": -0.06}
    values |= {"delta_p_high": -0.04, "delta_p_rms": 0.12, "delta_p_p1": -0.5, "delta_p_p99": 0.3}
    table.loc[nf4, list(values)] = list(values.values())
    rows = rows_of(quality.distances(changed(h200, quality=table), SMALL))
    assert rows[("nf4",)] == [
        "+0.25",
        "0.01",
        "0.1",
        "0.7",
        "1.9",
        "n/a",
        "6.5",
        "-5<br>[-6, -4]",
        "12 %",
        "-50",
        "+30",
    ]
    assert ("bf16",) not in rows, "the reference against itself says nothing"


def test_a_precision_measured_on_less_text_is_in_the_section_of_thresholds_alone(h200):
    names = {row[0] for row in rows_of(quality.table(h200, SMALL))}
    assert {"llm-int8", "llm-int8-t0"} <= names and not names & {"llm-int8-t2", "llm-int8-tinf"}
    shown = pages.table_with("threshold", quality.thresholds(h200, SMALL))
    assert [row["threshold"] for row in shown] == ["0", "2", "4", "6", "inf"]
    assert [row["tokens"] for row in shown] == ["10,183", "4,096", "4,096", "10,183", "4,096"]
    assert [row["TPOT, ms"] != "n/a" for row in shown] == [True, False, False, True, False]
    assert (
        "threshold 2 loses 0.2 % [-0.1, 0.5] of perplexity where threshold inf, which leaves no column in 16 bit"
        in (quality.best_threshold(h200, SMALL))
    )


def test_fewer_than_three_thresholds_have_no_section(h200):
    table = h200.table("quality")
    few = changed(h200, quality=table[table["tokens"] == table["tokens"].max()])
    assert quality.thresholds(few, SMALL) is None and quality.best_threshold(few, SMALL) is None
    assert quality.thresholds(h200, "llama-2-7b") is None


def test_decomposition_is_weighed_against_none_where_both_were_timed(h200):
    table = h200.table("quality").assign(tokens=512)
    text = quality.best_threshold(changed(h200, quality=table), SMALL)
    assert "where threshold 0, which" in text and "512 tokens)." in text  # threshold 2 was not timed
    timed = h200.table("speed").replace({"precision": {"nf4": "llm-int8-t2"}})
    text = quality.best_threshold(changed(h200, quality=table, speed=timed), SMALL)
    assert text.endswith(" times as long.")


def test_agreement_of_greedy_texts_counts_and_names_the_reference(h200):
    rows = {row["precision"]: row for row in pages.table_with("texts identical", quality.agreement(h200, SMALL))}
    nf4, fused, reference = (rows[name] for name in ("`nf4`", "`int8-fused`", "`bf16` (reference)"))
    # both texts of nf4 differ at token 3 of 48; all of int8-fused's are the reference's
    assert [nf4[name] for name in ("texts identical", "first difference, median", "identical after 8")] == [
        "0",
        "3",
        "0 %",
    ]
    assert fused["texts identical"] == "2" and fused["first difference, median"] == "n/a"
    assert fused["identical tokens, mean"] == "48" and reference["texts identical"] == "n/a"
    assert reference["distinct-2"] == "0.9" and "identical after 64" not in nf4


def test_tasks_list_every_precision_under_its_task_with_its_flips(h200):
    rows = rows_of(quality.tasks(h200, SMALL), "task", "precision")
    assert list(rows) == [(task, name) for task in ("arc_easy", "my_task") for name in ("bf16", "nf4")]
    share = "60 %<br>[55.6 %, 64.2 %]"
    assert rows[("arc_easy", "bf16")] == ["500", share, "n/a", "n/a", "n/a", "n/a", "n/a"]
    assert rows[("arc_easy", "nf4")][2:] == ["-6<br>[-9.31, -2.68]", "83", "51", "21", "0.0011"]
    assert rows[("my_task", "nf4")] == [r"`error`: task my\_task: no data set", *["`error`"] * 6]
    assert quality.tasks(h200, "llama-2-7b") is None


# Diagnostics


def bare(**tables) -> Study:
    """A study of these tables alone, from rows with ``model`` m and ``status`` ok if they name no others."""
    complete = {name: [{"model": "m", "status": "ok", **row} for row in rows] for name, rows in tables.items()}
    frames = {name: pd.DataFrame(rows) for name, rows in complete.items()}
    return Study("s", hand_made.Path("results/s"), frames, {"models": {"m": {"real": True}}})


def test_invariance_says_which_precisions_depend_on_the_batch():
    rows = [
        {"precision": precision, "neighbours": neighbours, "top1_changes": changes, "positions": 128}
        for precision, neighbours, changes in [
            ("bf16", "copies", 0), ("bf16", "others 1", 0), ("llm-int8", "copies", 3), ("llm-int8", "others 1", 5),
            ("llm-int8", "others 2", 7), ("nf4", "copies", 0), ("nf4", "others 1", 1), ("fp16", "others 1", 0)]
    ]  # fmt: skip
    rows.append({"status": "error", "precision": "fp4"})
    assert diagnostics.invariance_finding(bare(invariance=rows)) == (
        "Beside copies of itself, first choices of `m` change: `llm-int8` up to 3 of 128; in `bf16`, `nf4` none. "
        "Beside other texts, first choices of `m` change: `llm-int8` up to 7 of 128, `nf4` up to 1 of 128; in `bf16`, "
        "`fp16` none."
    )
    assert "no first choice of `m` changes" in diagnostics.invariance_finding(bare(invariance=rows[:1]))
    assert diagnostics.invariance_finding(bare()) is None


def test_neighbors_that_change_nothing_are_left_out_of_the_table(h200):
    frame = h200.table("invariance")
    some = frame.assign(max_abs_delta_logit=frame["max_abs_delta_logit"].where(frame["precision"] != "bf16", 0.0))
    assert [key[1] for key in rows_of(diagnostics.invariance(changed(h200, invariance=some)), "m", "p")] == ["llm-int8"]
    assert diagnostics.invariance(changed(h200, invariance=frame.assign(max_abs_delta_logit=0.0))) is None


def test_the_most_launches_are_beside_the_fewest():
    rows = [
        {"precision": precision, "attention": "sdpa", "runtime": runtime, "launches_per_token": launches,
         "syncs_per_token": syncs, "device_busy_share": busy}
        for precision, runtime, launches, syncs, busy in [
            ("bf16", "graph", 1, 0, 0.99), ("llm-int8", "generate", 3271, 259, 0.11), ("nf4", "generate", 900, 3, 0.2)]
    ]  # fmt: skip
    text = diagnostics.launches(bare(profile=rows))
    assert "`llm-int8` (sdpa, generate) 3,271 launches and 259 waits of the host, and the device works 11 %" in text
    assert "`bf16` (sdpa, graph) 1 launch and 0 waits" in text and "nf4" not in text
    assert diagnostics.launches(bare(profile=rows[:1])) is None
    assert diagnostics.launches(bare(profile=[row | {"launches_per_token": None} for row in rows])) is None  # a CPU


def test_sensitivity_is_ranked_by_divergence(h200):
    row = pages.table_with("KL, nats", diagnostics.sensitivity(h200))[0]
    # hand-made: the least Δ NLL has the most divergence
    assert (row["layer"], row["linear"], row["KL, nats"]) == ("1", "all", "0.0298<br>[0.0278, 0.0318]")


def test_the_floor_of_rounding_is_the_divergence_of_fp32():
    rows = [{"precision": "fp32", "kl_nats": 0.0012}, {"precision": "fp16", "kl_nats": 0.5}]
    study = bare(quality=rows)
    assert diagnostics.rounding_floor(study, "m", "bf16") == 0.0012
    assert diagnostics.rounding_floor(study, "m", "fp32") == 0
    assert (
        diagnostics.rounding_floor(bare(quality=rows[1:]), "m", "bf16")
        == diagnostics.rounding_floor(bare(), "m", "bf16")
        == 0
    )


def test_a_study_that_measured_nothing_has_no_sentence_of_launches(h200):
    assert diagnostics.launches(dataclasses.replace(h200, tables={})) is None
    failed = {name: table.assign(status="error", reason="why") for name, table in h200.tables.items()}
    assert diagnostics.launches(dataclasses.replace(h200, tables=failed)) is None


# Rows


def test_rows_that_tie_keep_their_order():
    rows = pd.DataFrame({"model": "m", "precision": 40 * ["nf4", "bf16"], "place": range(80)})
    assert list(dict.fromkeys(ordered(rows)["precision"])) == ["bf16", "nf4"]
    for _, own in ordered(rows).groupby("precision"):
        assert own["place"].is_monotonic_increasing


def test_precisions_that_the_registry_does_not_know_come_last_and_belong_to_no_family():
    rows = pd.DataFrame({"model": "m", "precision": ["fp8-new", "nf4", "int8-fused", "llm-int8-t2.5", "llm-int8"]})
    names = ["llm-int8", "llm-int8-t2.5", "int8-fused", "nf4", "fp8-new"]
    assert list(ordered(rows)["precision"]) == names
    assert list(of_family(rows, "int8", own=False)["precision"]) == ["llm-int8-t2.5", "llm-int8"]
    assert list(of_family(rows, "int8", own=True)["precision"]) == ["int8-fused"]
