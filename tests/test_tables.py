"""Tables from hand-made records: right medians and units, a status and a reason where a number is missing, never 0."""

import math
import re

import numpy as np
import pytest
from llmstudy import tables
from llmstudy.stats.panels import pooled_degrees, power
from llmstudy.tables import quality
from llmstudy.tables.columns import Column, write_table
from table_kit import AT, OOM, make, only, panel, write_record

GIB = 2**30
WORKLOADS = [{"batch": batch, "prompt_tokens": 100, "new_tokens": 4} for batch in (2, 8)]


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


def entry_of(workload, again=False, **changes):
    """Return the entry of fp32: three calls with TPOT 10, 20 and 60 ms and TTFT 5, 100 and 7 ms."""
    times = (5.0, [9.0, 10.0, 11.0], 40.0), (100.0, [20.0, 20.0, 20.0], 160.0), (7.0, [10.0, 10.0, 160.0], 100.0)
    calls = [dict(zip(("ttft_ms", "itl_ms", "e2e_ms"), call)) for call in times]
    entry = {"precision": "fp32", "attention": "sdpa", "runtime": "generate", "again": again, "workload": workload}
    entry |= {"status": "ok", "reason": "", "group": 0, "calls": calls}
    return entry | {"step_weight_bytes": 300_000_007, "kv_bytes_per_token": 1000} | changes


def processes_of(folder, *entries, rounds=(), results=None, **changes):
    """Return the table of a panel of fp32 and nf4, at two workloads."""
    results = {"bandwidth_gb_s": {"copy": 15.0}, "rounds": rounds, "entries": entries} if results is None else results
    configurations = [["fp32", "sdpa", "generate"], ["nf4", "sdpa", "generate"]]
    settings = {"workloads": WORKLOADS, "configurations": configurations}
    return table_of(folder, "processes", "panel", results, settings, **changes)


MEASURED = ["ttft_ms", "tpot_ms", "e2e_ms", "tokens_per_s", "step_bytes", "rounds", "group"]


def test_times_are_medians_over_the_rounds_of_a_process_beside_every_round(tmp_path):
    row = only(processes_of(tmp_path, entry_of(WORKLOADS[0]), repeat=3), precision="fp32", batch=2)
    assert row["status"] == "ok" and row["reason"] == "" and (row["process"], row["again"]) == (3, "no")
    assert (row["ttft_ms"], row["tpot_ms"], row["e2e_ms"], row["rounds"]) == (7.0, 20.0, 100.0, 3)
    assert row[[f"{name}_rounds_ms" for name in ("ttft", "tpot", "e2e")]].tolist() == [
        "5 100 7",
        "10 20 60",
        "40 160 100",
    ]
    assert row["tokens_per_s"] == pytest.approx(2 * 4 / 0.100)  # all rows of the batch over the whole call
    assert row["step_bytes"] == 300_000_007 + 1000 * 2 * (100 + 4 / 2)  # weights, the KV cache at the mean context
    assert (row["threads"], row["copy_gb_s"]) == (2, 15.0) and math.isnan(row["read_gb_s"])
    assert row[["itl_p50_ms", "itl_p90_ms"]].isna().all()  # nine gaps support no percentile


def test_percentiles_are_of_the_gaps_of_all_calls(tmp_path):
    calls = [{"ttft_ms": 1.0, "itl_ms": list(map(float, gaps)), "e2e_ms": 1.0} for gaps in (range(50), range(50, 101))]
    row = only(processes_of(tmp_path, entry_of(WORKLOADS[0], calls=calls)), precision="fp32", batch=2)
    assert (row["itl_p50_ms"], row["itl_p90_ms"]) == (50, 90)


