"""Summary and advice: verdicts, the front, and what to take, from tables written by hand."""

import math

import numpy as np
import pandas as pd
import pytest
from llmstudy.tables import summary
from llmstudy.tables.advice import cases
from llmstudy.tables.columns import percent
from llmstudy.tables.quality import judged
from table_kit import AT, OOM, configuration, make, only, panel, write_record

HEADLINE = AT | {"reference": "bf16", "corpus": "wiki", "protocol": "w1024"}
MARGINS = {"speed": 10.0, "memory": 10.0, "perplexity": 1.0}
TIMES = {"bf16": 20.0, "int8": 10.0, "nf4": 5.0}
MEMORY = {"bf16": 12.0, "int8": 7.0, "nf4": 4.0}
LOSSES = {"int8": 1.001, "nf4": 1.2}


def identity(name, **changes):
    row = {"study": "tiny", "model": "m", "weights": "real", "device": "cuda", "status": "ok", "reason": ""}
    return row | dict(zip(("precision", "attention", "runtime"), configuration(name))) | changes


def graded(precision, ratio, se=0.0001, blocks="10 documents", **changes):
    """Return a row of quality.csv; the reference (``ratio`` None) compares with nothing."""
    loss, ppl = (math.nan, 20.0) if ratio is None else (math.log(ratio), 20.0 * ratio)
    row = identity(precision) | {"corpus": "wiki", "protocol": "w1024", "blocks": blocks, "ppl": ppl}
    row |= {"ppl_low": ppl - 1, "ppl_high": ppl + 1, "delta_nll": loss, "delta_nll_se": se, "ppl_ratio": math.exp(loss)}
    row |= {"ppl_ratio": 1.0, "ppl_verdict": "reference"} if ratio is None else {"ppl_verdict": ""}
    row |= {"kl_nats": abs(loss) if ratio else 1e-6, "top1_agreement": 0.97, "top1_low": 0.96, "top1_high": 0.98}
    return row | dict.fromkeys(("ppl_ratio_low", "ppl_ratio_high", "kl_low_nats", "kl_high_nats"), math.nan) | changes


def answers(
    folder, times=TIMES, memory=MEMORY, losses=LOSSES, *, panels=3, device_gib=24.0, weights="real", more=(), **study
):
    """Return summary.csv and advice.csv of a study. ``times`` are TPOT or outcomes, or lists of one for each panel,
    ``memory`` GiB or outcomes, ``losses`` ratios of perplexity or rows of quality.csv by precision, and ``more``
    further workloads with their times and options of their panels."""
    paths, probes = [], []
    for place, (workload, its_times, options) in enumerate([(AT, times, {}), *more]):
        for process in range(panels):
            group = {name: ms[process] if isinstance(ms, list) else ms for name, ms in its_times.items()}
            group = {name: ms if isinstance(ms, dict) else [ms] * 3 for name, ms in group.items()}
            shared = {"number": 10 * place + process, "workload": workload, "weights": weights}
            paths.append(panel(folder, group, **shared, **options))
        for name, gib in memory.items():
            usual = {"memory_gib": gib, "weights_gib": 3.0, "peak_load_gib": 3.5, "quantized_share": 0.5}
            sizes = gib if isinstance(gib, dict) else usual
            probes.append(identity(name, weights=weights) | workload | sizes)
    quality = [graded("bf16", None)] if losses else []
    quality += [graded(name, loss) if isinstance(loss, float) else loss for name, loss in losses.items()]
    quality = pd.DataFrame(judged(quality, MARGINS["perplexity"]), columns=[*graded("bf16", None)])
    sources = {"probes": pd.DataFrame(probes), "quality": quality}
    study = {"headline": {"m": HEADLINE}, "workloads": {"m": [AT, *(workload for workload, *_ in more)]}} | study
    make(folder, "processes", paths)
    make(folder, "speed", **study)
    table = make(folder, "summary", sources=sources, **study)
    probe = write_record(folder, "probe", {}, {"workloads": []}, provenance={"gpu": {"memory_gib": device_gib}})
    return table, make(folder, "advice", [probe], **study)


