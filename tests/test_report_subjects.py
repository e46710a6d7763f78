"""Tables and sentences of the report by subject: the right row, the right numbers, nothing where there is none."""

import dataclasses
import math

import numpy as np
import pages
import pandas as pd
import pytest
from llmstudy.report import answer, diagnostics, markdown, memory, provenance, quality, render, speed
from llmstudy.report.study import Study, ordered, quantized
from llmstudy.tables.columns import CONFIGURATION, Column, number

SMALL = "smollm2-135m"
LARGE = "llama-2-7b"


def changed(study, **tables) -> Study:
    """The study with some tables replaced."""
    return dataclasses.replace(study, tables=study.tables | tables)


def where(frame, **values):
    """Which rows have these values."""
    return (frame[list(values)] == list(values.values())).all(axis=1)


# Markdown


def test_a_table_takes_titles_alignment_and_format_from_the_declarations():
    rows = pd.DataFrame(
        [
            {"model": "m", "status": "ok", "reason": "", "ppl_ratio": 1.01856, "ppl_ratio_low": 1.0181,
             "ppl_ratio_high": 1.019, "mbu": 0.0456, "tokens": 1290591.0, "mine": "**x**", "load_s": np.nan},
            {"model": "n", "status": "unsupported", "reason": "a | *b*", "ppl_ratio": np.nan, "ppl_ratio_low": np.nan,
             "ppl_ratio_high": np.nan, "mbu": np.nan, "tokens": 12.0, "mine": None, "load_s": np.nan},
        ]
    )  # fmt: skip
    text = markdown.table(rows, ["model"], ["load_s", "ppl_ratio", "mbu", "tokens", Column("mine", "own", "markdown")])
    assert text.splitlines() == [
        "| model | PPL ratio | MBU | tokens | own |",
        "| --- | ---: | ---: | ---: | --- |",
        "| `m` | 1.0186<br>[1.0181, 1.0190] | 4.56 % | 1,290,591 | **x** |",
        r"| `n` | does not run here: a \| \*b\* | – | 12 | – |",
    ]
    assert markdown.table(rows.iloc[:0], ["model"], ["mbu"]) is None


def test_a_range_over_processes_is_not_an_interval():
    row = {"tpot_ms": 2.0, "tpot_ms_min": 1.9, "tpot_ms_max": 2.1}
    assert markdown.cell(row, Column("tpot_ms")) == "2<br>(1.9 – 2.1)"
    assert markdown.cell(row | {"tpot_ms_min": 2.0, "tpot_ms_max": 2.0}, Column("tpot_ms")) == "2"


@pytest.mark.parametrize(
    ("status", "reason", "text"),
    [("oom", "CUDA out of memory. Tried …", "does not fit: memory ran out"), ("error", "", "failed"),
     ("timeout", "no answer after 600 s", "took longer than a job may take"), ("odd", math.nan, "odd"),
     ("unsupported", "no <kernel>", "does not run here: no &lt;kernel&gt;")],
)  # fmt: skip
def test_a_failure_is_told_in_a_users_words(status, reason, text):
    assert markdown.failure({"status": status, "reason": reason}) == text


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
    assert found == (low and (low, low.replace("low", "high"), "[{}, {}]"))


def test_lists_in_sentences():
    assert markdown.listed([]) == "" and markdown.named(["a"]) == "`a`"
    assert markdown.named(["a", "b", "a", "c"], "or") == "`a`, `b` or `c`"
    assert (
        markdown.span(pd.Series([1.0, 1.001])) == "1" and markdown.span(pd.Series([0.77, 0.9]), " ×") == "0.77 to 0.9 ×"
    )
    assert markdown.span(pd.Series([], dtype=float)) == markdown.NONE


# Answer


def cells(study, model, use, **values):
    """The cells of a use's line of advice after a change of its row."""
    rows = study.table("advice")
    rows = rows.assign(**{name: rows[name].where(~where(rows, model=model, use=use), value)
                          for name, value in values.items()})  # fmt: skip
    shown = pages.tables(answer.advice(changed(study, advice=rows), model))[0][1:]
    return next(line for line in shown if line[0].startswith(use))


