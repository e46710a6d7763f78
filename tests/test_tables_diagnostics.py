"""Tables of the diagnostics: units, medians, and one row with a status where nothing was measured."""

import math

import numpy as np
import pandas as pd
import pytest
from llmstudy.stats.crossover import CrossOver
from llmstudy.stats.estimate import holm
from llmstudy.tables import Sources, capacity
from llmstudy.tables.crossover import sentence
from llmstudy.tables.diagnostics import limit_of
from table_kit import OOM, make, only, write_record


def table_of(folder, kind, results, settings=None, **changes):
    return make(folder, kind, [write_record(folder, kind, results, settings, **changes)])


@pytest.mark.parametrize("kind", ["outliers", "sensitivity", "invariance", "profile"])
def test_a_failed_record_is_one_row_with_its_status(tmp_path, kind):
    table = table_of(tmp_path, kind, {}, **OOM)
    assert table[["status", "reason"]].values.tolist() == [["oom", "CUDA out of memory"]]


def test_outliers_have_a_row_per_linear_and_threshold(tmp_path):
    shares = {"column_share": 0.01, "row_share": 0.5, "entry_share": 0.001}
    entry = {"layer": 3, "linear": "down_proj", "columns": 1536, "max_abs": 70.5}
    entry["thresholds"] = [{"threshold": threshold, **shares} for threshold in (4.0, 6.0)]
    table = table_of(tmp_path, "outliers", {"tokens": 99, "linears": [entry]})
    assert table["threshold"].tolist() == [4.0, 6.0]
    row = table.loc[1, ["layer", "linear", "max_abs", "row_share", "tokens"]]
    assert row.tolist() == [3, "down_proj", 70.5, 0.5, 99]


def test_sensitivity_names_what_a_part_spans(tmp_path):
    numbers = {"delta_nll": 0.01, "se": 0.002, "low": 0.005, "high": None, "kl": 0.03, "kl_se": 0.001}
    parts = [(None, None), (4, None), (None, "q_proj"), (4, "q_proj")]
    results = {"tokens": 99, "nll": 3.0, "blocks": "8 documents"}
    results["parts"] = [{"layer": layer, "linear": linear} | numbers for layer, linear in parts]
    table = table_of(tmp_path, "sensitivity", results)
    spans = table[["layer", "linear"]].astype(str).values.tolist()
    assert spans == [["all", "all"], ["4", "all"], ["all", "q_proj"], ["4", "q_proj"]]
    assert table["delta_nll_se"].tolist() == [0.002] * 4 and table["delta_nll_high"].isna().all()
    t = 2.364624  # Student's with 7 degrees of freedom
    assert table.loc[0, ["kl_nats", "kl_low_nats", "kl_high_nats"]].tolist() == pytest.approx(
        [0.03, 0.03 - t * 0.001, 0.03 + t * 0.001], rel=1e-5
    )


def test_invariance_keeps_a_batch_that_failed(tmp_path):
    good = {"batch": 2, "neighbours": "copies", "status": "ok", "reason": ""}
    good |= {"max_abs_delta_logit": 0.5, "mean_abs_delta_logit": 0.1, "top1_changes": 3}
    bad = {"batch": 8, "neighbours": "others 1"} | OOM
    table = table_of(tmp_path, "invariance", {"positions": 64, "batches": [good, bad]})
    assert table["status"].tolist() == ["ok", "oom"]
    assert table["top1_changes"].tolist()[0] == 3 and math.isnan(table["top1_changes"][1])
    assert table["positions"].tolist() == [64, 64]


PROFILE = {
    "workload": {"batch": 1, "prompt_tokens": 32, "new_tokens": 10},
    "bandwidth_gb_s": 4000.0,
    "matmul_tflops": 500.0,
    "step_bytes": 8_000_000_000,
    "step_flops": 14_000_000_000,
    "tpot_ms": 8.0,
    "step": {"launches": 100.0, "waits": 2.0, "operators": 300.0, "kernels": 110.0, "busy_ms": 2.0}
    | {"profiled_ms": 16.0, "matmul_share": 0.7, "top": [["gemv", 0.6], ["rms_norm", 0.1]]},
}