def advice(folder, *arguments, use="one user", **options):
    return only(answers(folder, *arguments, **options)[1], use=use)


# ----------------------------------------------------------------------------------------------------------- summary


def test_summary_joins_the_tables_at_the_headline(tmp_path):
    times = {"int8.sdpa.graph": 4.0} | TIMES | {"fp32": OOM}
    more = [(AT | {"batch": 8}, {"bf16": 99.0}, {})]
    table, _ = answers(tmp_path, times, MEMORY | {"int8.sdpa.graph": 7.5}, more=more)
    assert len(table) == 5
    fast = only(table, runtime="graph")
    assert fast[["tpot_ms", "tpot_ms_max", "processes", "against"]].tolist() == [4, 4, 3, "bf16 (sdpa, generate)"]
    assert fast[["tpot_speedup", "generate_speedup"]].tolist() == [5, 5] and fast["tpot_verdict"] == "faster"
    assert (fast["memory_gib"], fast["weights_gib"], fast["memory_verdict"]) == (7.5, 3, "less")
    assert fast["quantized_share"] == 0.5
    assert fast["memory_ratio"] == 7.5 / 12
    assert (fast["ppl_ratio"], fast["ppl_verdict"], fast["quality_from"]) == (1.001, "same", "sdpa, generate")
    assert fast["ppl_ratio_low"] < 1.001 < fast["ppl_ratio_high"]
    assert pd.isna(only(table, precision="int8", runtime="generate")["quality_from"])
    base = only(table, precision="bf16")
    assert (base["tpot_verdict"], base["ppl_verdict"], base["ppl_ratio"]) == ("base", "reference", 1)
    lost = only(table, precision="fp32")
    assert lost[["status", "reason", "processes"]].tolist() == ["oom", "CUDA out of memory", 0]
    assert lost[["tpot_ms", "tpot_speedup", "memory_gib", "ppl"]].isna().all() and lost["pareto"] == "no"


@pytest.mark.parametrize("step", ["ok", "error"])
def test_a_runtime_is_judged_by_what_its_own_token_step_loses(tmp_path, step):
    """Its advice too; the base runtime stays with the windows. A step that failed borrows no other's quality."""
    fast, ratio = "int8.sdpa.graph", 1.05
    failed = {} if step == "ok" else {"status": "error", "reason": "7 tokens are not finite"}
    losses = LOSSES | {
        fast: graded(fast, ratio, protocol="decode-b1", **failed),
        "of another batch": graded(fast, 1.5, protocol="decode-b8"),
        "library's step": graded("int8", 1.4, protocol="decode-b1"),
    }
    headline = {"m": HEADLINE | {"decode": "decode-b1"}}
    memory = MEMORY | {fast: 7.5}
    table, advice = answers(tmp_path, {fast: 4.0} | TIMES, memory, losses, headline=headline)
    library, own = only(table, precision="int8", runtime="generate"), only(table, runtime="graph")
    assert (library["ppl_ratio"], library["protocol"]) == (1.001, "w1024")
    if step == "error":
        assert math.isnan(own["ppl_ratio"]) and own["reason"] == "quality: 7 tokens are not finite"
        return
    assert (own["ppl_ratio"], own["protocol"], own["ppl_verdict"]) == (ratio, "decode-b1", "higher")
    assert pd.isna(own["quality_from"])
    assert only(advice, use="one user")["runtime"] == "generate"  # the faster one is shown to lose more than the margin


def test_summary_takes_memory_from_the_nearest_number_of_new_tokens(tmp_path):
    answers(tmp_path)
    probes = pd.read_csv(tmp_path / "probes.csv")
    near, far = (probes.assign(new_tokens=tokens, memory_gib=gib) for tokens, gib in ((24, 5.0), (128, 9.0)))
    for tried, gib in ((pd.concat([far, near]), [5.0] * 3), (near.assign(prompt_tokens=64), [math.nan] * 3)):
        table = make(tmp_path, "summary", sources={"probes": tried}, headline={"m": HEADLINE})
        np.testing.assert_array_equal(table["memory_gib"], gib)


