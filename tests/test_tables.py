"""Tables from hand-made records: right medians and units, a status and a reason where a number is missing, never 0."""

import math

import numpy as np
import pandas as pd
import pytest
from llmstudy import tables
from llmstudy.stats.processes import Noise
from llmstudy.tables import memory, quality
from llmstudy.tables.columns import Column, write_table
from llmstudy.tables.speed import shared_noise
from table_kit import OOM, make, only, write_record

GIB = 2**30
WORKLOADS = [
    {"batch": 2, "prompt_tokens": 100, "new_tokens": 4},
    {"batch": 8, "prompt_tokens": 100, "new_tokens": 4},
]


def table_of(folder, name, kind, results, settings, **changes):
    """Return the table of one record."""
    return make(folder, name, [write_record(folder, kind, results, settings, **changes)])


# ----------------------------------------------------------------------------------------------------------- columns


def test_tables_that_share_a_column_share_its_declaration():
    declared = {}
    for name in tables.every():
        for column in tables.columns_of(name):
            assert declared.setdefault(column.name, column) == column, f"{name}.csv declares {column.name} differently"


def test_counts_are_written_in_full_beside_a_missing_cell(tmp_path):
    columns = [Column("bytes", show="count"), Column("share")]
    rows = [{"bytes": 1_290_591, "share": 0.12345678}, {"share": None}]
    write_table(rows, columns, tmp_path / "table.csv")
    assert (tmp_path / "table.csv").read_text().splitlines() == ["bytes,share", "1290591,0.123457", ","]
    with pytest.raises(TypeError):  # half a byte is a mistake, not a count
        write_table([{"bytes": 1.5}], columns, tmp_path / "table.csv")


# --------------------------------------------------------------------------------------------------------- processes


def runs():
    """Three calls with TPOT 10, 20 and 60 ms and TTFT 5, 7 and 100 ms."""
    return [
        {"ttft_ms": 5.0, "itl_ms": [9.0, 10.0, 11.0], "e2e_ms": 40.0},
        {"ttft_ms": 100.0, "itl_ms": [20.0, 20.0, 20.0], "e2e_ms": 160.0},
        {"ttft_ms": 7.0, "itl_ms": [10.0, 10.0, 160.0], "e2e_ms": 100.0},
    ]


def timed(workload, **changes):
    entry = {"workload": workload, "status": "ok", "reason": "", "runs": runs(), "cold_ms": 500.0, "compile_s": 0.0}
    entry |= {"joules_per_token": None, "attention_kernels": ["flash"], "flags": ["not steady"]}
    return entry | {"conditions": {"before": {"load_average": 3.1, "cores": 2}}} | changes


def speed_results(*entries):
    shared = {"load_s": 1.5, "bandwidth_gb_s": 20.0, "step_weight_bytes": 300_000_007, "kv_bytes_per_token": 1000}
    return shared | {"workloads": list(entries)}


def processes_of(folder, *entries, workloads=WORKLOADS, results=None, **changes):
    results = speed_results(*entries) if results is None else results
    return table_of(folder, "processes", "speed", results, {"workloads": workloads}, **changes)


MEASURED = ["ttft_ms", "tpot_ms", "e2e_ms", "tokens_per_s", "mbu", "cold_ms", "step_bytes", "runs"]


def test_times_are_medians_over_the_calls_of_a_process(tmp_path):
    row = only(processes_of(tmp_path, *map(timed, WORKLOADS), repeat=3), batch=2)
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
def test_timed_calls_that_lie_far_apart_are_flagged(tmp_path, times, flag):
    entry = timed(WORKLOADS[0], flags=[], runs=[run | {"e2e_ms": time} for run, time in zip(runs(), times)])
    entry["conditions"]["before"]["load_average"] = 0.1
    assert only(processes_of(tmp_path, entry, workloads=WORKLOADS[:1]))["flags"] == flag


def test_mbu_is_step_bytes_over_tpot_over_bandwidth(tmp_path):
    table = processes_of(tmp_path, *map(timed, WORKLOADS))
    for batch in (2, 8):
        row = only(table, batch=batch)
        step_bytes = 300_000_007 + 1000 * batch * (100 + 4 / 2)  # weights, and the KV cache at the mean context
        assert row["step_bytes"] == step_bytes
        assert row["mbu"] == pytest.approx(step_bytes / 0.020 / 20e9, rel=1e-5)


