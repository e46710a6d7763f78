"""Tables from hand-made records: right medians and units, a status and a reason where a number is missing, never 0."""

import math

import numpy as np
import pandas as pd
import pytest
from llmstudy.runner import record as records
from llmstudy.tables import generations
from llmstudy.tables import memory, quality, summary, text
from llmstudy.tables import processes
from llmstudy.tables.columns import SHARED
from llmstudy.tables.columns import read_table

GIB = 2**30
WORKLOADS = [
    {"batch": 2, "prompt_tokens": 100, "new_tokens": 4},
    {"batch": 8, "prompt_tokens": 100, "new_tokens": 4},
]
PROTOCOLS = [{"window": 64, "stride": 32}, {"window": 128, "stride": 128}]
OOM = {"status": "oom", "reason": "CUDA out of memory"}


@pytest.fixture
def record(tmp_path):
    """Write a record; returns its path as a rule's input gives it."""

    def record(kind, found, precision="bf16", settings=None, repeat=0, arrays=None, **told):
        identity = {
            "study": "tiny",
            "kind": kind,
            "model": "m",
            "weights": "real",
            "precision": precision,
            "attention": "sdpa",
            "runtime": "generate",
            "repeat": repeat,
            "device": "cpu",
        }
        content = {
            "schema": records.SCHEMA,
            "identity": identity,
            "status": "ok",
            "reason": "",
            "traceback": [],
            "settings": settings or {},
            "provenance": {"threads": 2},
            "results": found,
        }
        path = tmp_path / "records" / kind / f"{precision}.sdpa.generate.r{repeat}.json"
        records.write(content | told, path)
        arrays_file = path.with_suffix(".npz")
        arrays_file.touch()
        if arrays:
            np.savez_compressed(arrays_file, **arrays)
        return str(path)

    return record


def table(module, paths, tmp_path, *arguments):
    output = tmp_path / f"{module.__name__.rsplit('.', 1)[-1]}.csv"
    module.write(paths, *arguments, output)
    frame = read_table(output)
    assert list(frame.columns) == module.COLUMNS and list(frame.columns[: len(SHARED)]) == SHARED
    return frame


def only(frame, **values):
    for column, value in values.items():
        frame = frame[frame[column] == value]
    assert len(frame) == 1
    return frame.iloc[0]


# ----------------------------------------------------------------------------------------------------------- latency


def runs():
    """Three runs with TPOT 10, 20 and 60 ms and TTFT 5, 7 and 100 ms."""
    return [
        {"ttft_ms": 5.0, "itl_ms": [9.0, 10.0, 11.0], "e2e_ms": 40.0},
        {"ttft_ms": 100.0, "itl_ms": [20.0, 20.0, 20.0], "e2e_ms": 160.0},
        {"ttft_ms": 7.0, "itl_ms": [10.0, 10.0, 160.0], "e2e_ms": 100.0},
    ]


def timed(workload, **changes):
    entry = {
        "workload": workload,
        "status": "ok",
        "reason": "",
        "runs": runs(),
        "cold_ms": 500.0,
        "compile_s": 0.0,
        "joules_per_token": None,
        "attention_kernels": ["flash"],
        "flags": ["not steady"],
        "conditions": {"before": {"load_average": 3.1, "cores": 2}},
    }
    return entry | changes


def latency_samples(*entries):
    return {
        "load_s": 1.5,
        "bandwidth_gb_s": 20.0,
        "step_weight_bytes": 300_000_000,
        "kv_bytes_per_token": 1000,
        "workloads": list(entries),
    }


def test_latency_takes_medians_over_the_runs_of_a_process(record, tmp_path):
    path = record("speed", latency_samples(*map(timed, WORKLOADS)), settings={"workloads": WORKLOADS}, repeat=3)
    row = only(table(latency, [path], tmp_path), batch=2)
    assert row["status"] == "ok" and row["reason"] == "" and row["repeat"] == 3
    assert (row["ttft_ms"], row["tpot_ms"], row["e2e_ms"]) == (7.0, 20.0, 100.0)
    assert row["tokens_per_s"] == pytest.approx(2 * 4 / 0.100)  # all rows of the batch over the whole call
    assert (row["cold_ms"], row["load_s"], row["compile_s"], row["threads"]) == (500.0, 1.5, 0.0, 2)
    # end to end 40, 100 and 160 ms
    assert row["flags"] == "not steady; load average 3.1 on 2 cores; timed calls 120 % apart"
    assert row["attention_kernels"] == "flash"
    assert row["runs"] == 3 and math.isnan(row["joules_per_token"])