def test_summary_notes_what_else_failed_and_an_unmeasured_workload(tmp_path):
    failed = graded("int8", None, status="error", reason="7 tokens are not finite")
    times, probed = TIMES | {"int8": [OOM, 10.0, 10.0]}, MEMORY | {"int8": {"status": "error", "reason": "driver"}}
    row = only(answers(tmp_path, times, probed, LOSSES | {"int8": failed})[0], precision="int8")
    assert (row["status"], row["processes"]) == ("ok", 2) and math.isnan(row["memory_gib"])
    noted = "1 of 3 processes failed (oom: CUDA out of memory); probe: driver; quality: 7 tokens are not finite"
    assert row["reason"] == noted and row["pareto"] == "no"
    other = make(tmp_path, "summary", headline={"m": HEADLINE | {"batch": 4}})
    assert set(other["reason"]) == {"this workload was not measured"} and set(other["status"]) == {"error"}


@pytest.mark.parametrize(
    ("own", "word"), [(10.0, "same"), (11.0, "same"), (11.1, "more"), (9.1, "same"), (9.0, "less"), (math.nan, None)]
)
def test_memory_within_the_margin_is_the_same(own, word):
    """The margin is a factor: 10 % lie between 10 / 1.1 = 9.09 and 11 GiB."""
    assert summary.memory_of(own, 10.0, 10.0).get("memory_verdict") == word
    assert summary.memory_of(10.0, None, 10.0) == {}


def losses_of(*rows):
    return pd.DataFrame(judged(list(rows), MARGINS["perplexity"])).set_index("precision")


def test_the_four_verdicts_of_a_loss_and_its_adjusted_interval():
    """Ten documents and four precisions: t(9) = 3.1109 at 1 − 0.05 / 8 for the interval, 1.8331 for the two tests."""
    se = 0.004
    within = math.log(1.01) - 1.8331 * se
    changes = {"higher": 3.2 * se, "lower": -3.2 * se, "same": within - 1e-5, "not enough text": within + 1e-5}
    table = losses_of(graded("bf16", None), *(graded(word, math.exp(change), se) for word, change in changes.items()))
    assert table["ppl_verdict"].to_dict() == {"bf16": "reference"} | {word: word for word in changes}
    for word, change in changes.items():
        ends = [math.exp(change - 3.1109 * se), math.exp(change + 3.1109 * se)]
        assert table.loc[word, ["ppl_ratio_low", "ppl_ratio_high"]].tolist() == pytest.approx(ends, rel=1e-6)
    assert table.loc["bf16", "ppl_ratio"] == 1 and math.isnan(table.loc["bf16", "ppl_ratio_low"])
    certain = losses_of(graded("bf16", None), graded("a", 1.005, 0.0001)).loc["a"]
    assert certain["ppl_verdict"] == "same" and certain["ppl_ratio_low"] > 1  # a loss so small does not matter
    alone = losses_of(graded("bf16", None), graded("a", math.exp(9 * se), 3 * se)).loc["a"]  # t(9) = 2.2622
    assert alone["ppl_ratio_low"] == pytest.approx(math.exp((9 - 2.2622 * 3) * se), rel=1e-6)


def test_only_precisions_that_are_compared_count_in_the_adjustment():
    rows = [graded("bf16", None), graded("int8", 1.02, 0.004)]
    others = [graded("int8.eager.generate", 1.02, 0.004), graded("nf4", None, **OOM)]
    others += [graded(name, 2.0, **{key: "other"}) for name, key in (("fp4", "model"), ("fp4", "corpus"))]
    ends = ["ppl_ratio_low", "ppl_ratio_high", "ppl_verdict"]
    crowd = losses_of(*rows, *others).iloc[[1, 2]][ends]
    assert crowd.values.tolist() == [losses_of(*rows).loc["int8", ends].tolist()] * 2
    wider = losses_of(*rows, graded("fp4", 2.0)).loc["int8"]
    assert wider["ppl_ratio_low"] < crowd["ppl_ratio_low"].iloc[0]