@pytest.mark.parametrize(
    ("values", "column", "text"),
    [({}, 1, "**`int8-fused` (sdpa, graph)**"),
     ({"verdict": "too noisy to say", "instead": "bf16 (sdpa, graph); nf4 (sdpa, graph)"}, 1,
      "too noisy to say: `int8-fused` (sdpa, graph), `bf16` (sdpa, graph) or `nf4` (sdpa, graph)"),
     ({"verdict": "fastest in this study", "instead": "nf4 (sdpa, graph)"}, 1,
      "fastest in this study: `int8-fused` (sdpa, graph)<br>perhaps as fast: `nf4` (sdpa, graph)"),
     ({"against": "int8-fused (sdpa, graph)"}, 2, "0.0653 ms a token, the fastest without quantization"),
     ({"speedup": 1.5, "speedup_low": np.nan}, 2, "0.0653 ms a token, 1.5 × `bf16` (sdpa, graph) (no interval)"),
     ({"memory_gib": 9.5, "memory_ratio": 0.65}, 3, "9.5 GiB, 0.65 ×"),
     ({"memory_gib": 9.5, "memory_ratio": np.nan}, 3, "9.5 GiB"),
     ({"ppl_verdict": "", "ppl_ratio": np.nan}, 4, "not known: not compared with the original"),
     ({"ppl_verdict": "reference"}, 4, "none: it is the original"),
     ({"ppl_verdict": "not enough text", "ppl_ratio_low": np.nan}, 4, "+0.52 %, a loss beyond the margin is not shown"),
     ({"ppl_verdict": "higher", "ppl_ratio": 1.0076, "ppl_ratio_low": 1.003, "ppl_ratio_high": 1.0122}, 4,
      "+0.76 % [+0.3 %, +1.2 %], a small loss, below the margin by estimate"),
     ({"note": "Faster, but so: x (a, b)."}, 1, "**`int8-fused` (sdpa, graph)**<br>Faster, but so: x (a, b)."),
     ({"evidence": "B", "processes": 3}, 5, "B, n = 3"),
     ({"precision": "fp4", "runtime": "x"}, 6, answer.how("fp4") + "; in the runtime `x`")],
)  # fmt: skip
def test_a_line_of_advice(h200, values, column, text):
    tpot = h200.table("advice", SMALL).iloc[0]["tpot_ms"]
    assert cells(h200, SMALL, "one user", **values)[column] == text.replace("0.0653", number(tpot))


@pytest.mark.parametrize(("share", "words"), [(0.11, "11 %"), (0.995, None), (1.0, None), (0.0, None), (np.nan, None)])
def test_a_precision_that_replaced_a_part_says_which(h200, share, words):
    """Of Mixtral the experts, in the line that takes it and before it."""
    summary = h200.table("summary")
    study = changed(
        h200, summary=summary.assign(quantized_share=np.where(summary["precision"] == "nf4", share, np.nan))
    )
    loss = cells(study, SMALL, "one user", precision="nf4", ppl_verdict="same")[4]
    assert loss.endswith(f", {words} of the decoder quantized" if words else "the margin")
    told = [text for text in answer.caveats(study) if "of the weights are quantized by `nf4`" in text]
    assert len(told) == (summary["model"].nunique() if words else 0) and all(words in text for text in told)


def test_a_reference_that_was_published_quantized_is_no_original(h200):
    """Its loss against 16 bits is what nobody measured here."""
    summary = h200.table("summary")
    study = changed(h200, summary=summary.assign(quantized_share=1.0))
    row = h200.table("advice", SMALL).iloc[0]
    against = f"{row['precision']} ({row['attention']}, {row['runtime']})"
    line = cells(study, SMALL, "one user", ppl_verdict="reference", against=against)
    assert line[4] == "not known: published quantized" and "without quantization" not in line[2]


def test_a_use_without_a_choice_has_its_sentence(h200):
    line = cells(
        h200, SMALL, "one user", verdict="nothing meets the limits", tpot_ms=np.nan, sentence="None keeps 1 GiB."
    )
    assert line[1:] == ["nothing meets the limits: None keeps 1 GiB.", *[markdown.NONE] * 5]


def test_serving_is_told_in_tokens_a_second(h200):
    row = h200.table("advice").query("use == 'batch serving'").iloc[0]
    assert cells(h200, SMALL, "batch serving")[2].startswith(f"{number(row['tokens_per_s'])} tokens/s, ")