@pytest.mark.parametrize(
    ("times", "flag"), [((100.0, 118.0, 110.0), ""), ((90.0, 100.0, 112.0), "timed calls 22 % apart"), ((100.0,), "")]
)
def test_timed_calls_that_lie_far_apart_are_flagged(record, tmp_path, times, flag):
    entry = timed(WORKLOADS[0], flags=[], runs=[run | {"e2e_ms": time} for run, time in zip(runs(), times)])
    entry["conditions"]["before"]["load_average"] = 0.1
    path = record("speed", latency_samples(entry), settings={"workloads": WORKLOADS[:1]})
    assert (only(table(latency, [path], tmp_path), batch=WORKLOADS[0]["batch"])["flags"] or "") == flag


def test_mbu_is_step_bytes_over_tpot_over_bandwidth(record, tmp_path):
    path = record("speed", latency_samples(*map(timed, WORKLOADS)), settings={"workloads": WORKLOADS})
    frame = table(latency, [path], tmp_path)
    for batch in (2, 8):
        row = only(frame, batch=batch)
        step_bytes = 300e6 + 1000 * batch * (100 + 4 / 2)  # weights, and the KV cache at the mean context
        assert row["step_bytes"] == pytest.approx(step_bytes)
        assert row["mbu"] == pytest.approx(step_bytes / 0.020 / 20e9, rel=1e-5)


def test_percentiles_stand_only_where_the_sample_supports_them(record, tmp_path):
    many = [{"ttft_ms": 1.0, "itl_ms": [float(gap) for gap in range(1, 101)], "e2e_ms": 1.0}]
    settings = {"workloads": WORKLOADS}
    path = record("speed", latency_samples(timed(WORKLOADS[0], runs=many), timed(WORKLOADS[1])), settings=settings)
    frame = table(latency, [path], tmp_path)
    row = only(frame, batch=2)
    assert row["itl_p50_ms"] == pytest.approx(50.5) and row["itl_p90_ms"] == pytest.approx(90.1)
    row = only(frame, batch=8)  # nine gaps
    assert math.isnan(row["itl_p50_ms"]) and math.isnan(row["itl_p90_ms"])


MEASURED = ["ttft_ms", "tpot_ms", "e2e_ms", "tokens_per_s", "mbu", "cold_ms", "step_bytes", "runs"]


def test_a_workload_that_failed_has_its_own_status_and_no_numbers(record, tmp_path):
    found = latency_samples(timed(WORKLOADS[0]), {"workload": WORKLOADS[1]} | OOM)
    frame = table(latency, [record("speed", found, settings={"workloads": WORKLOADS})], tmp_path)
    failed = only(frame, batch=8)
    assert (failed["status"], failed["reason"]) == ("oom", "CUDA out of memory")
    assert failed[MEASURED].isna().all()
    assert failed["load_s"] == 1.5  # the model did load
    assert only(frame, batch=2)["status"] == "ok"


@pytest.mark.parametrize("status", ["oom", "unsupported", "timeout", "error"])
def test_a_failed_record_has_a_row_for_every_workload(record, tmp_path, status):
    path = record("speed", {}, settings={"workloads": WORKLOADS}, status=status, reason="why it failed")
    frame = table(latency, [path], tmp_path)
    assert len(frame) == 2 and set(frame["status"]) == {status} and set(frame["reason"]) == {"why it failed"}
    assert frame[[*MEASURED, "load_s", "bandwidth_gb_s"]].isna().all(axis=None)
    assert frame["batch"].tolist() == [2, 8]


def test_what_a_killed_process_had_finished_counts(record, tmp_path):
    found = latency_samples(timed(WORKLOADS[0]))
    killed = {"status": "timeout", "reason": "stopped after its limit of 600 s"}
    frame = table(latency, [record("speed", found, settings={"workloads": WORKLOADS}, **killed)], tmp_path)
    assert only(frame, batch=2)["status"] == "ok" and only(frame, batch=2)["tpot_ms"] == 20.0
    assert only(frame, batch=8)["status"] == "timeout" and math.isnan(only(frame, batch=8)["tpot_ms"])


def test_every_record_has_its_rows(record, tmp_path):
    settings = {"workloads": WORKLOADS[:1]}
    paths = [
        record("speed", latency_samples(timed(WORKLOADS[0])), precision=name, settings=settings, repeat=repeat)
        for name in ("fp32", "bf16")
        for repeat in range(3)
    ]
    frame = table(latency, paths, tmp_path)
    assert len(frame) == 6 and not frame.duplicated(["precision", "repeat"]).any()