def test_profile_of_a_gpu(tmp_path):
    row = only(table_of(tmp_path, "profile", PROFILE, device="cuda"))
    assert row["launches_per_token"] == 100 and row["syncs_per_token"] == 2 and row["kernels_per_token"] == 110
    assert row["device_busy_share"] == pytest.approx(2 / 8)
    assert row["mbu"] == pytest.approx(8e9 / 8e-3 / 4e12)  # 0.25
    assert row["flops_share"] == pytest.approx(14e9 / 8e-3 / 5e14)
    assert row["limit"] == "launch-bound"
    assert row["top_operations"] == "gemv 60%; rms_norm 10%"


def test_profile_of_a_cpu_has_no_launches(tmp_path):
    row = only(table_of(tmp_path, "profile", PROFILE))
    assert math.isnan(row["launches_per_token"]) and math.isnan(row["kernels_per_token"])
    assert row["operators_per_token"] == 300
    assert row["device_busy_share"] == pytest.approx(2 / 16)


@pytest.mark.parametrize(
    ("mbu", "flops", "busy", "limit"),
    [
        (0.8, 0.01, 0.9, "bandwidth-bound"),
        (0.5, 0.01, 0.1, "bandwidth-bound"),
        (0.6, 0.7, 0.9, "compute-bound"),
        (0.2, 0.1, 0.3, "launch-bound"),
        (0.2, 0.1, 0.9, "overhead-bound"),
    ],
)
def test_limit(mbu, flops, busy, limit):
    assert limit_of(mbu, flops, busy) == limit


def test_attention_rates_and_what_does_not_apply(tmp_path):
    point = {"context": 1024, "status": "ok", "reason": "", "max_abs_error": 1e-3, "kernels": ["flash"]}
    results = {"heads": 32, "kv_heads": 8, "head_dim": 128}
    results["points"] = [
        point | {"phase": "prefill", "time_ms": [1.0, 2.0, 4.0], "extra_bytes": 8 * 2**20},
        point | {"phase": "decode", "time_ms": [0.5], "extra_bytes": None},
    ]
    prefill, decode = table_of(tmp_path, "attention", results, {"contexts": [1024]}).to_dict("records")
    assert (prefill["time_ms"], prefill["time_low_ms"], prefill["time_high_ms"]) == (2.0, 1.0, 4.0)
    assert prefill["tflops"] == pytest.approx(4 * 32 * 128 * 1024**2 / 2 / 2e-3 / 1e12)
    assert prefill["extra_mib"] == 8 and prefill["prompt_tokens"] == 1024 and math.isnan(prefill["gb_s"])
    assert decode["gb_s"] == pytest.approx(2 * 8 * 1024 * 128 * 2 / 0.5e-3 / 1e9, rel=1e-5)
    assert math.isnan(decode["tflops"]) and math.isnan(decode["prompt_tokens"]) and math.isnan(decode["extra_mib"])


def test_attention_that_stopped_has_a_row_for_every_point(tmp_path):
    table = table_of(tmp_path, "attention", {}, {"contexts": [512, 1024]}, status="timeout", reason="stopped")
    assert table[["context", "phase", "status"]].values.tolist() == [
        [context, phase, "timeout"] for context in (512, 1024) for phase in ("prefill", "decode")
    ]


# ------------------------------------------------------------------------------------------------------- cross-overs


ROW = {"study": "s", "model": "m", "weights": "real", "runtime": "generate", "device": "cpu", "status": "ok"}
ROW |= {"reason": "", "new_tokens": 8, "tokens_per_s": 1.0, "ttft_ms": 10.0, "process": 0, "again": "no"}


def crossovers(folder, rows, *records):
    table = make(folder, "crossover", records, {"processes": pd.DataFrame(rows)})
    return table.set_index(["attention", "quantity"])


