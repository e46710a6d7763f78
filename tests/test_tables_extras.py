"""Tables of the extras from hand-made records: units, medians, and one row with a status where nothing was measured."""

import json
import math

import extra_jobs
import numpy as np
import pandas as pd
import pytest
from llmstudy.tables import attention, invariance, outliers, profile, sensitivity, sweep
from llmstudy.tables.columns import read_table

FAILED = {"status": "oom", "reason": "CUDA out of memory"}


def table(folder, module, *records, **arguments) -> pd.DataFrame:
    paths = []
    for number, record in enumerate(records):
        paths.append(str(folder / f"{number}.json"))
        (folder / f"{number}.json").write_text(json.dumps(record))
    module.write(paths, *arguments.values(), folder / "table.csv")
    return read_table(folder / "table.csv")


SETTINGS = {"contexts": [1024], "threshold": "6"}


@pytest.mark.parametrize("module", [outliers, sensitivity, invariance, profile])
def test_a_failed_record_is_one_row_with_its_status(tmp_path, module):
    kind = module.__name__.rsplit(".", 1)[-1]
    found = table(tmp_path, module, extra_jobs.record(kind, {}, SETTINGS, **FAILED))
    assert found[["status", "reason"]].values.tolist() == [["oom", "CUDA out of memory"]]


def test_outliers_have_a_row_per_linear_and_threshold(tmp_path):
    shares = {"column_share": 0.01, "row_share": 0.5, "entry_share": 0.001}
    entry = {"layer": 3, "linear": "down_proj", "columns": 1536, "max_abs": 70.5}
    entry["thresholds"] = [{"threshold": threshold, **shares} for threshold in (4.0, 6.0)]
    found = table(tmp_path, outliers, extra_jobs.record("outliers", {"tokens": 99, "linears": [entry]}))
    assert found["threshold"].tolist() == [4.0, 6.0]
    assert found.loc[1, ["layer", "linear", "max_abs", "row_share", "tokens"]].tolist() == [
        3,
        "down_proj",
        70.5,
        0.5,
        99,
    ]


def test_sensitivity_names_what_a_part_spans(tmp_path):
    numbers = {"delta_nll": 0.01, "se": 0.002, "low": 0.005, "high": None, "kl": 0.03, "kl_se": 0.001}
    parts = [(None, None), (4, None), (None, "q_proj"), (4, "q_proj")]
    samples = {"tokens": 99, "nll": 3.0, "blocks": "8 documents"}
    samples["parts"] = [{"layer": layer, "linear": linear} | numbers for layer, linear in parts]
    found = table(tmp_path, sensitivity, extra_jobs.record("sensitivity", samples))
    assert found[["layer", "linear"]].astype(str).values.tolist() == [
        ["all", "all"],
        ["4", "all"],
        ["all", "q_proj"],
        ["4", "q_proj"],
    ]
    assert found["delta_nll_se"].tolist() == [0.002] * 4 and found["delta_nll_high"].isna().all()
    assert found["kl_nats"].tolist() == [0.03] * 4


def test_invariance_keeps_a_batch_that_failed(tmp_path):
    good = {"batch": 2, "neighbours": "copies", "status": "ok", "reason": ""}
    good |= {"max_abs_delta_logit": 0.5, "mean_abs_delta_logit": 0.1, "top1_changes": 3}
    bad = {"batch": 8, "neighbours": "others 1"} | FAILED
    found = table(tmp_path, invariance, extra_jobs.record("invariance", {"positions": 64, "batches": [good, bad]}))
    assert found["status"].tolist() == ["ok", "oom"]
    assert found["top1_changes"].tolist()[0] == 3 and math.isnan(found["top1_changes"][1])
    assert found["positions"].tolist() == [64, 64]


STEP = {"launches": 100.0, "waits": 2.0, "operators": 300.0, "kernels": 110.0, "busy_ms": 2.0, "profiled_ms": 16.0}
STEP |= {"matmul_share": 0.7, "top": [["gemv", 0.6], ["rms_norm", 0.1]]}
PROFILE = {
    "workload": {"batch": 1, "prompt_tokens": 32, "new_tokens": 10},
    "bandwidth_gb_s": 4000.0,
    "matmul_tflops": 500.0,
    "step_bytes": 8_000_000_000,
    "step_flops": 14_000_000_000,
    "tpot_ms": 8.0,
    "step": STEP,
}