def test_percentiles_only_where_the_sample_supports_them(tmp_path):
    many = [{"ttft_ms": 1.0, "itl_ms": [float(gap) for gap in range(1, 101)], "e2e_ms": 1.0}]
    table = processes_of(tmp_path, timed(WORKLOADS[0], runs=many), timed(WORKLOADS[1]))
    row = only(table, batch=2)
    assert row["itl_p50_ms"] == pytest.approx(50.5) and row["itl_p90_ms"] == pytest.approx(90.1)
    assert only(table, batch=8)[["itl_p50_ms", "itl_p90_ms"]].isna().all()  # nine gaps


def test_a_workload_that_failed_has_its_own_status_and_no_numbers(tmp_path):
    table = processes_of(tmp_path, timed(WORKLOADS[0]), {"workload": WORKLOADS[1]} | OOM)
    failed = only(table, batch=8)
    assert (failed["status"], failed["reason"]) == ("oom", "CUDA out of memory")
    assert failed[MEASURED].isna().all()
    assert failed["load_s"] == 1.5  # the model did load
    ok = only(table, batch=2)
    assert ok["status"] == "ok" and ok["step_bytes"] == 300_204_007  # exact beside the missing cell


@pytest.mark.parametrize("status", ["oom", "unsupported", "timeout", "error"])
def test_a_failed_record_has_a_row_for_every_workload(tmp_path, status):
    table = processes_of(tmp_path, results={}, status=status, reason="why it failed")
    assert len(table) == 2 and set(table["status"]) == {status} and set(table["reason"]) == {"why it failed"}
    assert table[[*MEASURED, "load_s", "bandwidth_gb_s"]].isna().all(axis=None)
    assert table["batch"].tolist() == [2, 8]


def test_what_a_killed_process_had_finished_counts(tmp_path):
    table = processes_of(tmp_path, timed(WORKLOADS[0]), status="timeout", reason="stopped after its limit of 600 s")
    assert only(table, batch=2)["status"] == "ok" and only(table, batch=2)["tpot_ms"] == 20.0
    assert only(table, batch=8)["status"] == "timeout" and math.isnan(only(table, batch=8)["tpot_ms"])


# ------------------------------------------------------------------------------------------------------------- speed


def process_rows(precision, tpots, runtime="generate", model="m", batches=(1,), **changes):
    """Return a row of processes.csv for each workload and process; ``tpots``: of the processes, at each workload."""
    row = {"study": "s", "model": model, "weights": "real", "precision": precision, "attention": "sdpa"}
    row |= {"runtime": runtime, "device": "cpu", "status": "ok", "reason": "", "prompt_tokens": 128, "new_tokens": 16}
    row |= {"ttft_ms": 50.0, "e2e_ms": 700.0, "tokens_per_s": 45.0, "mbu": 0.5, "bandwidth_gb_s": 20.0, "flags": ""}
    row |= {"cold_ms": 900.0, "load_s": 4.0, "compile_s": 0.0, "itl_p50_ms": 9.0, "itl_p90_ms": None}
    row |= {"joules_per_token": None, "step_bytes": 100_000_000, "attention_kernels": "flash"}
    return [row | {"batch": batch, "tpot_ms": tpot} | changes for batch in batches for tpot in tpots]


def speed_of(folder, *rows, references=("fp32",)):
    headline = {model: {"reference": reference} for model, reference in zip(("m", "n"), references)}
    processes = pd.DataFrame([row for some in rows for row in some])
    return make(folder, "speed", sources={"processes": processes}, headline=headline)


def test_speed_has_geometric_means_intervals_and_medians(tmp_path):
    row = only(speed_of(tmp_path, process_rows("fp32", [10.0, 20.0, 40.0])))
    assert row["tpot_ms"] == pytest.approx(20.0) and row["processes"] == 3 and row["tpot_degrees"] == 2
    factor = 2 ** (4.302653 / math.sqrt(3))  # ln of 10, 20, 40: standard deviation ln 2, t(2) = 4.303
    assert (row["tpot_ms_low"], row["tpot_ms_high"]) == pytest.approx((20 / factor, 20 * factor))
    assert row["floor_ms"] == pytest.approx(5.0)  # 100 MB ÷ 20 GB/s
    assert (row["cold_ms"], row["itl_p50_ms"], row["ttft_ms"]) == (900.0, 9.0, 50.0)
    assert math.isnan(row["ttft_ms_low"]) and math.isnan(row["joules_per_token"])  # identical times are no spread