def test_crossovers_of_precisions_and_of_attention_kernels(tmp_path):
    rows = []
    for batch in (1, 4, 16):  # int8 has batch² / 4 times the tokens/s of fp32: even at batch 2
        for precision, rate in (("fp32", 100.0), ("int8", 100.0 * batch**2 / 4)):
            cell = ROW | {"precision": precision, "attention": "sdpa", "batch": batch, "prompt_tokens": 64}
            rows.append(cell | {"tokens_per_s": rate})
            rows += [
                cell | {"tokens_per_s": 9e9} | more for more in ({"again": "yes"}, {"group": 1})
            ]  # of the reference
            if batch == 1 or precision == "fp32":  # a single common point is no grid
                rows.append(cell | {"runtime": "graph"})
    for prompt in (256, 1024):  # twice as slow at 256 tokens, twice as fast at 1 024: even at 512
        for attention, ttft in (("eager", 10.0 * prompt / 256), ("sdpa", 20.0)):
            cell = ROW | {"precision": "fp32", "attention": attention, "batch": 2, "prompt_tokens": prompt}
            rows.append(cell | {"ttft_ms": ttft})
    table = crossovers(tmp_path, rows)
    assert len(table) == 2
    row = table.loc[("sdpa", "tokens_per_s")]
    assert row[["precision", "reference", "kind", "study", "device", "along", "text"]].tolist() == [
        *("int8", "fp32", "overtakes", "s", "cpu", "batch", "overtakes at 2")
    ]
    row = table.loc[("sdpa", "ttft_ms")]
    assert row[["reference", "kind", "along"]].tolist() == ["eager", "overtakes", "prompt_tokens"]
    assert row["x"] == pytest.approx(512)


def test_one_workload_has_no_crossover(tmp_path):
    cell = ROW | {"attention": "sdpa", "batch": 1, "prompt_tokens": 64}
    assert crossovers(tmp_path, [cell | {"precision": precision} for precision in ("fp32", "nf4")]).empty


def kernel_alone(folder, kernel, times, **changes):
    """Write the record of one attention kernel; ``times``: (context, phase) → ms per repeat, or a status."""
    points = [
        {"context": context, "phase": phase, "reason": ""}
        | ({"status": time_ms} if isinstance(time_ms, str) else {"status": "ok", "time_ms": time_ms})
        for (context, phase), time_ms in times.items()
    ]
    return write_record(folder, "attention", {"points": points}, precision="bf16", attention=kernel, **changes)


def test_attention_kernels_alone_cross_over_along_the_context(tmp_path):
    """Quadratic against linear time, equal at 1 000; decode equal nowhere; a kernel that failed from 4 000 on."""
    contexts = (250, 500, 2000, 4000)
    curves = {
        "eager": {"prefill": lambda n: n**2 / 1e3, "decode": lambda n: n / 100},
        "sdpa": {"prefill": lambda n: n, "decode": lambda n: n / 90},
        "sdpa-flash": {"prefill": lambda n: n / 10 if n < 4000 else "oom", "decode": lambda n: "unsupported"},
    }
    records = []
    for kernel, phases in curves.items():
        times = {(n, phase): time(n) for n in contexts for phase, time in phases.items()}
        repeats = {key: ms if isinstance(ms, str) else [ms * 0.99, ms / 0.99] for key, ms in times.items()}
        records.append(kernel_alone(tmp_path, kernel, repeats))
    records.append(kernel_alone(tmp_path, "sdpa-math", {}, status="timeout", reason="long"))
    cell = ROW | {"precision": "fp32", "attention": "sdpa", "batch": 1, "prompt_tokens": 64}
    table = crossovers(tmp_path, [cell], *records)
    assert len(table) == 3 and set(table["along"]) == {"context"} and set(table["reference"]) == {"eager"}
    row = table.loc[("sdpa", "prefill_ms")]
    assert row["kind"] == "overtakes" and row["low"] < row["x"] < row["high"]
    assert row["x"] == pytest.approx(1000, rel=1e-5) and row["text"].startswith("overtakes at 1000 (95 %")
    assert row[["study", "model", "precision", "status"]].tolist() == ["tiny", "m", "bf16", "ok"]
    assert table.loc[("sdpa", "decode_ms"), "text"] == "behind throughout: none up to 4000"
    # the two points below 4 000 that both measured, and 2 000
    assert table.loc[("sdpa-flash", "prefill_ms"), "text"] == "ahead throughout, from 250 to 2000"