@pytest.mark.parametrize("text", [{"se": math.nan, "blocks": "1 block, no interval"}, {"blocks": "1 documents"}])
def test_one_block_is_not_enough_text(text):
    row = losses_of(graded("bf16", None), graded("int8", 1.5, **text)).loc["int8"]
    assert row["ppl_verdict"] == "not enough text" and row["ppl_ratio"] == pytest.approx(1.5)
    assert row[["ppl_ratio_low", "ppl_ratio_high"]].isna().all()


def test_the_front_is_that_of_its_definition():
    """A configuration is beaten by one that is as good within the margins and better by more than one of them."""
    random = np.random.default_rng(4)
    costs = np.exp(0.4 * random.standard_normal((60, 3)))
    costs[:, 1] = np.exp(0.2 * random.standard_normal(60)) / costs[:, 0]
    costs[:, 2] = 1 + 0.05 * random.random(60)
    factors = np.array([1.1, 1.1, 1.01])

    def beats(other, own):
        return (other <= own * factors).all() and (other * factors < own).any()

    expected = [not any(beats(other, own) for other in costs) for own in costs]
    assert 5 < sum(expected) < 55
    rows = pd.DataFrame(costs, columns=["memory_gib", "tpot_ms", "ppl_ratio"]).assign(status="ok")
    assert summary.pareto(rows, MARGINS) == expected
    unable = pd.DataFrame([{"memory_gib": 0.1, "tpot_ms": 0.1, "ppl_ratio": 1.0, "status": "error"}] * 2)
    unable.loc[1, ["status", "ppl_ratio"]] = ["ok", math.nan]
    assert summary.pareto(pd.concat([rows, unable]), MARGINS) == [*expected, False, False]
    free = [not any(beats(other, own) for other in costs * [1, 1, 0]) for own in costs * [1, 1, 0]]
    assert summary.pareto(rows.assign(ppl_ratio=math.nan), MARGINS) == free  # random weights: of speed and memory


def test_large_changes_have_no_exponents():
    changes = [percent(ratio) for ratio in (1.0186, 1.996, 4.0, 0.5, 40.0)]
    assert changes == ["+1.9 %", "+100 %", "+300 %", "-50 %", "x 40"]


# ------------------------------------------------------------------------------------------------------------ advice


def test_the_fastest_without_a_shown_loss_is_taken(tmp_path):
    row = advice(tmp_path)  # nf4 is faster still, and loses 20 %
    assert row[["verdict", "precision", "attention", "runtime"]].tolist() == ["take", "int8", "sdpa", "generate"]
    assert row[["batch", "prompt_tokens", "new_tokens", "processes", "evidence"]].tolist() == [1, 128, 32, 3, "B"]
    assert row[["tpot_ms", "speedup", "speedup_low", "speedup_high"]].tolist() == pytest.approx([10, 2, 2, 2])
    assert row[["memory_gib", "memory_ratio", "ppl_ratio"]].tolist() == pytest.approx([7, 7 / 12, 1.001], rel=1e-5)
    assert row[["against", "ppl_verdict", "instead", "status"]].tolist() == ["bf16 (sdpa, generate)", "same", "", "ok"]
    assert row["sentence"] == (
        "Take int8 (sdpa, generate), 2 times as fast as bf16 (sdpa, generate) (2 to 2), 7 GiB, 0.583 times its memory. "
        "Perplexity +0.1 %, shown to lie within the margin."
    )
    row = advice(tmp_path, {"bf16": 5.0, "int8": 10.0})
    assert row["sentence"] == "Take bf16 (sdpa, generate), 12 GiB. It is the original."