@pytest.mark.parametrize(
    ("precision", "runtime", "text"),
    [("int8-fused", "graph", "this project's kernels; not in a library yet; nor is the runtime `graph`"),
     ("llm-int8", "generate", "`BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=6.0)`"),
     ("nf4", "graph", 'compute_dtype=torch.bfloat16)`; in this project\'s runtime `graph`, not in a library yet'),
     ("bf16", "compile", 'compiled with `model.generate(…, cache_implementation="static")`'),
     ("bf16", "other", "; in the runtime `other`"), ("of-tomorrow", "generate", "`as its library documents`")],
)  # fmt: skip
def test_how_a_configuration_is_run(precision, runtime, text):
    assert answer.how(precision, runtime).endswith(text)


def test_caveats_name_weights_processes_and_own_work(h200):
    text = "\n".join(answer.caveats(h200))
    assert f"no quality: `{LARGE}` and `llama-2-70b`." in text and "behind a ratio, is 5." in text
    assert "This project's own, and tuned where it was measured: `int8-fused` and `graph`." in text
    assert "published in 4 bit" not in text.lower() and "has no interval" not in text
    h200.provenance["models"][SMALL]["fetched_note"] = "weights published as GGUF (210 Q4_1)"
    text = "\n".join(answer.caveats(changed(h200, summary=h200.table("summary").assign(processes=1))))
    assert f"the original here: `{SMALL}`. A 4-bit precision quantizes it twice" in text
    assert "is 1. What one process measured has no interval." in text


def test_the_report_says_what_a_checkpoint_is(h200):
    h200.provenance["models"][SMALL]["summary"] = "llama, 134.5 M parameters, float32, head tied to the embedding"
    (row,) = [row for row in provenance.models(h200).splitlines() if row.startswith(f"| `{SMALL}`")]
    assert "llama, 134.5 M parameters, float32, head tied to the embedding" in row


def test_what_is_not_finite_is_told_once(h200):
    quality = h200.table("quality").copy()
    lost = quality["precision"].isin(["bf16", "nf4"])
    quality.loc[lost, ["status", "reason"]] = ["overflow", "not finite at layer 3 (a.b), its output in float16"]
    said = [text for text in answer.caveats(changed(h200, quality=quality)) if "not finite" in text]
    assert said == [
        f"`bf16` of `{SMALL}`: not finite at layer 3 (a.b), its output in float16. Nothing can be compared with it: "
        "name another `reference`.",
        f"`nf4` of `{SMALL}`: not finite at layer 3 (a.b), its output in float16. It is never recommended.",
    ]


def test_unsettled_verdicts_name_what_settles_them(h200):
    summary = h200.table("summary").assign(tpot_verdict="faster")
    assert answer.unsettled(changed(h200, summary=summary)) is None
    open_ = where(summary, model=LARGE, runtime="graph", precision="int8-fused") & summary["tpot_speedup"].notna()
    summary.loc[open_, ["tpot_verdict", "tpot_speedup_low", "tpot_speedup_high"]] = ["not enough data", 0.95, 1.4]
    text = answer.unsettled(changed(h200, summary=summary))
    assert text.startswith(
        f"Not enough data for 1 of {summary['tpot_speedup'].notna().sum()} verdicts on the time per token"
    )
    assert "between 0.95 and 1.4 times" in text and "`{minimum: 7, maximum: 7}`" in text


def test_conclusions_are_over_all_models(h200):
    rows = {row["precision"]: row for row in pages.table_with("precision", answer.conclusions(h200))}
    own = h200.table("summary").query("precision == 'int8-fused' and runtime == 'graph'")
    assert rows["`int8-fused`"]["models"] == "3"
    assert rows["`int8-fused`"]["speed"] == markdown.span(own["tpot_speedup"].dropna(), " ×")
    assert rows["`bf16`"]["perplexity"] == "none: it is the original" and "base" in rows["`bf16`"]["verdict"]
    assert rows["`nf4`"]["perplexity"].startswith("+28 %")
    assert answer.conclusions(changed(h200, summary=h200.table("summary").assign(status="error"))) is None


# Speed