def test_speed_up_is_against_the_reference_at_the_same_workload(tmp_path):
    table = speed_of(
        tmp_path,
        process_rows("fp32", [19.0, 21.0], batches=(1, 8)),
        process_rows("int8", [10.0, 10.5], batches=(1,)),
        process_rows("int8", [40.0, 42.0], batches=(8,)),
        process_rows("fp32", [5.0, 5.1], runtime="graph"),
        process_rows("int8", [1.0, 1.1], attention="eager"),
        process_rows("int8", [1.0], model="n"),
        references=("fp32", "bf16"),
    )
    base = only(table, precision="fp32", runtime="generate", batch=1)
    assert base["speedup"] == 1 and base[["speedup_low", "speedup_high", "speedup_p"]].isna().all()
    fast, slow = (only(table, model="m", precision="int8", attention="sdpa", batch=batch) for batch in (1, 8))
    assert fast["speedup"] == pytest.approx(math.sqrt(19 * 21 / 10 / 10.5))
    assert slow["speedup"] == pytest.approx(math.sqrt(19 * 21 / 40 / 42))
    assert fast["speedup_low"] < fast["speedup"] < fast["speedup_high"] and fast["speedup_p"] < 0.05
    assert only(table, runtime="graph")["speedup"] == pytest.approx(math.sqrt(19 * 21 / 5 / 5.1))
    for other in ({"attention": "eager"}, {"model": "n"}):  # no reference beside them
        assert math.isnan(only(table, **other)["speedup"])


def test_a_configuration_that_failed_keeps_its_row(tmp_path):
    failed = {"status": "timeout", "reason": "600 s", "tpot_ms": None, "step_bytes": None}
    table = speed_of(
        tmp_path,
        process_rows("fp32", [10.0, 20.0], flags="clocks; load") + process_rows("fp32", [None], **failed),
        process_rows("nf4", [None], **failed),
    )
    partly, gone = only(table, precision="fp32"), only(table, precision="nf4")
    assert (partly["status"], partly["processes"], partly["flags"]) == ("ok", 2, "clocks; load")
    assert partly["reason"] == "1 of 3 repeats failed (timeout: 600 s)"
    assert (gone["status"], gone["reason"], gone["processes"]) == ("timeout", "600 s", 0)
    assert gone[["tpot_ms", "speedup", "floor_ms", "mbu"]].isna().all()


def test_noise_is_shared_within_a_runtime_and_by_the_whole_study_where_a_model_has_none():
    rows = process_rows("fp32", (50.0, 60.0), batches=(1, 8)) + process_rows("fp32", (4, 5), "graph")
    rows += process_rows("nf4", (70.0, 70.0)) + process_rows("fp32", (90.0,), model="n")
    rows += process_rows("fp32", (90.0, math.nan), "other", "n", status="oom")
    noise = shared_noise(pd.DataFrame(rows), "tpot_ms")
    variance = math.log(60 / 50) ** 2 / 2
    at = {"model": "m", "runtime": "generate", "batch": 8, "prompt_tokens": 128, "new_tokens": 16}
    assert noise.of(at) == Noise(pytest.approx(math.sqrt(variance)), 1)
    assert noise.of(at | {"batch": 1}) == Noise(pytest.approx(math.sqrt(variance / 2)), 2)
    # fp32 at two workloads and nf4: three differences, but two processes more than configurations
    assert noise.of(at | {"model": "n"}) == Noise(pytest.approx(math.sqrt(2 * variance / 3)), 2)
    assert noise.of(at | {"model": "n", "runtime": "graph"}).sd == pytest.approx(math.log(5 / 4) / math.sqrt(2))
    assert noise.of(at | {"runtime": "other"}) is None


# ------------------------------------------------------------------------------------------------------------ memory