@pytest.mark.parametrize(
    ("crossing", "words"),
    [
        (CrossOver("falls behind", 2048.4, math.nan, math.nan, 1), "falls behind at 2048"),
        (CrossOver("overtakes", 2.0, 0, 7.77, 1), "overtakes at 2 (95 % interval below 1 to 7.77)"),
        (CrossOver("overtakes", 2.0, 1.5, math.inf, 1), "overtakes at 2 (95 % interval 1.5 to beyond 8192)"),
        (CrossOver("overtakes", 2.0, math.nan, math.nan, 2), "overtakes at 2, the first of 2 changes"),
    ],
)
def test_a_crossover_in_words(crossing, words):
    assert sentence(crossing, [1, 8192]) == words


# ---------------------------------------------------------------------------------------------------------- capacity


@pytest.fixture
def probes() -> pd.DataFrame:
    """probes.csv of a GPU: 10 GiB of weights, and 2⁻¹⁰ GiB for each token of each sequence."""
    rows = []
    for batch, status in ((1, "ok"), (4, "ok"), (64, "oom")):
        gib = 10 + batch * 1024 / 1024
        cell = ROW | {"precision": "bf16", "attention": "sdpa", "batch": batch, "prompt_tokens": 1000}
        cell |= {"new_tokens": 24, "device": "cuda", "peak_load_gib": 10.0}
        sizes = {"weights_gib": 10.0, "kv_cache_gib": batch * 1.0, "peak_prefill_gib": gib, "peak_decode_gib": gib}
        rows.append(cell | (sizes if status == "ok" else {"status": "oom"}))
    return pd.DataFrame(rows)


def test_capacity_with_what_was_really_measured(tmp_path, probes):
    failed = probes.assign(precision="fp32", status="error", reason="driver")
    single = probes[:1].assign(precision="nf4")
    host = probes.assign(precision="int8", device="cpu")  # whose peak is a reading of chance
    table = make(tmp_path, "capacity", sources={"probes": pd.concat([probes, failed, single, host])})
    short, long = table[table["precision"] == "bf16"].to_dict("records")
    assert (short["context_tokens"], short["largest_batch"], short["first_too_large"]) == (1024, 30, 31)
    assert (short["fits_gib"], short["too_large_gib"], short["residual_gib"]) == (40, 41, 0)
    assert (short["largest_ok"], short["smallest_oom"]) == (4, 64)
    assert (short["study"], short["device"], short["status"], short["device_gib"]) == ("s", "cuda", "ok", 40)
    assert pd.isna([short[name] for name in ("usable_gib", "verified_fits", "prediction")]).all()
    assert (long["context_tokens"], long["largest_batch"]) == (2048, 15) and pd.isna(long["largest_ok"])
    assert "int8" not in set(table["precision"])
    assert only(table, precision="fp32")[["status", "reason"]].tolist() == ["error", "driver"]
    too_few = "probes.csv: the memory model needs at least 2 measured workloads, there is 1"
    assert only(table, precision="nf4")[["status", "reason"]].tolist() == ["unsupported", too_few]


def capacities(probes, *records, contexts=(1024, 2048)) -> list[dict]:
    study = {"capacity": {"contexts": contexts, "device_gib": 40.0}}
    return capacity.capacity(Sources(list(records), {"probes": probes}, study))


def capacity_record(runs: dict[int, str], status="ok", **results) -> dict:
    """Return the record of a verification that had 39.5 GiB of the 40, so that 29 fit."""
    results = {"context_tokens": 1024, "usable_gib": 39.5, "largest_batch": 29, "below": 28, "above": 31} | results
    results["runs"] = [{"batch": batch, "status": outcome, "reason": ""} for batch, outcome in runs.items()]
    record = {"status": status, "reason": "" if status == "ok" else "why", "results": results}
    identity = ROW | {"kind": "capacity", "precision": "bf16", "attention": "sdpa"}
    return record | {"identity": identity, "settings": {"contexts": [1024, 2048]}}