@pytest.mark.parametrize(
    ("loss", "taken", "words"),
    [
        (graded("int8", 1.05, 0.03), "int8", "Perplexity +5 %, a loss beyond the margin is not shown."),
        (graded("int8", 1.012, 0.001), "int8", "Perplexity +1.2 %, a loss, not shown to exceed the margin."),
        (graded("int8", 1.0076, 0.0019), "int8", "Perplexity +0.76 %, a small loss, below the margin by estimate."),
        (graded("int8", 1.05, 0.001), "bf16", "It is the original."),
        (graded("int8", 0.98, 0.001), "int8", "Perplexity -2 %, not a loss."),
        (graded("int8", 1.5, math.nan, "1 block, no interval"), "int8", "+50 %, a loss beyond the margin is not shown"),
    ],
)
def test_a_loss_excludes_only_where_it_is_shown_to_exceed_the_margin(tmp_path, loss, taken, words):
    row = advice(tmp_path, losses={"int8": loss, "nf4": 1.2})
    assert row["precision"] == taken and words in row["sentence"]


@pytest.mark.parametrize(
    ("limits", "taken"),
    [
        ({"memory_gib": 7.0, "tpot_ms": None}, "int8"),
        ({"memory_gib": 6.9}, "nf4"),  # each that fits is shown to lose, which the sentence says
        ({"ppl_loss_percent": 25.0}, "nf4"),
        ({"ppl_loss_percent": 20.0}, "int8"),  # 20 % by estimate, 20.05 % by the upper end
        ({"tpot_ms": 12.0}, "int8"),
        ({"tpot_ms": 11.5}, "nf4"),  # int8's slowest process takes 12 ms
        ({"top1_agreement": 0.9}, "nf4"),
        ({"top1_agreement": 0.965}, "bf16"),  # 97 % by estimate, 96 % by the lower end; the original has no loss
    ],
)
def test_limits_are_kept_with_the_worse_end(tmp_path, limits, taken):
    assert advice(tmp_path, TIMES | {"int8": [9.0, 10.0, 12.0]}, limits=limits)["precision"] == taken


def test_nothing_meets_the_limits(tmp_path):
    table = answers(tmp_path, limits={"memory_gib": 3.5, "ppl_loss_percent": 25.0})[1]
    assert set(table["verdict"]) == {"nothing meets the limits"} and table["precision"].isna().all()
    assert set(table["sentence"]) == {"No configuration keeps 3.5 GiB of memory."}
    torn = advice(tmp_path, limits={"memory_gib": 5.0, "ppl_loss_percent": 1.0})
    assert torn["sentence"] == "No configuration keeps all limits at once."


def test_what_is_not_known_is_not_shown_to_meet_a_limit_and_not_said_to_miss_it(tmp_path):
    row = advice(tmp_path, memory={"other": 1.0}, limits={"memory_gib": 8.0})
    assert row["verdict"] == "not shown to meet the limits" and pd.isna(row["precision"])
    names = "bf16 (sdpa, generate), int8 (sdpa, generate) or nf4 (sdpa, generate)"
    assert row["sentence"] == f"No configuration is shown to keep 8 GiB of memory. Not known of {names}."
    row = advice(tmp_path, memory={"bf16": 12.0, "int8": 7.0}, limits={"memory_gib": 5.0})
    assert row["sentence"] == "No configuration is shown to keep 5 GiB of memory. Not known of nf4 (sdpa, generate)."
    name = "nf4 (sdpa, generate)"
    row = advice(tmp_path, memory={"bf16": 12.0, "int8": 7.0}, limits={"memory_gib": 8.0, "ppl_loss_percent": 30.0})
    assert (row["precision"], row["note"]) == ("int8", f"Faster, but not known to keep the limits: {name}.")


@pytest.mark.parametrize(("limit", "taken"), [(1.0, "bf16"), (None, "int8")])
def test_a_text_of_one_block_does_not_show_that_a_limit_on_the_loss_is_kept(tmp_path, limit, taken):
    losses = {"int8": graded("int8", 1.001, math.nan, "1 block, no interval"), "nf4": 1.2}
    row = advice(tmp_path, losses=losses, limits={"ppl_loss_percent": limit})
    assert row["precision"] == taken
    assert (row["note"] == "Faster, but not known to keep the limits: int8 (sdpa, generate).") == bool(limit)