def test_profile_of_a_gpu(tmp_path):
    (row,) = table(tmp_path, profile, extra_jobs.record("profile", PROFILE, device="cuda")).to_dict("records")
    assert row["launches_per_token"] == 100 and row["syncs_per_token"] == 2 and row["kernels_per_token"] == 110
    assert row["device_busy_share"] == pytest.approx(2 / 8)
    assert row["mbu"] == pytest.approx(8e9 / 8e-3 / 4e12)  # 0.25
    assert row["flops_share"] == pytest.approx(14e9 / 8e-3 / 5e14)
    assert row["limit"] == "launch-bound"
    assert row["top_operations"] == "gemv 60%; rms_norm 10%"


def test_profile_of_a_cpu_has_no_launches(tmp_path):
    (row,) = table(tmp_path, profile, extra_jobs.record("profile", PROFILE)).to_dict("records")
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
    assert profile.limit_of(mbu, flops, busy) == limit


def test_attention_rates_and_what_does_not_apply(tmp_path):
    point = {"context": 1024, "status": "ok", "reason": "", "max_abs_error": 1e-3, "kernels": ["flash"]}
    samples = {"heads": 32, "kv_heads": 8, "head_dim": 128}
    samples["points"] = [
        point | {"phase": "prefill", "time_ms": [1.0, 2.0, 4.0], "extra_bytes": 8 * 2**20},
        point | {"phase": "decode", "time_ms": [0.5], "extra_bytes": None},
    ]
    found = table(tmp_path, attention, extra_jobs.record("attention", samples, SETTINGS))
    prefill, decode = found.to_dict("records")
    assert (prefill["time_ms"], prefill["time_low_ms"], prefill["time_high_ms"]) == (2.0, 1.0, 4.0)
    assert prefill["tflops"] == pytest.approx(4 * 32 * 128 * 1024**2 / 2 / 2e-3 / 1e12)
    assert prefill["extra_mib"] == 8 and prefill["prompt_tokens"] == 1024 and math.isnan(prefill["gb_s"])
    assert decode["gb_s"] == pytest.approx(2 * 8 * 1024 * 128 * 2 / 0.5e-3 / 1e9, rel=1e-5)
    assert math.isnan(decode["tflops"]) and math.isnan(decode["prompt_tokens"]) and math.isnan(decode["extra_mib"])


def test_attention_that_stopped_has_a_row_for_every_point_asked_for(tmp_path):
    record = extra_jobs.record("attention", {}, {"contexts": [512, 1024]}, status="timeout", reason="stopped")
    found = table(tmp_path, attention, record)
    assert found[["context", "phase", "status"]].values.tolist() == [
        [context, phase, "timeout"] for context in (512, 1024) for phase in ("prefill", "decode")
    ]


def test_sweep_pairs_with_the_beginning_of_the_reference(tmp_path):
    document = np.repeat(np.arange(10), 20)
    nll = np.linspace(2, 4, 200)
    key = "tiny-text/w64-s32"
    (tmp_path / "quality").mkdir()
    reference = tmp_path / "quality" / "fp32.json"
    reference.write_text(json.dumps(extra_jobs.record("quality", {})))
    np.savez(reference.with_suffix(".npz"), **{f"{key}/nll": nll, f"{key}/document": document})
    entry = {"corpus": "tiny-text", "protocol": "w64-s32", "words": 90, "utf8_bytes": 400, "status": "ok", "reason": ""}
    workload = {"batch": 1, "prompt_tokens": 9, "new_tokens": 3}
    samples = {"protocols": [entry], "runs": [{"itl_ms": [4.0, 6.0]}, {"itl_ms": [7.0, 7.0]}]}
    records = []
    for number, (threshold, loss) in enumerate([("inf", 0.1), ("0", 0.2)]):
        settings = {"threshold": threshold, "workload": workload}
        records.append(extra_jobs.record("sweep", samples, settings, precision="llm-int8"))
        arrays = {f"{key}/nll": nll[:160] + loss, f"{key}/document": document[:160]}
        np.savez(tmp_path / f"{number}.npz", **arrays)
    records.append(extra_jobs.record("sweep", {}, {"threshold": "6"}, precision="llm-int8", **FAILED))
    found = table(tmp_path, sweep, *records, quality=[str(reference)], reference="fp32")
    assert found["threshold"].tolist() == [0, 6, math.inf]
    assert found["status"].tolist() == ["ok", "oom", "ok"]
    assert found["tokens"].tolist()[0] == 160
    assert found["ppl_ratio"].tolist()[::2] == pytest.approx([math.exp(0.2), math.exp(0.1)], rel=1e-5)
    assert found.loc[0, ["tpot_ms", "tpot_low_ms", "tpot_high_ms", "runs", "new_tokens"]].tolist() == [6, 5, 7, 2, 3]