def test_flags_count_the_disturbed_rounds_of_a_group_and_workload(tmp_path):
    at = {"group": 0, "workload": WORKLOADS[0]}
    rounds = [at | {"flags": ["load average 5", "another process took 30 %"]}, at | {"flags": []}]
    rounds += [at | {"flags": ["another process took 9 %"]}]
    rounds += [at | {"group": 1, "flags": ["load average 5"]}, at | {"workload": WORKLOADS[1], "flags": ["hot"]}]
    row = only(processes_of(tmp_path, entry_of(WORKLOADS[0]), rounds=rounds), precision="fp32", batch=2)
    assert row["flags"] == "load average 5 (1 of 3 rounds); another process (2 of 3 rounds)"


def test_what_a_panel_lacks_is_an_error_and_never_an_empty_ok(tmp_path):
    lost = entry_of(WORKLOADS[1]) | OOM
    table = processes_of(tmp_path, entry_of(WORKLOADS[0]), entry_of(WORKLOADS[0], again=True), lost)
    assert len(table) == 5  # two configurations at two workloads, and the reference again
    assert table[table["status"] == "ok"]["again"].tolist() == ["no", "yes"]
    failed = only(table, precision="fp32", batch=8)
    assert (failed["status"], failed["reason"]) == ("oom", "CUDA out of memory") and failed[MEASURED].isna().all()
    absent = table[table["precision"] == "nf4"]
    absence = "the panel has no entry of this configuration"
    assert set(absent["status"]) == {"error"} and set(absent["reason"]) == {absence}
    assert absent[MEASURED].isna().all(axis=None)


def test_a_failed_panel_has_all_its_rows_with_what_it_had_finished_and_a_skipped_one_has_none(tmp_path):
    failed = {"status": "timeout", "reason": "stopped after its limit of 600 s"}
    table = processes_of(tmp_path, results={}, **failed)
    assert table["precision"].tolist() == ["fp32", "nf4"] * 2 and table["batch"].tolist() == [2, 2, 8, 8]
    assert set(table["status"]) == {"timeout"} and set(table["reason"]) == {failed["reason"]}
    assert table[[*MEASURED, "copy_gb_s"]].isna().all(axis=None)
    table = processes_of(tmp_path, entry_of(WORKLOADS[0]), **failed)
    assert table["status"].tolist() == ["ok"] + 3 * ["timeout"] and table["tpot_ms"][0] == 20
    skipped = write_record(tmp_path, "panel", {}, {}, status="skipped", reason="settled", repeat=1)
    assert len(make(tmp_path, "processes", [panel(tmp_path, {"fp32": [10.0]}), skipped])) == 1


# ------------------------------------------------------------------------------------------------------------- speed


def speed_of(folder, *paths, **study):
    make(folder, "processes", paths)
    return make(folder, "speed", **study)


def panels(folder, *processes, **options):
    """Return speed.csv of panels with these times in one group each."""
    return speed_of(folder, *(panel(folder, times, number=number, **options) for number, times in enumerate(processes)))


TPOT = ["tpot_speedup", "tpot_speedup_low", "tpot_speedup_high"]


def test_times_are_geometric_means_with_their_range_and_no_interval(tmp_path):
    row = only(panels(tmp_path, {"fp32": [9.0, 10.0, 99.0]}, {"fp32": [20.0]}, {"fp32": [40.0]}))
    assert row[["tpot_ms", "tpot_ms_min", "tpot_ms_max"]].tolist() == pytest.approx([20, 10, 40])
    assert row["processes"] == 3 and row["e2e_ms_max"] == pytest.approx(5 + 31 * 40)
    assert not [name for name in row.index if re.fullmatch("(ttft|tpot|e2e)_ms_(low|high)", name)]


def test_the_bandwidth_of_a_study_is_the_best_copy_or_read_of_any_process(tmp_path):
    paths = [panel(tmp_path, {"fp32": [8.0]}, bandwidth=(15.0, 20.0)), panel(tmp_path, {"nf4": [8.0]}, number=1)]
    paths.append(panel(tmp_path, {"nf4": [8.0]}, number=2, bandwidth=(25.0, 10.0)))
    table = speed_of(tmp_path, *paths)
    step_bytes = 100_000_000 + 1000 * (128 + 32 / 2)
    assert table["bandwidth_gb_s"].tolist() == [25, 25] and table["step_bytes"].tolist() == [step_bytes] * 2
    assert table["floor_ms"].tolist() == pytest.approx([step_bytes / 25e6] * 2, rel=1e-5)
    assert table["mbu"].tolist() == pytest.approx([step_bytes / 25e6 / 8] * 2, rel=1e-5)