# ------------------------------------------------------------------------------------------------------------ memory


WEIGHTS = {
    "embeddings": {"bfloat16": GIB},
    "linears": {"int8": 2 * GIB, "float32": GIB // 2},
    "norms": {},
    "head": {"bfloat16": GIB},
    "other": {"float32": 0},
}


def phase(peak_gib, rss_gib, cuda=False):
    found = {"peak_rss_bytes": int(rss_gib * GIB), "peak_rss_growth_bytes": int(peak_gib * GIB)}
    if cuda:
        found |= {"peak_allocated_bytes": 7 * GIB, "peak_reserved_bytes": 8 * GIB, "driver_bytes": 9 * GIB}
    return found


def held(workload, cuda=False, **changes):
    entry = {
        "workload": workload,
        "status": "ok",
        "reason": "",
        "prefill": phase(5.5, 6.0, cuda),
        "decode": phase(6.0, 6.5, cuda),
        "kv_cache_bytes": GIB,
        "kv_cache_measured_prefill_bytes": GIB // 2,
    }
    return entry | changes


def memory_samples(*entries, cuda=False):
    return {"load": phase(5.0, 5.5, cuda), "weights": WEIGHTS, "kv_bytes_per_token": 1, "workloads": list(entries)}


def test_memory_in_gib_by_component_and_phase(record, tmp_path):
    path = record("memory", memory_samples(held(WORKLOADS[0])), settings={"workloads": WORKLOADS[:1]})
    row = only(table(memory, [path], tmp_path))
    assert row["weights_gib"] == 4.5
    assert [row[f"{name}_gib"] for name in ("embeddings", "linears", "norms", "head", "other")] == [1, 2.5, 0, 1, 0]
    assert (row["peak_load_gib"], row["peak_prefill_gib"], row["peak_decode_gib"]) == (5.0, 5.5, 6.0)
    assert row["kv_cache_gib"] == 1.0 and row["kv_cache_measured_prefill_gib"] == 0.5
    assert row["workspace_gib"] == pytest.approx(6.0 - 4.5 - 1.0)  # what decode has above weights and cache
    assert row["peak_rss_gib"] == 6.5
    assert math.isnan(row["peak_reserved_gib"]) and math.isnan(row["driver_gib"])  # does not apply on a CPU


def test_the_hosts_peak_may_be_that_of_loading(record, tmp_path):
    found = memory_samples(held(WORKLOADS[0])) | {"load": phase(9.0, 9.5)}
    row = only(table(memory, [record("memory", found, settings={"workloads": WORKLOADS[:1]})], tmp_path))
    assert row["peak_rss_gib"] == 9.5


def test_on_a_gpu_the_allocators_peak_counts(record, tmp_path):
    found = memory_samples(held(WORKLOADS[0], cuda=True), cuda=True)
    row = only(table(memory, [record("memory", found, settings={"workloads": WORKLOADS[:1]})], tmp_path))
    assert row["peak_load_gib"] == row["peak_prefill_gib"] == row["peak_decode_gib"] == 7.0
    assert (row["peak_reserved_gib"], row["driver_gib"]) == (8.0, 9.0)


def test_a_workload_out_of_memory_keeps_what_is_known_of_the_weights(record, tmp_path):
    found = memory_samples(held(WORKLOADS[0]), {"workload": WORKLOADS[1]} | OOM)
    frame = table(memory, [record("memory", found, settings={"workloads": WORKLOADS})], tmp_path)
    failed = only(frame, batch=8)
    assert (failed["status"], failed["reason"]) == ("oom", "CUDA out of memory")
    assert failed["weights_gib"] == 4.5 and failed["peak_load_gib"] == 5.0
    assert failed[["kv_cache_gib", "workspace_gib", "peak_decode_gib", "peak_rss_gib"]].isna().all()


@pytest.mark.parametrize(("driver", "told"), [(None, None), (2 * 2**30, None), (4 * 2**30, 4.0)])
def test_a_driver_s_figure_below_what_was_allocated_came_too_late(driver, told):
    assert memory.driver_gib({"driver_bytes": driver, "peak_allocated_bytes": 3 * 2**30}) == told


def test_a_model_that_never_loaded_has_no_bytes(record, tmp_path):
    frame = table(memory, [record("memory", {}, settings={"workloads": WORKLOADS}, **OOM)], tmp_path)
    assert len(frame) == 2 and set(frame["status"]) == {"oom"}
    assert frame[[name for name in frame if name.endswith("_gib")]].isna().all(axis=None)


# ----------------------------------------------------------------------------------------------------------- quality


SETTINGS = {"corpora": ["text"], "protocols": PROTOCOLS, "bos": False}


def scored(nll, protocol="w64-s32", **more):
    """(entry, arrays) of one protocol over ten documents of equal length."""
    nll = np.asarray(nll, dtype=np.float32)
    document = np.repeat(np.arange(10), len(nll) // 10).astype(np.int32)
    entry = {"corpus": "text", "protocol": protocol, "status": "ok", "reason": "", "words": 50, "utf8_bytes": 400}
    entry["tokens"] = len(nll)
    arrays = {"nll": nll, "document": document} | more
    return entry, {f"text/{protocol}/{key}": values for key, values in arrays.items()}


def test_every_convention_comes_from_the_same_loss(record, tmp_path):
    nll = np.random.default_rng(0).permutation(np.tile([1.0, 2.0, 3.0, 4.0], 25))
    entry, arrays = scored(nll)
    path = record("quality", {"protocols": [entry]}, settings=SETTINGS | {"protocols": PROTOCOLS[:1]}, arrays=arrays)
    row = only(table(quality, [path], tmp_path, "bf16"))
    assert row["tokens"] == 100 and row["nll"] == pytest.approx(2.5)
    assert row["ppl"] == pytest.approx(math.exp(2.5), rel=1e-5)
    assert row["word_ppl"] == pytest.approx(math.exp(250 / 50), rel=1e-5)
    assert row["byte_ppl"] == pytest.approx(math.exp(250 / 400), rel=1e-5)
    assert row["bits_per_byte"] == pytest.approx(250 / 400 / math.log(2), rel=1e-5)
    assert row["ppl_low"] < row["ppl"] < row["ppl_high"]
    assert math.isnan(row["ppl_ratio"])  # a run against itself says nothing
    assert math.isnan(row["kl_nats"])  # nothing was compared


def test_differences_are_paired_with_the_reference(record, tmp_path):
    rng = np.random.default_rng(0)
    base = rng.gamma(2.0, 1.5, 200)
    settings = SETTINGS | {"protocols": PROTOCOLS[:1]}
    reference, arrays = scored(base)
    paths = [record("quality", {"protocols": [reference]}, "fp32", settings, arrays=arrays)]
    kl = np.full(80, 0.25, dtype=np.float32)
    agree = np.tile([1.0, 1.0, 1.0, 0.0], 20).astype(np.float32)
    entry, arrays = scored(base + 0.1, kl=kl, top1=agree, top5=np.full(80, 0.8, dtype=np.float32))
    paths.append(record("quality", {"protocols": [entry]}, "nf4", settings, arrays=arrays))
    frame = table(quality, paths, tmp_path, "fp32")
    row = only(frame, precision="nf4")
    assert row["delta_nll"] == pytest.approx(0.1, abs=1e-5)
    assert row["ppl_ratio"] == pytest.approx(math.exp(0.1), rel=1e-5)
    assert row["ppl_ratio_low"] == pytest.approx(row["ppl_ratio_high"], rel=1e-4)  # the same for every token
    assert (
        row["kl_tokens"] == 80 and row["kl_nats"] == pytest.approx(0.25) and row["kl_max_nats"] == pytest.approx(0.25)
    )
    assert row["top1_agreement"] == pytest.approx(0.75) and row["top5_overlap"] == pytest.approx(0.8)
    assert row["ppl_ratio_p"] < 1e-6
    assert only(frame, precision="fp32")[["ppl_ratio", "delta_nll", "delta_p_rms"]].isna().all()


@pytest.mark.parametrize("other", ["shorter", "other words", "other documents"])
def test_another_text_than_the_reference_s_keeps_its_perplexity_alone(record, tmp_path, other):
    settings = SETTINGS | {"protocols": PROTOCOLS[:1]}
    reference, arrays = scored(np.full(200, 2.0))
    paths = [record("quality", {"protocols": [reference]}, "fp32", settings, arrays=arrays)]
    entry, arrays = scored(np.full(100 if other == "shorter" else 200, 3.0))
    if other == "other words":
        entry["words"] = 51
    if other == "other documents":
        arrays["text/w64-s32/document"] = arrays["text/w64-s32/document"][::-1]
    paths.append(record("quality", {"protocols": [entry]}, "nf4", settings, arrays=arrays))
    row = only(table(quality, paths, tmp_path, "fp32"), precision="nf4")
    assert (row["status"], row["reason"]) == ("error", quality.OTHER_TEXT)
    assert row["nll"] == 3.0 and row[["ppl_ratio", "delta_nll", "kl_nats"]].isna().all()


def test_a_failed_protocol_has_a_row_and_no_perplexity(record, tmp_path):
    entry, arrays = scored(np.ones(20))
    lost = {"corpus": "text", "protocol": "w128-s128", "status": "error", "reason": "nll: 3 tokens are not finite"}
    path = record("quality", {"protocols": [entry, lost]}, settings=SETTINGS, arrays=arrays)
    frame = table(quality, [path], tmp_path, "bf16")
    row = only(frame, protocol="w128-s128")
    assert (row["status"], row["reason"]) == ("error", "nll: 3 tokens are not finite")
    assert row[["tokens", "nll", "ppl", "ppl_ratio", "kl_nats", "top1_agreement"]].isna().all()
    assert only(frame, protocol="w64-s32")["status"] == "ok"


def test_a_failed_record_has_empty_arrays_and_all_its_rows(record, tmp_path):
    failed = {"status": "unsupported", "reason": "no such kernel"}
    frame = table(quality, [record("quality", {}, settings=SETTINGS, **failed)], tmp_path, "bf16")
    assert frame["protocol"].tolist() == ["w64-s32", "w128-s128"] and set(frame["status"]) == {"unsupported"}
    assert frame["ppl"].isna().all()


def test_without_its_reference_a_precision_has_a_perplexity_and_no_ratio(record, tmp_path):
    entry, arrays = scored(np.ones(20))
    settings = SETTINGS | {"protocols": PROTOCOLS[:1]}
    paths = [
        record("quality", {}, "fp32", settings, **OOM),
        record("quality", {"protocols": [entry]}, "bf16", settings, arrays=arrays),
    ]
    row = only(table(quality, paths, tmp_path, "fp32"), precision="bf16")
    assert row["ppl"] == pytest.approx(math.e, rel=1e-5) and math.isnan(row["ppl_ratio"])


# ----------------------------------------------------------------------------------------------------------- samples


def said(prompt, tokens, text):
    return {"prompt": prompt, "tokens": tokens, "text": text}


def test_samples_stand_beside_the_references(record, tmp_path):
    settings = {"prompts": ["Once", 'Twice, "so"\nto say']}
    reference = [said("Once", [1, 2, 3, 4], "upon"), said(settings["prompts"][1], [5, 6], "NA")]
    other = [said("Once", [1, 2, 9, 4], "a time"), said(settings["prompts"][1], [5, 6], "NA")]
    paths = [record("generations", {"prompts": reference}, "fp32", settings)]
    paths.append(record("generations", {"prompts": other}, "bf16", settings))
    frame = table(samples, paths, tmp_path, "fp32")
    row = only(frame, precision="bf16", prompt="Once")
    assert (row["text"], row["reference_text"], row["first_divergence_token"]) == ("a time", "upon", 2)
    assert row["new_tokens"] == 4
    same = only(frame, precision="bf16", prompt=settings["prompts"][1])  # quotes and line ends survive the CSV
    assert same["text"] == same["reference_text"] == "NA" and math.isnan(same["first_divergence_token"])


def test_a_prompt_without_a_text_has_the_records_status(record, tmp_path):
    settings = {"prompts": ["Once", "Twice"]}
    paths = [
        record("generations", {"prompts": [said("Once", [1], "a")]}, "fp32", settings, status="timeout", reason="long")
    ]
    frame = table(samples, paths, tmp_path, "fp32")
    assert only(frame, prompt="Once")["status"] == "ok"
    assert only(frame, prompt="Twice")["status"] == "timeout" and only(frame, prompt="Twice")["text"] == ""


# -------------------------------------------------------------------------------------------------------------- text


def test_texts_of_all_prompts_together(record, tmp_path):
    """Three prompts of 10 tokens: one never parts, the others at tokens 2 and 9."""
    settings, exact = {"prompts": ["a", "b", "c"]}, list(range(10))
    parted = {"a": exact, "b": [*exact[:2], 77, 77, 77, 77, 77, 77, 77, 77], "c": [*exact[:9], 77]}
    paths = [
        record("generations", {"prompts": [said(prompt, exact, "x") for prompt in "abc"]}, "fp32", settings),
        record("generations", {"prompts": [said(*one, "y") for one in parted.items()]}, "nf4", settings),
        record("generations", {"prompts": [said("a", exact, "x")]}, "bf16", settings, status="timeout", reason="long"),
        record("generations", {}, "fp4", settings, **OOM),
    ]
    generations.write(paths, "fp32", tmp_path / "generations.csv")
    frame = table(text, tmp_path / "generations.csv", tmp_path, "fp32")
    row = only(frame, precision="nf4")
    assert (row["prompts"], row["new_tokens"], row["never_diverged"]) == (3, 10, 1)
    assert row["exact_match"] == pytest.approx(1 / 3, rel=1e-5) and row["first_divergence_median_token"] == 9
    assert row["identical_tokens_mean"] == pytest.approx((10 + 2 + 9) / 3, rel=1e-5)
    assert row["agreement_8"] == pytest.approx(2 / 3, rel=1e-5) and math.isnan(row["agreement_16"])
    assert row["distinct_2_mean"] == pytest.approx((1 + 3 / 9 + 1) / 3, rel=1e-5)
    reference = only(frame, precision="fp32")
    assert reference["distinct_2_mean"] == 1 and math.isnan(reference["exact_match"])
    partial, failed = only(frame, precision="bf16"), only(frame, precision="fp4")
    assert (partial["status"], partial["prompts"], partial["exact_match"]) == ("ok", 1, 1)
    assert (failed["status"], failed["reason"]) == ("oom", "CUDA out of memory") and math.isnan(failed["prompts"])


def test_texts_without_a_reference_still_tell_how_much_they_repeat(record, tmp_path):
    settings = {"prompts": ["a"]}
    paths = [
        record("generations", {}, "fp32", settings, **OOM),
        record("generations", {"prompts": [said("a", [7] * 11, "y")]}, "nf4", settings),
    ]
    generations.write(paths, "fp32", tmp_path / "generations.csv")
    row = only(table(text, tmp_path / "generations.csv", tmp_path, "fp32"), precision="nf4")
    assert row["distinct_2_mean"] == pytest.approx(0.1) and row["prompts"] == 1
    assert row[["exact_match", "never_diverged", "identical_tokens_mean", "agreement_8"]].isna().all()


# ----------------------------------------------------------------------------------------------------------- summary


def test_a_summary_from_records_says_what_failed(record, tmp_path):
    """The three tables joined: a precision that fits, and one that ran out of memory everywhere."""
    workloads, protocols = WORKLOADS[:1], PROTOCOLS[:1]
    entry, arrays = scored(np.random.default_rng(0).gamma(2.0, 1.0, 200))
    kinds = {
        "speed": (latency_samples(timed(WORKLOADS[0])), {"workloads": workloads}, None),
        "memory": (memory_samples(held(WORKLOADS[0])), {"workloads": workloads}, None),
        "quality": ({"protocols": [entry]}, SETTINGS | {"protocols": protocols}, arrays),
    }
    for kind, module, arguments in [("speed", latency, ()), ("memory", memory, ()), ("quality", quality, ("fp32",))]:
        found, settings, kept = kinds[kind]
        paths = [record(kind, found, "fp32", settings, arrays=kept), record(kind, {}, "nf4", settings, **OOM)]
        module.write(paths, *arguments, tmp_path / f"{kind}.csv")
    headline = {"m": WORKLOADS[0] | {"corpus": "text", "protocol": "w64-s32", "reference": "fp32"}}
    limits = dict.fromkeys(("memory_gib", "tpot_ms", "ppl_loss_percent", "top1_agreement"))
    summary.write(tmp_path, headline, limits, {"tpot": 3, "memory": 3, "ppl": 0.5})
    frame = pd.read_csv(tmp_path / "summary.csv")
    row = only(frame, precision="fp32")
    assert (row["tpot_ms"], row["ttft_ms"], row["e2e_ms"]) == pytest.approx((20.0, 7.0, 100.0))
    assert row["memory_gib"] == 6.0 and row["weights_gib"] == 4.5
    assert row["speedup"] == row["memory_ratio"] == row["ppl_ratio"] == pytest.approx(1.0)
    failed = only(frame, precision="nf4")
    assert (failed["status"], failed["reason"]) == ("oom", "CUDA out of memory")
    assert failed[["tpot_ms", "memory_gib", "ppl", "speedup"]].isna().all()
    assert isinstance(failed["verdict"], str) and failed["verdict"] != "better"
    assert len(pd.read_csv(tmp_path / "recommendation.csv")) == 1