def test_the_reference_against_itself_counts_the_intervals_that_hold_1(h200):
    table = h200.tables["speed"].copy()
    twice = (table["again"] == "yes") & (table["status"] == "ok")
    assert f"{twice.sum()} of {twice.sum()} such intervals hold it" in speed.again(h200)
    table.loc[table.index[twice][0], ["tpot_speedup", "tpot_speedup_low", "tpot_speedup_high"]] = [1.1, 1.05, 1.2]
    text = speed.again(changed(h200, speed=table))
    assert "came out 1.1 × [1.05, 1.2] as fast (n = 5)" in text and f"{twice.sum() - 1} of {twice.sum()} such" in text
    assert speed.again(changed(h200, speed=table[table["again"] == "no"])) is None


def test_a_step_is_launch_overhead_until_it_is_captured(h200):
    claim = speed.launches(h200)
    assert claim.heading == "A step is launch overhead until it is captured" and claim.figure == "floor"
    row = h200.table("summary", LARGE).query("tpot_verdict == 'base'").iloc[0]
    assert f"{markdown.times(row, 'generate_speedup')} as fast as the reference under `generate` (n = 5)." in claim.text
    assert "the host launches 700 kernels a token, and the device works 20 % of the time" in claim.text
    summary = h200.table("summary")
    library = changed(h200, summary=summary[summary["runtime"] == "generate"])
    assert "times what its bytes need, or more" in speed.launches(library).heading
    at_floor = h200.table("speed").assign(floor_ms=h200.table("speed")["tpot_ms"] / 1.05)
    quick = changed(library, speed=at_floor)
    assert speed.launches(quick).heading == "A step comes near what its bytes need"


def test_fewer_bytes_are_faster_where_that_is_shown(h200):
    claim = speed.bytes_read(h200)
    rows = h200.table("summary").query("precision == 'int8-fused' and runtime == 'graph' and tpot_verdict == 'faster'")
    assert f"`int8-fused` runs at {markdown.span(rows['tpot_speedup'], ' ×')} the speed of 16 bit" in claim.heading
    assert "for some model: `llm-int8`, `llm-int8-t0` and `nf4`." in claim.text
    summary = h200.table("summary").assign(tpot_verdict="not enough data")
    assert speed.bytes_read(changed(h200, summary=summary)).heading == "Fewer bytes are not shown to be faster here"


def test_a_first_token_that_costs_more_is_earned_back(h200):
    summary = h200.table("summary").copy()
    mine = where(summary, model=LARGE, precision="int8-fused", runtime="graph")
    base = where(summary, model=LARGE, tpot_verdict="base")
    summary.loc[mine, ["ttft_ms", "tpot_ms"]] = [15.4, 1.93]
    summary.loc[base, ["ttft_ms", "tpot_ms"]] = [10.1, 3.46]
    text = speed.bytes_read(changed(h200, summary=summary)).text
    assert "takes 15.4 ms instead of 10.1; 4 further tokens earn it back." in text  # 5.3 / 1.53


def test_a_gain_ends_at_the_last_batch_where_it_is_shown(h200):
    table = h200.tables["speed"].copy()
    mine = where(table, precision="int8-fused", runtime="graph", prompt_tokens=512)
    for batch, word in ((1, "faster"), (8, "faster"), (32, "same")):
        table.loc[mine & (table["batch"] == batch), "e2e_verdict"] = word
    claim = speed.batches(changed(h200, speed=table))
    assert claim.heading == "`int8-fused` gains up to batch 8, and not beyond"
    table.loc[mine, "e2e_verdict"] = "slower"
    assert "is not shown to gain at any" in speed.batches(changed(h200, speed=table)).heading
    assert speed.batches(changed(h200, speed=table[table["batch"] == 1])) is None


def test_flags_are_counted_by_sort(h200):
    table = h200.table("processes").reset_index(drop=True)
    flagged = table["flags"] != ""
    assert (
        speed.flags(h200)
        == f"Disturbed while measuring: load average 5.1 on 16 cores ({flagged.sum()} of {len(table)} rows)."
    )
    assert speed.flags(changed(h200, processes=table.assign(flags=""))) is None


# Memory, quality, diagnostics