@pytest.mark.parametrize(
    ("runs", "fits", "too_large", "prediction"),
    [
        ({28: "ok", 31: "oom"}, 28, 31, "held"),
        ({28: "oom", 25: "ok", 26: "ok", 27: "ok"}, 27, 28, "missed"),
        ({28: "ok", 31: "ok", 34: "oom", 32: "ok", 33: "oom"}, 32, 33, "missed"),
        ({28: "ok", 31: "ok", 34: "ok", 40: "ok", 52: "ok"}, 52, None, "missed"),
    ],
)
def test_what_was_verified_is_beside_its_prediction(probes, runs, fits, too_large, prediction):
    short, long = capacities(probes, capacity_record(runs))
    assert (short["device_gib"], short["usable_gib"], short["largest_batch"]) == (40.0, 39.5, 29)
    assert (short["verified_fits"], short["verified_oom"], short["prediction"]) == (fits, too_large, prediction)
    assert long["largest_batch"] == 14 and "prediction" not in long  # 29.5 / 2


def test_a_model_that_does_not_fit_at_all_holds_its_prediction(probes):
    nothing = capacity_record({1: "oom"}, usable_gib=9.0, largest_batch=0, below=0, above=1)
    (row,) = capacities(probes, nothing, contexts=[1024])
    assert (row["largest_batch"], row["verified_fits"], row["verified_oom"], row["prediction"]) == (0, 0, 1, "held")


def test_a_verification_that_failed_says_so_at_its_context(probes):
    (row,) = capacities(probes, capacity_record({28: "ok"}, status="timeout"), contexts=[1024])
    assert (row["verified_fits"], row["verified_oom"]) == (28, None)
    assert (row["status"], row["prediction"], row["prediction_reason"]) == ("ok", "timeout", "why")
    never = capacity_record({}, status="unsupported") | {"results": {}}
    short, long = capacities(probes, never)
    assert "prediction" not in short and long["prediction"] == "unsupported" and long["largest_batch"] == 15


def test_the_measured_device_is_the_default(tmp_path, probes):
    hardware = [{"host_memory_gib": 23.5}, {"host_memory_gib": 128.0, "gpu": {"memory_gib": 139.8}}]
    assert [*map(capacity.device_memory_gib, hardware), capacity.device_memory_gib({})] == [23.5, 139.8, math.inf]
    record = write_record(tmp_path, "probe", {}, {"workloads": []}, provenance=hardware[0])
    study = {"capacity": {"contexts": [1024], "device_gib": None}}
    assert make(tmp_path, "capacity", [record], {"probes": probes}, **study)["device_gib"].tolist() == [23.5]


# ------------------------------------------------------------------------------------------------------------- tasks


RIGHT = [1] * 60 + [0] * 40  # of the reference; its answers are all "0"


def task_record(folder, precision, correct=None, answer=None, document=None, model="m", **failure):
    """Write a record and its arrays; ``correct`` and ``answer`` are the reference's by default."""
    entry = {"task": "quiz", "status": "ok", "reason": "", "metric": "acc", "documents": 100} | failure
    correct = np.array(RIGHT if correct is None else correct, dtype=np.int8)
    document = np.arange(len(correct), dtype=np.uint64) if document is None else document
    arrays = {"quiz/correct": correct, "quiz/answer": np.array(answer or ["0"] * 100), "quiz/document": document}
    arrays = None if failure else arrays
    results, settings = {"tasks": [entry]}, {"tasks": ["quiz"]}
    return write_record(folder, "tasks", results, settings, arrays, precision=precision, model=model)


def tasks_of(folder, *paths):
    return make(folder, "tasks", paths, headline={model: {"reference": "fp32"} for model in ("m", "n")})


def flipped(lost: int, gained: int) -> dict:
    """Return the answers of a precision that loses the first ``lost`` right ones and gains the first ``gained`` wrong
    ones; one more wrong answer is another wrong one."""
    correct, answer = RIGHT.copy(), ["0"] * 100
    for number in [*range(lost), *range(60, 60 + gained)]:
        correct[number], answer[number] = 1 - correct[number], "1"
    answer[99] = "2"
    return {"correct": correct, "answer": answer}