def test_a_ratio_is_of_the_times_of_one_round_within_a_process(tmp_path):
    """Ratios 1 / 3, 2 and 2 by round; the medians of the times have the ratio 2 / 3, and the second process is slow."""
    times = {"fp32": np.array([10.0, 20.0, 90.0]), "int8": np.array([30.0, 10.0, 45.0])}
    row = only(panels(tmp_path, times, {name: 3 * ms for name, ms in times.items()}), precision="int8")
    assert row["tpot_ms"] == pytest.approx(30 * math.sqrt(3), rel=1e-5)
    assert row[TPOT].tolist() == pytest.approx([2, 2, 2]) and row["tpot_verdict"] == "faster"
    assert row["ttft_speedup"] == 1 and row["ttft_verdict"] == "same"
    assert row["e2e_speedup"] == pytest.approx(math.sqrt((5 + 620) / (5 + 310) * (5 + 1860) / (5 + 930)), rel=1e-5)


def test_a_ratio_is_within_a_group_where_not_all_fit_together(tmp_path):
    first = {"fp32": [10.0, 12.0], "again": [10.0, 12.0], "int8": [5.0, 6.0]}
    second = {"fp32": [30.0, 40.0], "again": [30.0, 40.0], "nf4": [7.5, 10.0]}
    table = speed_of(tmp_path, *(panel(tmp_path, first, second, number=number) for number in range(2)))
    assert only(table, precision="int8")[TPOT].tolist() == pytest.approx([2, 2, 2])
    assert only(table, precision="nf4")[TPOT].tolist() == pytest.approx([4, 4, 4])
    base = only(table, precision="fp32", again="no")
    assert base["processes"] == 2 and base["tpot_ms"] == pytest.approx(math.sqrt(11 * 35), rel=1e-5)


def test_a_process_counts_once_however_many_groups_it_has(tmp_path):
    """Two processes whose groups each have the reference twice: two numbers, pooled with those of a and b (t of 2)."""
    paths = []
    for number, drift in enumerate((1.0, 1.1)):
        groups = [{"fp32": [10.0, 10.0], "again": [10.0 * drift, 10.0 * drift], name: [5.0, 5.0]} for name in "ab"]
        paths.append(panel(tmp_path, *groups, number=number))
    again = only(speed_of(tmp_path, *paths), again="yes")
    ends = [1.1**-0.5 * math.exp(sign * 4.30265 * math.log(1.1) / math.sqrt(12)) for sign in (0, -1, 1)]
    assert again[TPOT].tolist() == pytest.approx(ends, rel=1e-5)
    assert again["processes"] == 2 and again["tpot_verdict"] == "not enough data"