@pytest.mark.parametrize("use", ["one user", "smallest memory", "closest to the original"])
def test_where_each_loses_too_much_the_least_loss_is_named_and_not_taken(tmp_path, use):
    times, losses = TIMES | {"bf16": OOM}, {"int8": 1.1, "nf4": 1.2}
    row = advice(tmp_path, times, losses=losses, use=use)
    assert (row["precision"], row["verdict"]) == ("int8", "least loss in this study")
    said = "Every candidate is shown to lose more than 1 %; this one loses the least."
    assert row["note"] == said and row["sentence"].startswith("Least loss in this study: int8 (sdpa, generate), ")
    assert row["sentence"].endswith(f"Perplexity +10 %, a loss shown to exceed the margin. {said}")
    row = advice(tmp_path, times, losses=losses, use="one user", limits={"ppl_loss_percent": 30.0})
    assert (row["precision"], row["verdict"], row["note"]) == ("nf4", "take", "")  # the user allows it


NOISY = [9.0, 10.0, 14.0]


def test_too_noisy_to_say_names_both(tmp_path):
    row = advice(tmp_path, {"bf16": 60.0, "int8": [10.0, 10.0, 10.0], "fp8": NOISY}, losses={"int8": 1.0, "fp8": 1.0})
    assert (row["verdict"], row["precision"], row["instead"]) == ("too noisy to say", "int8", "fp8 (sdpa, generate)")
    assert row["sentence"].startswith("Too noisy to say: int8 (sdpa, generate) or fp8 (sdpa, generate), ")
    times = {"bf16": 20.0, "again": 20.0, "int8": 10.0, "fp8": [15.0, 21.3, 10.563]}
    row = advice(tmp_path, times, losses={"int8": 1.0, "fp8": 1.0})
    assert (row["verdict"], row["precision"]) == ("take", "int8")  # fp8 is shown to be slower: "again" widens nothing
    crowd = {f"int{bits}": NOISY[bits % 3 :] + NOISY[: bits % 3] for bits in (3, 4, 5, 6, 7)}
    row = advice(tmp_path, {"bf16": 60.0} | crowd, losses=dict.fromkeys(crowd, 1.0))
    assert row["verdict"] == "too noisy to say" and row["instead"].count(";") == 2  # three names at most
    first, second, third = row["instead"].split("; ")
    assert f"{first}, {second} or {third}, " in row["sentence"]


@pytest.mark.parametrize(
    ("tpot_ms", "device_gib", "taken"),
    [
        (10.5, 80.0, "int8"),  # 5 of 80 GiB are 6 %
        (10.5, 120.0, "bf16"),  # 4 %
        (11.5, 80.0, "bf16"),  # slower by more than the margin
        ([10.0, 11.6, 9.6], 80.0, "bf16"),  # not shown to be within it
        (9.5, 120.0, "int8"),
    ],
)
def test_a_slower_one_is_taken_where_it_is_shown_to_be_as_fast_and_saves_memory(tmp_path, tpot_ms, device_gib, taken):
    row = advice(tmp_path, {"bf16": 10.0, "int8": tpot_ms}, device_gib=device_gib)
    assert row["precision"] == taken


def test_unknown_quality_is_never_taken(tmp_path):
    losses = {"int8": graded("int8", None, status="error"), "nf4": 1.2}
    table = answers(tmp_path, losses=losses)[1]  # nf4 is excluded
    row = only(table, use="one user")
    assert (row["precision"], row["verdict"]) == ("bf16", "take")
    assert row["note"] == "Faster, but what it loses is not known: int8 (sdpa, generate)."
    assert row["sentence"].endswith(f"It is the original. {row['note']}")
    row = only(table, use="smallest memory")
    assert row["precision"] == "bf16" and row["note"].startswith("Smaller, but what it loses is not known: int8")
    assert advice(tmp_path, TIMES | {"int8": 30.0}, losses=losses)["note"] == ""  # it is slower too
    table = answers(tmp_path, losses={})[1]
    assert (table["verdict"] != "take").all() and only(table, use="one user")["precision"] == "nf4"
    assert only(table, use="one user")["sentence"].endswith("is not known: it was not compared with the original.")
    row = only(table, use="smallest memory")
    assert (row["verdict"], row["precision"]) == ("least memory in this study", "nf4")
    assert row["sentence"].startswith("Least memory in this study: nf4 (sdpa, generate), ")