WEIGHTS = {
    "embeddings": {"bfloat16": GIB},
    "linears": {"int8": 2 * GIB, "float32": GIB // 2},
    "norms": {},
    "head": {"bfloat16": GIB},
    "other": {"float32": 0},
}


def phase(peak_gib, rss_gib, cuda=False):
    reading = {"peak_rss_bytes": int(rss_gib * GIB), "peak_rss_growth_bytes": int(peak_gib * GIB)}
    if cuda:
        reading |= {"peak_allocated_bytes": 7 * GIB, "peak_reserved_bytes": 8 * GIB, "driver_bytes": 9 * GIB}
    return reading


def held(workload, cuda=False):
    entry = {"workload": workload, "status": "ok", "reason": "", "prefill": phase(5.5, 6.0, cuda)}
    entry |= {"decode": phase(6.0, 6.5, cuda), "kv_cache_bytes": GIB}
    return entry | {"kv_cache_measured_prefill_bytes": GIB // 2}


def memory_results(*entries, cuda=False):
    return {"load": phase(5.0, 5.5, cuda), "weights": WEIGHTS, "kv_bytes_per_token": 1, "workloads": list(entries)}


def memory_of(folder, results, workloads=WORKLOADS[:1], **changes):
    return table_of(folder, "memory", "memory", results, {"workloads": workloads}, **changes)


def test_memory_in_gib_by_component_and_phase(tmp_path):
    row = only(memory_of(tmp_path, memory_results(held(WORKLOADS[0]))))
    assert row["weights_gib"] == 4.5
    assert [row[f"{name}_gib"] for name in ("embeddings", "linears", "norms", "head", "other")] == [1, 2.5, 0, 1, 0]
    assert (row["peak_load_gib"], row["peak_prefill_gib"], row["peak_decode_gib"]) == (5.0, 5.5, 6.0)
    assert row["kv_cache_gib"] == 1.0 and row["kv_cache_measured_prefill_gib"] == 0.5
    assert row["workspace_gib"] == pytest.approx(6.0 - 4.5 - 1.0)  # what decode has above weights and cache
    assert row["peak_rss_gib"] == 6.5
    assert math.isnan(row["peak_reserved_gib"]) and math.isnan(row["driver_gib"])  # does not apply on a CPU


def test_the_hosts_peak_may_be_that_of_loading(tmp_path):
    results = memory_results(held(WORKLOADS[0])) | {"load": phase(9.0, 9.5)}
    assert only(memory_of(tmp_path, results))["peak_rss_gib"] == 9.5


def test_on_a_gpu_the_allocators_peak_counts(tmp_path):
    row = only(memory_of(tmp_path, memory_results(held(WORKLOADS[0], cuda=True), cuda=True)))
    assert row["peak_load_gib"] == row["peak_prefill_gib"] == row["peak_decode_gib"] == 7.0
    assert (row["peak_reserved_gib"], row["driver_gib"]) == (8.0, 9.0)


def test_a_workload_out_of_memory_keeps_what_is_known_of_the_weights(tmp_path):
    table = memory_of(tmp_path, memory_results(held(WORKLOADS[0]), {"workload": WORKLOADS[1]} | OOM), WORKLOADS)
    failed = only(table, batch=8)
    assert (failed["status"], failed["reason"]) == ("oom", "CUDA out of memory")
    assert failed["weights_gib"] == 4.5 and failed["peak_load_gib"] == 5.0
    assert failed[["kv_cache_gib", "workspace_gib", "peak_decode_gib", "peak_rss_gib"]].isna().all()


@pytest.mark.parametrize(("driver", "gib"), [(None, None), (2 * GIB, None), (4 * GIB, 4.0)])
def test_a_driver_s_figure_below_what_was_allocated_came_too_late(driver, gib):
    assert memory.driver_gib({"driver_bytes": driver, "peak_allocated_bytes": 3 * GIB}) == gib


def test_a_model_that_never_loaded_has_no_bytes(tmp_path):
    table = memory_of(tmp_path, {}, WORKLOADS, **OOM)
    assert len(table) == 2 and set(table["status"]) == {"oom"}
    assert table[[name for name in table if name.endswith("_gib")]].isna().all(axis=None)


def test_the_peak_on_a_cpu_leaves_loading_out_and_host_memory_stands_in_for_phases():
    rows = pd.DataFrame({"device": ["cpu", "cuda"], "peak_load_gib": 9.0, "peak_decode_gib": 6.0, "peak_rss_gib": 1.0})
    assert memory.peak_gib(rows).tolist() == [6.0, 9.0]
    assert memory.peak_gib(rows[["device", "peak_rss_gib"]]).tolist() == [1.0, 1.0]


# ----------------------------------------------------------------------------------------------------------- quality


PROTOCOLS = [{"window": 64, "stride": 32}, {"window": 128, "stride": 128}]
BOTH = {"corpora": ["text"], "protocols": PROTOCOLS, "bos": False}
FIRST = BOTH | {"protocols": PROTOCOLS[:1]}


def scored(nll, protocol="w64-s32", **more):
    """Return entry and arrays of one protocol over ten documents of equal length."""
    nll = np.asarray(nll, dtype=np.float32)
    document = np.repeat(np.arange(10), len(nll) // 10).astype(np.int32)
    entry = {"corpus": "text", "protocol": protocol, "status": "ok", "reason": "", "words": 50, "utf8_bytes": 400}
    arrays = {"nll": nll, "document": document} | more
    return entry | {"tokens": len(nll)}, {f"text/{protocol}/{key}": values for key, values in arrays.items()}


def quality_record(folder, precision, *measured, settings=FIRST, **changes):
    """Write a quality record of what ``scored`` returned, one for each protocol."""
    arrays = {key: values for _, some in measured for key, values in some.items()}
    results = {"protocols": [entry for entry, _ in measured]} if measured else {}
    return write_record(folder, "quality", results, settings, arrays, precision=precision, **changes)


def quality_of(folder, *paths):
    return make(folder, "quality", paths)


def test_every_normalization_comes_from_the_same_loss(tmp_path):
    nll = np.random.default_rng(0).permutation(np.tile([1.0, 2.0, 3.0, 4.0], 25))
    row = only(quality_of(tmp_path, quality_record(tmp_path, "fp32", scored(nll))))
    assert row["tokens"] == 100 and row["nll"] == pytest.approx(2.5)
    assert row["ppl"] == pytest.approx(math.exp(2.5), rel=1e-5)
    assert row["word_ppl"] == pytest.approx(math.exp(250 / 50), rel=1e-5)
    assert row["byte_ppl"] == pytest.approx(math.exp(250 / 400), rel=1e-5)
    assert row["bits_per_byte"] == pytest.approx(250 / 400 / math.log(2), rel=1e-5)
    assert row["ppl_low"] < row["ppl"] < row["ppl_high"]
    assert math.isnan(row["ppl_ratio"]) and row["reason"] == ""  # a run against itself says nothing
    assert math.isnan(row["kl_nats"]) and row["kl_reason"] == quality.NO_REFERENCE


def test_a_measurement_says_why_it_was_not_paired(tmp_path):
    entry, arrays = scored(np.ones(100))
    row = only(quality_of(tmp_path, quality_record(tmp_path, "fp32", (entry | {"unpaired": "disk full"}, arrays))))
    assert math.isnan(row["kl_nats"]) and row["kl_reason"] == "disk full"


def test_differences_are_paired_with_the_reference(tmp_path):
    base = np.random.default_rng(0).gamma(2.0, 1.5, 200)
    agree = np.tile([1.0, 1.0, 1.0, 0.0], 20).astype(np.float32)
    distances = {"kl": np.full(80, 0.25, dtype=np.float32), "top1": agree, "top5": np.full(80, 0.8, dtype=np.float32)}
    table = quality_of(
        tmp_path,
        quality_record(tmp_path, "fp32", scored(base)),
        quality_record(tmp_path, "nf4", scored(base + 0.1, **distances)),
    )
    row = only(table, precision="nf4")
    assert row["delta_nll"] == pytest.approx(0.1, abs=1e-5)
    assert row["ppl_ratio"] == pytest.approx(math.exp(0.1), rel=1e-5)
    assert row["ppl_ratio_low"] == pytest.approx(row["ppl_ratio_high"], rel=1e-4)  # the same for every token
    assert (row["kl_tokens"], row["kl_nats"], row["kl_max_nats"]) == (80, 0.25, 0.25) and row["kl_reason"] == ""
    assert row["top1_agreement"] == pytest.approx(0.75) and row["top5_overlap"] == pytest.approx(0.8)
    assert row["ppl_ratio_p"] < 1e-6
    assert only(table, precision="fp32")[["ppl_ratio", "delta_nll", "delta_p_rms"]].isna().all()


def test_fewer_tokens_are_paired_with_the_beginning_of_the_reference(tmp_path):
    base = np.random.default_rng(0).gamma(2.0, 1.5, 200)
    entry, arrays = scored(base[:100] + 0.1)
    entry |= {"words": 25, "utf8_bytes": 210}
    arrays["text/w64-s32/document"] = scored(base)[1]["text/w64-s32/document"][:100]
    table = quality_of(
        tmp_path,
        quality_record(tmp_path, "fp32", scored(base)),
        quality_record(tmp_path, "llm-int8-t2", (entry, arrays)),
    )
    row = only(table, precision="llm-int8-t2")
    assert (row["status"], row["tokens"], row["words"]) == ("ok", 100, 25)
    assert row["ppl_ratio"] == pytest.approx(math.exp(0.1), rel=1e-5)


@pytest.mark.parametrize("other", ["longer", "other words", "other documents", "another beginning"])
def test_another_text_than_the_reference_s_keeps_its_perplexity_alone(tmp_path, other):
    tokens = {"longer": 400, "another beginning": 100}.get(other, 200)
    entry, arrays = scored(np.full(tokens, 3.0))
    if other == "other words":
        entry["words"] = 51
    if other == "other documents":
        arrays["text/w64-s32/document"] = arrays["text/w64-s32/document"][::-1]
    paths = [quality_record(tmp_path, "fp32", scored(np.full(200, 2.0)))]
    row = only(quality_of(tmp_path, *paths, quality_record(tmp_path, "nf4", (entry, arrays))), precision="nf4")
    assert (row["status"], row["reason"]) == ("error", quality.OTHER_TEXT)
    assert row["nll"] == 3.0 and row[["ppl_ratio", "delta_nll", "kl_nats"]].isna().all()


def test_a_failed_protocol_has_a_row_and_no_perplexity(tmp_path):
    lost = {"corpus": "text", "protocol": "w128-s128", "status": "error", "reason": "nll: 3 tokens are not finite"}
    path = quality_record(tmp_path, "bf16", scored(np.ones(20)), (lost, {}), settings=BOTH)
    table = quality_of(tmp_path, path)
    row = only(table, protocol="w128-s128")
    assert (row["status"], row["reason"]) == ("error", "nll: 3 tokens are not finite")
    assert row[["tokens", "nll", "ppl", "ppl_ratio", "kl_nats", "top1_agreement"]].isna().all()
    assert only(table, protocol="w64-s32")["status"] == "ok"


def test_a_failed_record_has_empty_arrays_and_all_its_rows(tmp_path):
    failed = {"status": "unsupported", "reason": "no such kernel"}
    table = quality_of(tmp_path, quality_record(tmp_path, "bf16", settings=BOTH, **failed))
    assert table["protocol"].tolist() == ["w64-s32", "w128-s128"] and set(table["status"]) == {"unsupported"}
    assert table["ppl"].isna().all()


def test_a_row_without_its_reference_says_so(tmp_path):
    """The reference was killed after it had kept the second protocol's arrays and before it had saved their entry."""
    measured = [scored(np.ones(20)), scored(np.ones(20), "w128-s128")]
    kept = measured[0][1] | measured[1][1]
    killed = write_record(tmp_path, "quality", {"protocols": [measured[0][0]]}, BOTH, kept, **OOM)
    table = quality_of(tmp_path, killed, quality_record(tmp_path, "bf16", *measured, settings=BOTH))
    paired, alone = (only(table, precision="bf16", protocol=name) for name in ("w64-s32", "w128-s128"))
    assert (paired["ppl_ratio"], paired["reason"]) == (1.0, "") and paired["kl_reason"] == quality.NO_REFERENCE
    assert math.isnan(alone["ppl_ratio"]) and alone["ppl"] == pytest.approx(math.e, rel=1e-5)
    assert (alone["status"], alone["reason"]) == ("ok", quality.NOT_COMPARED)
    assert alone["kl_reason"] == quality.LATER_PROTOCOL


# ----------------------------------------------------------------------------------------------------- generated text


def text_record(folder, precision, texts, prompts, **changes):
    """Write a record; ``texts``: prompt → (tokens, text), or None where nothing was generated."""
    entries = [{"prompt": prompt, "tokens": tokens, "text": text} for prompt, (tokens, text) in (texts or {}).items()]
    results = {} if texts is None else {"prompts": entries}
    return write_record(folder, "generations", results, {"prompts": prompts}, precision=precision, **changes)


def test_texts_beside_those_of_the_reference(tmp_path):
    prompts = ["Once", 'Twice, "so"\nto say']
    table = make(
        tmp_path,
        "generations",
        [
            text_record(tmp_path, "fp32", {"Once": ([1, 2, 3, 4], "upon"), prompts[1]: ([5, 6], "NA")}, prompts),
            text_record(tmp_path, "bf16", {"Once": ([1, 2, 9, 4], "a time"), prompts[1]: ([5, 6], "NA")}, prompts),
        ],
    )
    row = only(table, precision="bf16", prompt="Once")
    assert (row["text"], row["reference_text"], row["first_divergence_token"]) == ("a time", "upon", 2)
    assert row["new_tokens"] == 4
    same = only(table, precision="bf16", prompt=prompts[1])  # quotes and line ends survive the CSV
    assert same["text"] == same["reference_text"] == "NA" and math.isnan(same["first_divergence_token"])


def test_a_prompt_without_a_text_has_the_records_status(tmp_path):
    path = text_record(tmp_path, "fp32", {"Once": ([1], "a")}, ["Once", "Twice"], status="timeout", reason="long")
    table = make(tmp_path, "generations", [path])
    assert only(table, prompt="Once")["status"] == "ok"
    assert only(table, prompt="Twice")["status"] == "timeout" and only(table, prompt="Twice")["text"] == ""


def test_texts_of_all_prompts_together(tmp_path):
    """Three prompts of 10 tokens: one text never differs, the others from tokens 2 and 9 on."""
    prompts, exact = ["a", "b", "c"], list(range(10))
    others = {"a": (exact, "y"), "b": ([0, 1, *[77] * 8], "y"), "c": ([*exact[:9], 77], "y")}
    paths = [
        text_record(tmp_path, "fp32", dict.fromkeys(prompts, (exact, "x")), prompts),
        text_record(tmp_path, "nf4", others, prompts),
        text_record(tmp_path, "bf16", {"a": (exact, "x")}, prompts, status="timeout", reason="long"),
        text_record(tmp_path, "fp4", None, prompts, **OOM),
    ]
    make(tmp_path, "generations", paths)
    table = make(tmp_path, "text")
    row = only(table, precision="nf4")
    assert (row["prompts"], row["new_tokens"], row["never_diverged"]) == (3, 10, 1)
    assert row["exact_match"] == pytest.approx(1 / 3, rel=1e-5) and row["first_divergence_median_token"] == 9
    assert row["identical_tokens_mean"] == pytest.approx((10 + 2 + 9) / 3, rel=1e-5)
    assert row["agreement_8"] == pytest.approx(2 / 3, rel=1e-5) and math.isnan(row["agreement_16"])
    assert row["distinct_2_mean"] == pytest.approx((1 + 3 / 9 + 1) / 3, rel=1e-5)
    reference = only(table, precision="fp32")
    assert reference["distinct_2_mean"] == 1 and math.isnan(reference["exact_match"])
    partial, failed = only(table, precision="bf16"), only(table, precision="fp4")
    assert (partial["status"], partial["prompts"], partial["exact_match"]) == ("ok", 1, 1)
    assert (failed["status"], failed["reason"]) == ("oom", "CUDA out of memory") and math.isnan(failed["prompts"])


def test_texts_without_a_reference_still_say_how_much_they_repeat(tmp_path):
    paths = [
        text_record(tmp_path, "fp32", None, ["a"], **OOM),
        text_record(tmp_path, "nf4", {"a": ([7] * 11, "y")}, ["a"]),
    ]
    make(tmp_path, "generations", paths)
    row = only(make(tmp_path, "text"), precision="nf4")
    assert row["distinct_2_mean"] == pytest.approx(0.1) and row["prompts"] == 1
    assert row[["exact_match", "never_diverged", "identical_tokens_mean", "agreement_8"]].isna().all()