def test_power_is_of_the_spread_that_the_intervals_have(tmp_path):
    """Three processes, all slow or fast together: only the ratios of int8 and graph spread, each in its runtime."""
    steps = {"int8": [0.0, 0.1, -0.1], "nf4": [0.0, 0.0, 0.0], "int8.sdpa.graph": [0.01, -0.01, 0.0]}
    paths = []
    for number, slow in enumerate((1.0, 2.0, 3.0)):
        times = {"fp32": [10.0 * slow], "again": [10.0 * slow]}
        times |= {name: [5.0 * slow * math.exp(own[number])] for name, own in steps.items()}
        paths.append(panel(tmp_path, times, number=number))
    headline = {"m": {"reference": "fp32"} | AT}
    make(tmp_path, "processes", paths)
    table = make(tmp_path, "power", headline=headline)
    library, graph = (only(table, runtime=name) for name in ("generate", "graph"))
    assert library[["processes", "comparisons"]].tolist() == graph[["processes", "comparisons"]].tolist() == [3, 3]
    assert library["spread"] == pytest.approx(0.1 / math.sqrt(3), rel=1e-4)  # pooled over int8, nf4 and the reference
    assert graph["spread"] == pytest.approx(0.01, rel=1e-4)
    assert graph["finds_10_percent"] == graph["finds_100_percent"] == 1
    error, degrees = library["spread"] / math.sqrt(3), pooled_degrees(2 * 3, 3)
    assert library["finds_50_percent"] == pytest.approx(power(error, degrees, 3, 1.5), abs=0.0051)
    make(tmp_path, "processes", paths[:1])
    assert make(tmp_path, "power", headline=headline).empty
    assert make(tmp_path, "power", headline={"m": {"reference": "fp32"} | AT | {"batch": 2}}).empty


def test_a_configuration_in_a_group_of_its_own_is_compared_between_processes(tmp_path):
    paths = []
    for number, (slow, other) in enumerate([(1.0, 1.1), (1.3, 0.9), (0.8, 1.0)]):
        beside = {"fp32": [10.0 * slow], "int8": [5.0 * slow]}
        paths.append(panel(tmp_path, beside, {"nf4": [2.5 * other]}, number=number))
    table = speed_of(tmp_path, *paths)
    assert only(table, precision="int8")[TPOT].tolist() == pytest.approx([2, 2, 2])
    alone = only(table, precision="nf4")
    assert alone["tpot_speedup"] == pytest.approx(4 * (1.3 * 0.8 / 1.1 / 0.9) ** (1 / 3), rel=1e-5)
    assert alone["tpot_speedup_low"] < 0.9 * alone["tpot_speedup"] and alone["tpot_speedup_high"] > 4.4


def test_the_base_is_the_fastest_dense_configuration(tmp_path):
    """Not the reference, not the one with the fastest single process, not the faster quantized one."""
    times = {"fp32": 20.0, "again": 20.0, "fp32.sdpa.graph": 12.0, "bf16.sdpa.graph": 10.0, "nf4": 5.0}
    processes = [{name: [ms * drift] for name, ms in times.items()} for drift in (1.0, 1.5, 1.0)]
    for times, noisy in zip(processes, (4.0, 60.0, 30.0)):
        times["bf16.sdpa.compile"] = [noisy]
    table = panels(tmp_path, *processes)
    base = only(table, precision="bf16", runtime="graph")
    assert base["tpot_verdict"] == base["e2e_verdict"] == "base" and base["tpot_speedup"] == 1
    assert base[["tpot_speedup_low", "tpot_speedup_high"]].isna().all()
    assert set(table[table["again"] == "no"]["against"]) == {"bf16 (sdpa, graph)"}
    assert only(table, precision="nf4")["tpot_speedup"] == pytest.approx(2)
    again = only(table, again="yes")  # the reference, with itself
    assert (again["against"], again["tpot_verdict"]) == ("fp32 (sdpa, generate)", "same")
    assert again[TPOT].tolist() == pytest.approx([1, 1, 1])


def test_there_is_a_base_at_each_workload_and_none_without_a_dense_configuration(tmp_path):
    wide = {"fp32": [40.0], "bf16": [80.0], "nf4": [10.0]}
    paths = [panel(tmp_path, {"fp32": [20.0], "bf16": [10.0]}), panel(tmp_path, {"nf4": [10.0]}, model="n")]
    paths.append(panel(tmp_path, wide, number=1, workload=AT | {"batch": 8}))
    table = speed_of(tmp_path, *paths, headline={"m": {"reference": "fp32"}, "n": {"reference": "nf4"}})
    assert only(table, precision="bf16", batch=1)["tpot_verdict"] == "base"
    assert only(table, precision="fp32", batch=8)["tpot_verdict"] == "base"
    assert only(table, model="m", precision="nf4")["tpot_speedup"] == 4
    alone = only(table, model="n")
    assert alone["status"] == "ok" and alone["against"] == "" and math.isnan(alone["tpot_speedup"])