def test_flips_against_the_reference(tmp_path):
    table = tasks_of(tmp_path, task_record(tmp_path, "fp32"), task_record(tmp_path, "nf4", **flipped(9, 1)))
    reference, nf4 = table.to_dict("records")
    assert (reference["accuracy"], nf4["accuracy"], nf4["documents"]) == (0.6, 0.52, 100)
    # the closed form of Wilson's interval for 60 of 100
    z = 1.959964
    half = z * math.sqrt(0.6 * 0.4 / 100 + z**2 / 40_000) / (1 + z**2 / 100)
    middle = (0.6 + z**2 / 200) / (1 + z**2 / 100)
    assert reference["accuracy_low"] == pytest.approx(middle - half, rel=1e-5)
    assert reference["accuracy_high"] == pytest.approx(middle + half, rel=1e-5)
    assert nf4["accuracy_change"] == pytest.approx(-0.08)
    assert nf4["accuracy_change_low"] < -0.08 < nf4["accuracy_change_high"] < 0
    assert (nf4["answers_changed"], nf4["correct_to_wrong"], nf4["wrong_to_correct"]) == (11, 9, 1)
    assert nf4["mcnemar_p"] == pytest.approx(2 * (1 + 10) / 2**10, rel=1e-5)
    assert nf4["distinguishable"] == "yes"
    for column in ("accuracy_change", "answers_changed", "mcnemar_p", "mcnemar_p_holm", "distinguishable"):
        assert pd.isna(reference[column])


def test_equal_accuracy_can_hide_many_flips(tmp_path):
    paths = task_record(tmp_path, "fp32"), task_record(tmp_path, "nf4", **flipped(20, 20))
    _, row = tasks_of(tmp_path, *paths).to_dict("records")
    assert (row["accuracy_change"], row["answers_changed"], row["mcnemar_p"]) == (0, 41, 1)
    assert row["distinguishable"] == "no"


def test_p_values_are_adjusted_within_a_model(tmp_path):
    flips = {"bf16": (1, 1), "nf4": (9, 1), "fp4": (8, 1)}
    paths = [task_record(tmp_path, "fp32")]
    paths += [task_record(tmp_path, name, **flipped(*counts)) for name, counts in flips.items()]
    paths += [task_record(tmp_path, "fp32", model="n"), task_record(tmp_path, "nf4", model="n", **flipped(9, 1))]
    table = tasks_of(tmp_path, *paths).dropna(subset="mcnemar_p").set_index(["model", "precision"])
    p = [1, 22 / 1024, 20 / 512]
    assert table.loc["m", "mcnemar_p"].tolist() == pytest.approx(p, rel=1e-5)
    assert table.loc["m", "mcnemar_p_holm"].tolist() == pytest.approx(holm(np.array(p)), rel=1e-5)
    assert table.loc["m", "distinguishable"].tolist() == ["no"] * 3
    assert table.loc[("n", "nf4"), "distinguishable"] == "yes"


def test_other_documents_are_an_error_and_not_a_comparison(tmp_path):
    other = task_record(tmp_path, "nf4", document=np.arange(1, 101, dtype=np.uint64))
    row = tasks_of(tmp_path, task_record(tmp_path, "fp32"), other).iloc[1]
    assert (row["status"], row["reason"]) == ("error", "not the documents of the reference: measure both again")
    assert row["accuracy"] == 0.6 and pd.isna(row["accuracy_change"]) and pd.isna(row["mcnemar_p"])


def test_what_failed_is_a_row_and_costs_the_others_their_comparison_alone(tmp_path):
    failed = task_record(tmp_path, "fp32", **OOM)
    never = write_record(tmp_path, "tasks", {}, {"tasks": ["quiz"]}, precision="bf16", status="timeout")
    table = tasks_of(tmp_path, failed, never, task_record(tmp_path, "nf4", **flipped(9, 1)))
    assert table["status"].tolist() == ["oom", "timeout", "ok"]
    assert table["task"].tolist() == ["quiz"] * 3
    assert table.loc[2, "accuracy"] == 0.52 and pd.isna(table.loc[2, "mcnemar_p"])