def test_the_largest_model_decides_the_card(h200):
    own = h200.table("summary", "llama-2-70b")
    claim = memory.fits(h200)
    assert f"{number(own['memory_gib'].min())} to " in claim.heading and "a card of 48 GB with `nf4`" in claim.text
    on_host = memory.fits(changed(h200, summary=h200.table("summary").assign(device="cpu")))
    assert "one reading of a process" in on_host.text and len(pages.tables(on_host.table)[0]) == 1 + 6 + 6 + 3
    assert memory.fits(changed(h200, summary=own.assign(memory_gib=np.nan))) is None


def test_the_distance_names_the_nearest_and_the_furthest(h200):
    claim = quality.distance(h200)
    assert claim.heading == "`int8-fused` stays nearest to the original, `fp4` moves furthest"
    assert "Scored were 10,183 tokens of `wikipedia` with `smollm2-135m`" in claim.text
    assert "Shown to lie within the margin: `fp16` and `int8-fused`." in claim.text
    assert "A loss shown to exceed the margin: `llm-int8`, `llm-int8-t0` and `nf4`." in claim.text
    assert "Token by token" not in claim.text
    rows = h200.table("quality")
    steps = rows[rows["model"] == "smollm2-135m"].iloc[:2].assign(protocol="decode-b1", runtime=["generate", "graph"])
    steps = steps.assign(precision="int8-fused", path_ratio=[1.0001, 0.98])
    text = quality.distance(changed(h200, quality=pd.concat([rows, steps]))).text
    assert "the steps of `generate` and `graph`, perplexity differs from one pass of the same precision by -2 %" in text
    assert "of `int8-fused` under `graph`" in text
    two = h200.table("summary").query("model == 'smollm2-135m' and precision in ['bf16', 'fp16']")
    two = two.drop_duplicates("precision")
    assert "Shown to lie within the margin: `fp16`." in quality.distance(changed(h200, summary=two)).text
    alone = h200.table("quality").query("precision == 'bf16'")
    assert quality.distance(changed(h200, quality=alone)) is None


def test_a_kernel_is_compared_at_the_longest_context_that_several_ran(h200):
    claim = diagnostics.kernels(h200)
    assert (
        claim.heading == "An attention kernel is worth up to 16.7 × at 16,384 tokens"
    )  # eager ran out of memory there
    assert "`sdpa-cudnn` 6.14 ms and `sdpa-math` 102 ms" in claim.text and "scores are never written" in claim.text
    single = h200.table("attention").query("attention == 'sdpa-flash'")
    assert diagnostics.kernels(changed(h200, attention=single)) is None


@pytest.mark.parametrize("claim", render.CLAIMS)
def test_a_study_that_measured_nothing_claims_nothing(claim, h200):
    failed = {name: table.assign(status="error", reason="why") for name, table in h200.tables.items()}
    for name in ("summary", "speed", "probes"):
        numbers = [column for column in failed[name] if column.endswith(("_ms", "_gib", "mbu", "speedup"))]
        failed[name][numbers] = np.nan
    assert claim(dataclasses.replace(h200, tables=failed)) is None


# Rows


def test_rows_that_tie_keep_their_order():
    rows = pd.DataFrame({"model": "m", "precision": 40 * ["nf4", "bf16"], "place": range(80)})
    assert list(dict.fromkeys(ordered(rows)["precision"])) == ["bf16", "nf4"]
    for _, own in ordered(rows).groupby("precision"):
        assert own["place"].is_monotonic_increasing


def test_precisions_that_the_registry_does_not_know_come_last_and_count_as_quantized():
    rows = pd.DataFrame({"model": "m", "precision": ["fp8-new", "nf4", "int8-fused", "llm-int8-t2.5", "fp16"]})
    names = ["fp16", "llm-int8-t2.5", "int8-fused", "nf4", "fp8-new"]
    assert list(ordered(rows)["precision"]) == names and list(ordered(quantized(rows))["precision"]) == names[1:]


def test_the_second_call_of_the_reference_is_in_no_other_row(h200):
    assert not h200.table("speed").duplicated([*CONFIGURATION, "batch", "prompt_tokens"]).any()
    assert set(h200.table("speed", again=True)["precision"]) == {"bf16"}
    assert len(h200.configurations()) == (h200.table("summary")["status"] == "ok").sum()