def test_generate_speedup_is_against_the_reference_under_the_library_s_runtime(tmp_path):
    times = {"fp32": [20.0], "again": [20.0], "bf16": [10.0], "fp32.sdpa.graph": [5.0], "nf4.eager.generate": [4.0]}
    table = panels(tmp_path, times)
    gains = [only(table, **own)["generate_speedup"] for own in ({"runtime": "graph"}, {"precision": "bf16"})]
    assert gains == [4, 2]
    for other in ({"attention": "eager"}, {"precision": "fp32", "runtime": "generate", "again": "no"}):
        assert math.isnan(only(table, **other)["generate_speedup"])


@pytest.mark.parametrize(
    ("ratios", "word"),  # the margin is 10 %
    [([1.2] * 3, "faster"), ([0.8] * 3, "slower"), ([1.09] * 3, "same")]
    + [(ratios, "not enough data") for ratios in ([1.0, 1.4, 0.7], [1.2])],
)
def test_the_four_verdicts(tmp_path, ratios, word):
    row = only(panels(tmp_path, *({"fp32": [12.0], "int8": [12.0 / ratio]} for ratio in ratios)), precision="int8")
    assert row["tpot_verdict"] == word and row["tpot_speedup"] == pytest.approx(np.prod(ratios) ** (1 / len(ratios)))
    assert math.isnan(row["tpot_speedup_low"]) == (len(ratios) == 1)


def test_a_configuration_that_failed_keeps_its_row_and_a_failed_process_is_noted(tmp_path):
    late = {"status": "timeout", "reason": "600 s"}
    table = panels(tmp_path, {"fp32": [10.0], "nf4": late}, {"fp32": late, "nf4": late}, {"fp32": [40.0], "nf4": late})
    partly, gone = only(table, precision="fp32"), only(table, precision="nf4")
    assert (partly["status"], partly["processes"], partly["tpot_ms"]) == ("ok", 2, 20)
    assert partly["reason"] == "1 of 3 processes failed (timeout: 600 s)"
    assert (gone["status"], gone["reason"], gone["processes"]) == ("timeout", "600 s", 0)
    assert gone[["tpot_ms", "tpot_speedup", "floor_ms", "mbu"]].isna().all() and gone["tpot_verdict"] == ""


# ------------------------------------------------------------------------------------------------------------ probes