def test_what_is_not_finite_is_never_taken(tmp_path):
    """However fast and small it is."""
    lost = graded("nf4", None, status="overflow", reason="not finite at layer 3") | {
        "ppl": math.nan,
        "kl_nats": math.nan,
    }
    table, found = answers(tmp_path, losses=LOSSES | {"nf4": lost})
    row = only(table, precision="nf4")
    assert row["ppl_verdict"] == "overflow" and row["reason"] == "quality: not finite at layer 3"
    assert set(found["precision"]) == {"int8"} and "nf4" not in " ".join(found["instead"])


def test_only_what_is_not_finite_is_nothing_to_take(tmp_path):
    losses = {name: graded(name, None, status="overflow", reason="x") for name in ("int8", "nf4")}
    found = advice(tmp_path, {"int8": 10.0, "nf4": 5.0}, {"int8": 7.0, "nf4": 4.0}, losses)
    assert (found["verdict"], found["sentence"]) == (
        "nothing meets the limits",
        "No configuration keeps to numbers that are finite.",
    )


def test_the_headline_is_at_the_protocol_as_the_tokenizer_begins_it(tmp_path):
    losses = {name: graded(name, ratio, protocol="w1024-bos") for name, ratio in (LOSSES | {"bf16": None}).items()}
    table, _ = answers(tmp_path, losses=losses)
    assert only(table, precision="int8")["ppl_ratio"] == pytest.approx(1.001)


def test_random_weights_are_chosen_by_speed_and_memory_and_never_taken(tmp_path):
    limits = {"ppl_loss_percent": 1.0, "top1_agreement": 0.99, "memory_gib": 8.0}
    table = answers(tmp_path, losses={}, weights="synthetic", limits=limits)[1]
    assert table["use"].tolist() == ["one user", "smallest memory"] and set(table["precision"]) == {"nf4"}
    assert table["verdict"].tolist() == ["fastest in this study", "least memory in this study"]
    assert "What it loses is not known: the weights are random." in table["sentence"][0]
    times = {"bf16": 60.0, "int8": [10.0, 10.0, 10.0], "fp8": NOISY, "nf4": NOISY[::-1]}
    row = advice(tmp_path, times, losses={}, weights="synthetic")
    assert row["verdict"] == "fastest in this study" and row["instead"].count(";") == 1
    assert f" Perhaps as fast: {row['instead'].replace('; ', ' or ')}. What it loses" in row["sentence"]


def test_evidence_grades_processes_and_weights(tmp_path):
    grades = [advice(tmp_path, panels=number)["evidence"] for number in (1, 2, 3, 4, 5)]
    assert grades == ["C", "C", "B", "B", "A"] and advice(tmp_path, panels=5, weights="synthetic")["evidence"] == "B"


def test_the_smallest_memory_takes_the_faster_of_two_and_says_where_memory_is_unknown(tmp_path):
    memory = {"bf16": 12.0, "int8": 6.0, "int8.sdpa.graph": 6.0 + 2 / 1024}  # a page of the driver more
    row = advice(tmp_path, TIMES | {"int8.sdpa.graph": 8.0}, memory, use="smallest memory")
    assert (row["verdict"], row["precision"], row["runtime"], row["speedup"]) == ("take", "int8", "graph", 2.5)
    row = advice(tmp_path, TIMES | {"int8.sdpa.graph": 8.0}, memory | {"int8": 5.9}, use="smallest memory")
    assert row["runtime"] == "generate"
    row = advice(tmp_path, memory={"other": 1.0}, use="smallest memory")
    assert (row["verdict"], row["sentence"]) == ("not measured", "Memory was not measured.")


def test_the_closest_to_the_original_is_another_precision_by_divergence(tmp_path):
    times = TIMES | {"int8.sdpa.graph": 8.0}
    row = advice(tmp_path, times, use="closest to the original", limits={"ppl_loss_percent": 30.0})
    assert (row["verdict"], row["precision"], row["runtime"]) == ("take", "int8", "graph")
    for lost in ({"kl_nats": math.nan}, {"ppl_ratio": math.nan}):
        row = advice(tmp_path, losses={"int8": graded("int8", 1.001, **lost)}, use="closest to the original")
        assert row["verdict"] == "not measured" and pd.isna(row["precision"])
        assert row["sentence"] == "No other precision was compared with the original."


def uses(*workloads, real=True):
    given = [dict(zip(AT, workload)) for workload in workloads]
    return [(case.use, (*case.workload.values(),), case.quantity) for case in cases(given[0], given, real)]


def test_uses_are_those_that_the_workloads_tell_something_about():
    one, long, longest, wide, wider = (1, 128, 32), (1, 1024, 8), (1, 4096, 32), (8, 512, 32), (8, 128, 32)
    user, small, close = ((use, one, "tpot") for use in ("one user", "smallest memory", "closest to the original"))
    assert uses(one) == [user, small, close] and uses(one, real=False) == [user, small]
    serving = ("batch serving", wider, "e2e")  # the shorter prompt of two with as many rows
    every = [user, ("long context", longest, "tpot"), serving, small, close]
    assert uses(one, long, longest, wide, wider) == every and uses(wide, longest, one)[0] == user
    assert uses(long, one)[0] == ("one user", long, "tpot") and uses(wide)[0] == ("batch serving", wide, "e2e")


def test_each_use_looks_at_the_time_that_counts_at_its_workload(tmp_path):
    long, wide = AT | {"prompt_tokens": 4096}, AT | {"batch": 8, "new_tokens": 2}
    more = [(long, {"bf16": 20.0, "int8": 10.0, "fp8": 5.0}, {})]
    # of a whole call fp8 is the fastest, bf16 comes late to its first token
    more.append((wide, {"bf16": 1.0, "int8": 30.0, "fp8": 20.0}, {"ttft_ms": {"bf16": 99.0}}))
    times = {"bf16": 20.0, "int8": 5.0, "fp8": 10.0}
    table = answers(tmp_path, times, {"bf16": 9.0}, {"int8": 1.0, "fp8": 1.0}, more=more)[1].set_index("use")
    assert table["precision"].tolist()[:3] == ["int8", "fp8", "fp8"]
    row = table.loc["batch serving"]
    assert row[["batch", "new_tokens", "tpot_ms", "speedup"]].tolist() == [8, 2, 20, 4]


def test_where_nothing_was_measured_it_says_why(tmp_path):
    table = answers(tmp_path, dict.fromkeys(("bf16", "int8"), OOM))[1]
    assert set(table["verdict"]) == {"not measured"} and set(table["status"]) == {"oom"}
    assert set(table["reason"]) == {"bf16 (sdpa, generate): oom; int8 (sdpa, generate): oom"}
    assert set(table["sentence"]) == {"No configuration was measured at this workload."}
    more = [(AT | {"batch": 64}, {"bf16": OOM, "int8": OOM | {"status": "timeout"}}, {})]
    row = advice(tmp_path, more=more, use="batch serving")
    assert (row["verdict"], row["status"]) == ("not measured", "oom")
    assert row["reason"] == "bf16 (sdpa, generate): oom; int8 (sdpa, generate): timeout"
    row = advice(tmp_path, workloads={"m": [AT, AT | {"batch": 32}]}, use="batch serving")
    assert row[["status", "reason"]].tolist() == ["error", "this workload was not measured"]