WEIGHTS = {"embeddings": {"bfloat16": GIB}, "linears": {"int8": 2 * GIB, "float32": GIB // 2}, "norms": {}}
WEIGHTS |= {"head": {"bfloat16": GIB}, "other": {"float32": 0}}


def phase(peak_gib, rss_gib, cuda=False, driver_gib=9):
    reading = {"peak_rss_bytes": int(rss_gib * GIB), "peak_rss_growth_bytes": int(peak_gib * GIB)}
    if cuda:
        reading |= {"peak_allocated_bytes": 7 * GIB, "peak_reserved_bytes": 8 * GIB}
        reading["driver_bytes"] = driver_gib and driver_gib * GIB
    return reading


def held(workload, **cuda):
    entry = {"workload": workload, "status": "ok", "reason": "", "prefill": phase(5.5, 6.0, **cuda)}
    entry |= {"decode": phase(6.0, 6.5, **cuda), "kv_cache_bytes": GIB, "cold_ms": 500.0, "compile_s": 0.5}
    return entry | {"kv_cache_measured_prefill_bytes": GIB // 2, "attention_kernels": ["flash", "combine"]}


def probe_of(folder, *entries, load=None, workloads=WORKLOADS[:1], results=None, **changes):
    load = load or phase(5.0, 5.5, cuda="peak_reserved_bytes" in entries[0]["decode"]) if entries else None
    measured = {"load_s": 1.5, "load": load, "weights": WEIGHTS, "kv_bytes_per_token": 1, "workloads": list(entries)}
    results = measured if results is None else results
    return table_of(folder, "probes", "probe", results, {"workloads": workloads}, **changes)


def test_a_probe_in_gib_by_component_and_phase(tmp_path):
    row = only(probe_of(tmp_path, held(WORKLOADS[0])))
    assert row["weights_gib"] == 4.5
    assert [row[f"{name}_gib"] for name in ("embeddings", "linears", "norms", "head", "other")] == [1, 2.5, 0, 1, 0]
    assert (row["peak_load_gib"], row["peak_prefill_gib"], row["peak_decode_gib"]) == (5.0, 5.5, 6.0)
    assert row["kv_cache_gib"] == 1.0 and row["kv_cache_measured_prefill_gib"] == 0.5
    assert row["workspace_gib"] == pytest.approx(6.0 - 4.5 - 1.0)  # what decode has above weights and cache
    assert (row["load_s"], row["cold_ms"], row["compile_s"], row["peak_rss_gib"]) == (1.5, 500, 0.5, 6.5)
    assert row["attention_kernels"] == "flash; combine"
    assert math.isnan(row["peak_reserved_gib"]) and math.isnan(row["driver_gib"])  # does not apply on a CPU
    loading = probe_of(tmp_path, held(WORKLOADS[0]), load=phase(9.0, 9.5))
    assert only(loading)["peak_rss_gib"] == 9.5  # the host's peak may be that of loading


@pytest.mark.parametrize(
    ("device", "gib"),
    [
        ({}, 4.5 + 1),  # a CPU: weights and KV cache, whatever the peaks
        ({"cuda": True}, 9),  # what the driver shows
        ({"cuda": True, "driver_gib": None}, 8),  # without NVML what the allocator reserved
        ({"cuda": True, "driver_gib": 6}, 8),  # read after some was given back
    ],
)
def test_the_memory_that_is_judged_depends_on_the_device(tmp_path, device, gib):
    row = only(probe_of(tmp_path, held(WORKLOADS[0], **device)))
    assert row["memory_gib"] == gib
    if device:
        assert row["peak_load_gib"] == row["peak_prefill_gib"] == row["peak_decode_gib"] == 7
        assert row["peak_reserved_gib"] == 8


def test_what_does_not_fit_keeps_what_is_known_of_the_weights_and_what_never_loaded_has_no_bytes(tmp_path):
    table = probe_of(tmp_path, held(WORKLOADS[0]), {"workload": WORKLOADS[1], "decode": {}} | OOM, workloads=WORKLOADS)
    failed = only(table, batch=8)
    assert (failed["status"], failed["reason"]) == ("oom", "CUDA out of memory")
    assert (failed["weights_gib"], failed["peak_load_gib"], failed["load_s"]) == (4.5, 5.0, 1.5)
    assert failed[["memory_gib", "kv_cache_gib", "workspace_gib", "peak_decode_gib", "cold_ms"]].isna().all()
    table = probe_of(tmp_path, workloads=WORKLOADS, results={}, **OOM)
    assert len(table) == 2 and set(table["status"]) == {"oom"}
    assert table[[name for name in table if name.endswith("_gib")]].isna().all(axis=None)


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
    assert (row["ppl_ratio"], row["ppl_verdict"], row["reason"]) == (1.0, "reference", "")
    assert math.isnan(row["ppl_ratio_low"])
    assert math.isnan(row["kl_nats"]) and row["kl_reason"] == quality.NO_REFERENCE


def test_a_measurement_says_why_it_was_not_paired(tmp_path):
    entry, arrays = scored(np.ones(100))
    row = only(quality_of(tmp_path, quality_record(tmp_path, "fp32", (entry | {"unpaired": "disk full"}, arrays))))
    assert math.isnan(row["kl_nats"]) and row["kl_reason"] == "disk full"


def test_differences_are_paired_with_the_reference(tmp_path):
    base = np.random.default_rng(0).gamma(2.0, 1.5, 200)
    agree = np.tile([1.0, 1.0, 1.0, 0.0], 20).astype(np.float32)
    distances = {"kl": np.full(80, 0.25, dtype=np.float32), "top1": agree}
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
    assert row["top1_agreement"] == pytest.approx(0.75)
    assert row["ppl_verdict"] == "higher"
    assert only(table, precision="fp32")[["delta_nll", "delta_p_rms"]].isna().all()


def test_fewer_tokens_are_paired_with_the_beginning_of_the_reference(tmp_path):
    base = np.random.default_rng(0).gamma(2.0, 1.5, 200)
    entry, arrays = scored(base[:100] + 0.1)
    entry |= {"words": 25, "utf8_bytes": 210}
    arrays["text/w64-s32/document"] = scored(base)[1]["text/w64-s32/document"][:100]
    paths = [quality_record(tmp_path, "fp32", scored(base)), quality_record(tmp_path, "llm-int8-t2", (entry, arrays))]
    row = only(quality_of(tmp_path, *paths), precision="llm-int8-t2")
    assert (row["status"], row["tokens"], row["words"]) == ("ok", 100, 25)
    assert row["ppl_ratio"] == pytest.approx(math.exp(0.1), rel=1e-5)


def test_decoded_tokens_are_compared_with_the_reference_s_and_with_one_pass(tmp_path):
    """Each runtime's token step with the reference's under the base runtime, and with the own precision's pass."""
    base = np.random.default_rng(0).gamma(2.0, 1.5, 200)
    decode = {"batches": [1], "prompts": 10, "prompt_tokens": 5, "new_tokens": 21}
    library = BOTH | {"protocols": [], "decode": decode | {"batches": [0, 1]}}
    names = ["pass-p5-n21", "decode-b1-p5-n21"]

    def record(precision, runtime, *losses):
        settings = library if runtime == "generate" else library | {"decode": decode}
        measured = [scored(base + loss, name) for name, loss in zip(names[-len(losses) :], losses)]
        return quality_record(tmp_path, precision, *measured, settings=settings, runtime=runtime)

    table = quality_of(
        tmp_path,
        record("fp32", "graph", 0.02),  # the reference's precision in another runtime is no reference
        record("fp32", "generate", 0.0, 0.01),
        record("nf4", "generate", 0.3, 0.31),
        record("nf4", "graph", 0.35),
    )
    found = {(row.precision, row.runtime, row.protocol): (row.delta_nll, row.path_ratio) for row in table.itertuples()}
    none = pytest.approx(math.nan, nan_ok=True)
    step = names[1]
    assert found == {
        ("fp32", "graph", step): pytest.approx((0.01, math.exp(0.02)), abs=1e-5),
        ("fp32", "generate", names[0]): (none, none),
        ("fp32", "generate", step): (none, pytest.approx(math.exp(0.01), abs=1e-5)),
        ("nf4", "generate", names[0]): (pytest.approx(0.3, abs=1e-5), none),
        ("nf4", "generate", step): pytest.approx((0.3, math.exp(0.01)), abs=1e-5),
        ("nf4", "graph", step): pytest.approx((0.34, math.exp(0.05)), abs=1e-5),
    }
    assert (table["path_ratio_low"].dropna() > 1).all()


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


def test_labels_and_words_say_how_windows_begin(tmp_path):
    """Each model as its tokenizer does, where the config does not say; a record of before has a label all the same."""
    settings = FIRST | {"bos": None}
    entry, arrays = scored(np.ones(20), "w64-s32-bos")
    results = {"bos": {"token": "<s>", "habit": "<s>"}, "protocols": [entry]}
    paths = [write_record(tmp_path, "quality", results, settings, arrays)]
    results = {"bos": {"token": "<s>", "habit": "<s>"}, "protocols": []}  # loading failed
    paths.append(write_record(tmp_path, "quality", results, settings, precision="bf16", **OOM))
    results = {"bos": {"token": None, "habit": "<s>"}, "protocols": []}
    paths.append(write_record(tmp_path, "quality", results, FIRST, precision="nf4", **OOM))
    paths.append(write_record(tmp_path, "quality", {}, settings, precision="fp4", **OOM))
    paths.append(quality_record(tmp_path, "int8", scored(np.ones(20))))
    table = quality_of(tmp_path, *paths)
    assert table[["protocol", "bos"]].to_numpy().tolist() == [
        ["w64-s32-bos", "<s>, as the tokenizer does"],
        ["w64-s32-bos", "<s>, as the tokenizer does"],
        ["w64-s32", "none, the tokenizer adds <s>"],
        ["w64-s32", "none"],
        ["w64-s32", "none"],
    ]


def test_what_cannot_be_counted_is_empty_with_the_reason(tmp_path):
    def row(entry, arrays):
        return only(quality_of(tmp_path, quality_record(tmp_path, "fp32", (entry, arrays))))

    entry, arrays = scored(np.full(100, 2.0))
    found = row(entry | {"words": None, "uncounted": "words: no spaces"}, arrays)
    assert found[["words", "word_ppl"]].isna().all() and found["uncounted"] == "words: no spaces"
    assert found["byte_ppl"] == pytest.approx(math.exp(200 / 400), rel=1e-5)
    found = row(entry | {"words": None, "utf8_bytes": None, "uncounted": "words, bytes: lost"}, arrays)
    assert found[["word_ppl", "byte_ppl", "bits_per_byte"]].isna().all() and found["uncounted"] == "words, bytes: lost"
    entry, arrays = scored(np.full(100, 20.0))
    found = row(entry | {"words": 2}, arrays)  # exp(1000), which is no float
    assert math.isnan(found["word_ppl"]) and found["uncounted"] == "word_ppl beyond 1e308"
    assert "inf" not in (tmp_path / "quality.csv").read_text()


def test_a_loss_without_a_perplexity_is_no_result(tmp_path):
    table = quality_of(
        tmp_path,
        quality_record(tmp_path, "fp32", scored(np.ones(20))),
        quality_record(tmp_path, "nf4", scored(np.full(20, 800.0))),
    )
    row = only(table, precision="nf4")
    assert (row["status"], row["reason"]) == ("overflow", "800 nats a token: no perplexity")
    assert row[["ppl", "ppl_ratio"]].isna().all() and row["nll"] == 800


def test_a_reference_that_is_not_finite_is_the_reason_of_all(tmp_path):
    lost = {"corpus": "text", "protocol": "w64-s32", "status": "overflow", "reason": "not finite at layer 3"}
    reference = quality_record(tmp_path, "fp32", (lost, {}), status="overflow", reason="not finite at layer 3")
    row = only(quality_of(tmp_path, reference, quality_record(tmp_path, "bf16", scored(np.ones(20)))), precision="bf16")
    assert (row["status"], row["reason"]) == ("ok", "not compared: the reference is not finite at layer 3")
    assert row["ppl"] == pytest.approx(math.e, rel=1e-5) and math.isnan(row["ppl_ratio"])


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
    texts = {"fp32": ([1, 2, 3, 4], "upon"), "bf16": ([1, 2, 9, 4], "a time")}
    paths = [
        text_record(tmp_path, name, {"Once": text, prompts[1]: ([5, 6], "NA")}, prompts) for name, text in texts.items()
    ]
    table = make(tmp_path, "generations", paths)
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
    lost = text_record(tmp_path, "fp32", None, ["a"], **OOM)
    make(tmp_path, "generations", [lost, text_record(tmp_path, "nf4", {"a": ([7] * 11, "y")}, ["a"])])
    row = only(make(tmp_path, "text"), precision="nf4")
    assert row["distinct_2_mean"] == pytest.approx(0.1) and row["prompts"] == 1
    assert row[["exact_match", "never_diverged", "identical_tokens_mean", "agreement_8"]].isna().all()
