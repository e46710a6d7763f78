"""crossover.csv and capacity.csv out of synthetic tables whose answers are known."""

import json

import extra_jobs
import pandas as pd
import pytest
from llmstudy.runner.provenance import device_memory_gib
from llmstudy.tables import capacity, crossover
from llmstudy.tables.processes import COLUMNS as LATENCY

WHERE = {
    "study": "s",
    "model": "m",
    "weights": "real",
    "runtime": "generate",
    "device": "cpu",
    "status": "ok",
    "reason": "",
}


def test_crossovers_of_precisions_and_of_attention_kernels(tmp_path):
    rows = []
    for batch in (1, 4, 16):  # int8 gives batch² / 4 times bf16's tokens/s: even at batch 2
        for precision, rate in (("bf16", 100.0), ("llm-int8", 100.0 * batch**2 / 4)):
            one = WHERE | {"precision": precision, "attention": "sdpa", "batch": batch, "prompt_tokens": 64}
            rows.append(one | {"new_tokens": 8, "tokens_per_s": rate, "ttft_ms": 10.0})
    for prompt in (256, 1024):  # twice as slow at 256 tokens, twice as fast at 1 024: even at 512
        for attention, ttft in (("eager", 10.0 * prompt / 256), ("sdpa", 20.0)):
            one = WHERE | {"precision": "bf16", "attention": attention, "batch": 2, "prompt_tokens": prompt}
            rows.append(one | {"new_tokens": 8, "tokens_per_s": 1.0, "ttft_ms": ttft})
    pd.DataFrame(rows).to_csv(tmp_path / "processes.csv", index=False)
    crossover.write(tmp_path / "processes.csv", [], {"m": "bf16"}, "eager", "generate", tmp_path / "crossover.csv")
    found = pd.read_csv(tmp_path / "crossover.csv").set_index("along")
    assert list(found.columns[:8]) == [
        "study",
        "model",
        "weights",
        "precision",
        "attention",
        "runtime",
        "device",
        "status",
    ]
    assert found.loc["batch", ["precision", "reference", "kind", "study", "device"]].tolist() == [
        "llm-int8",
        "bf16",
        "overtakes",
        "s",
        "cpu",
    ]
    assert found.loc["batch", "x"] == pytest.approx(2)
    assert found.loc["prompt_tokens", ["attention", "reference", "kind"]].tolist() == ["sdpa", "generate", "overtakes"]
    assert found.loc["prompt_tokens", "x"] == pytest.approx(512)


def test_one_workload_has_no_crossover(tmp_path):
    rows = [
        WHERE
        | {"precision": precision, "attention": "sdpa", "batch": 1, "prompt_tokens": 64, "new_tokens": 8}
        | {"tokens_per_s": 5.0, "ttft_ms": 9.0}
        for precision in ("bf16", "nf4")
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "processes.csv", index=False)
    crossover.write(tmp_path / "processes.csv", [], {"m": "bf16"}, "eager", "generate", tmp_path / "crossover.csv")
    assert pd.read_csv(tmp_path / "crossover.csv").empty


def kernel_alone(folder, kernel, times, **changes):
    """The record of one attention kernel; ``times``: (context, phase) → milliseconds per repeat, or a status."""
    points = [
        {"context": context, "phase": phase, "reason": ""}
        | ({"status": found} if isinstance(found, str) else {"status": "ok", "time_ms": found})
        for (context, phase), found in times.items()
    ]
    path = folder / f"{kernel}.json"
    told = {"precision": "bf16", "attention": kernel} | changes
    path.write_text(json.dumps(extra_jobs.record("attention", {"points": points}, **told)))
    return str(path)


def test_attention_kernels_alone_cross_over_along_the_context(tmp_path):
    """Quadratic against linear time, equal at 1 000; decode equal nowhere; a kernel that failed from 4 000 on."""
    contexts = (250, 500, 2000, 4000)
    curves = {
        "eager": {"prefill": lambda n: n**2 / 1e3, "decode": lambda n: n / 100},
        "sdpa": {"prefill": lambda n: n, "decode": lambda n: n / 90},
        "sdpa-flash": {"prefill": lambda n: n / 10 if n < 4000 else "oom", "decode": lambda n: "unsupported"},
    }
    paths = []
    for kernel, phases in curves.items():
        found = {(n, phase): time(n) for n in contexts for phase, time in phases.items()}
        repeated = {key: one if isinstance(one, str) else [one * 0.99, one / 0.99] for key, one in found.items()}
        paths.append(kernel_alone(tmp_path, kernel, repeated))
    paths.append(kernel_alone(tmp_path, "sdpa-math", {}, status="timeout", reason="long"))
    pd.DataFrame([WHERE], columns=LATENCY).to_csv(tmp_path / "processes.csv", index=False)
    crossover.write(tmp_path / "processes.csv", paths, {"m": "bf16"}, "sdpa", "generate", tmp_path / "crossover.csv")
    found = pd.read_csv(tmp_path / "crossover.csv").set_index(["attention", "quantity"])
    assert len(found) == 3 and set(found["along"]) == {"context"} and set(found["reference"]) == {"eager"}
    row = found.loc[("sdpa", "prefill_ms")]
    assert row["kind"] == "overtakes" and row["low"] < row["x"] < row["high"]
    assert row["x"] == pytest.approx(1000, rel=1e-5) and row["text"].startswith("overtakes at 1000 (95 %")
    assert found.loc[("sdpa", "decode_ms"), "text"] == "behind throughout: none up to 4000"
    # the two points below 4 000 that both measured, and 2 000
    assert found.loc[("sdpa-flash", "prefill_ms"), "text"] == "ahead throughout, from 250 to 2000"
    assert row[["study", "model", "weights", "precision", "status"]].tolist() == [
        "tiny",
        "tiny-llama",
        "real",
        "bf16",
        "ok",
    ]


def memory_rows():
    """10 GiB of weights, and 2⁻¹⁰ GiB for each token of each sequence."""
    for batch, status in ((1, "ok"), (4, "ok"), (64, "oom")):
        gib = 10 + batch * 1024 / 1024
        one = WHERE | {
            "precision": "bf16",
            "attention": "sdpa",
            "batch": batch,
            "prompt_tokens": 1000,
            "new_tokens": 24,
        }
        measured = {"weights_gib": 10.0, "kv_cache_gib": batch * 1.0, "peak_prefill_gib": gib, "peak_decode_gib": gib}
        yield one | (measured if status == "ok" else {"status": "oom"})


def test_capacity_with_what_was_really_seen(tmp_path):
    pd.DataFrame(memory_rows()).to_csv(tmp_path / "memory.csv", index=False)
    capacity.write(tmp_path / "memory.csv", [], [], [1024, 2048], 40.0, tmp_path / "capacity.csv")
    short, long = pd.read_csv(tmp_path / "capacity.csv").to_dict("records")
    assert (short["context_tokens"], short["largest_batch"], short["first_too_large"]) == (1024, 30, 31)
    assert (short["fits_gib"], short["too_large_gib"]) == pytest.approx((40, 41))
    assert (short["largest_ok"], short["smallest_oom"]) == (4, 64)
    assert (short["study"], short["device"], short["status"], short["device_gib"]) == ("s", "cpu", "ok", 40)
    assert (long["context_tokens"], long["largest_batch"]) == (2048, 15)
    assert pd.isna(long["largest_ok"])
    assert pd.isna([short[name] for name in ("usable_gib", *capacity.VERIFIED)]).all()


def capacity_record(runs: dict[int, str], status="ok", **samples) -> dict:
    """What a verification leaves that had 39.5 GiB of the 40, so that 29 fit, and found this."""
    identity = WHERE | {"precision": "bf16", "attention": "sdpa", "kind": "capacity", "repeat": 0}
    found = {"context_tokens": 1024, "usable_gib": 39.5, "largest_batch": 29, "below": 28, "above": 31}
    found |= {"runs": [{"batch": batch, "status": told, "reason": ""} for batch, told in runs.items()]} | samples
    told = {"schema": 1, "status": status, "reason": "" if status == "ok" else "why", "results": found}
    return told | {"identity": identity, "settings": {"contexts": [1024, 2048]}}


@pytest.mark.parametrize(
    ("runs", "fits", "too_large", "prediction"),
    [
        ({28: "ok", 31: "oom"}, 28, 31, "held"),
        ({28: "oom", 25: "ok", 26: "ok", 27: "ok"}, 27, 28, "missed"),
        ({28: "ok", 31: "ok", 34: "oom", 32: "ok", 33: "oom"}, 32, 33, "missed"),
        ({28: "ok", 31: "ok", 34: "ok", 40: "ok", 52: "ok"}, 52, None, "missed"),
    ],
)
def test_what_was_verified_stands_beside_its_prediction(runs, fits, too_large, prediction):
    memory = pd.DataFrame(memory_rows())
    short, long = capacity.rows_of(memory, [1024, 2048], 40.0, [capacity_record(runs)])
    assert (short["device_gib"], short["usable_gib"], short["largest_batch"]) == (40.0, 39.5, 29)
    assert (short["verified_fits"], short["verified_oom"], short["prediction"]) == (fits, too_large, prediction)
    assert long["largest_batch"] == 14 and "prediction" not in long  # 29.5 / 2


def test_a_model_that_does_not_fit_at_all_holds_its_prediction():
    memory = pd.DataFrame(memory_rows())
    nothing = capacity_record({1: "oom"}, usable_gib=9.0, largest_batch=0, below=0, above=1)
    (row,) = capacity.rows_of(memory, [1024], 40.0, [nothing])
    assert (row["largest_batch"], row["verified_fits"], row["verified_oom"], row["prediction"]) == (0, 0, 1, "held")


def test_a_verification_that_failed_says_so_where_it_would_stand(tmp_path):
    memory = pd.DataFrame(memory_rows())
    stopped = capacity_record({28: "ok"}, status="timeout")
    (row,) = capacity.rows_of(memory, [1024], 40.0, [stopped])
    assert (row["verified_fits"], row["verified_oom"]) == (28, None)
    assert (row["status"], row["prediction"], row["prediction_reason"]) == ("ok", "timeout", "why")
    never = capacity_record({}, status="unsupported") | {"results": {}}
    short, long = capacity.rows_of(memory, [1024, 2048], 40.0, [never])
    assert "prediction" not in short and long["prediction"] == "unsupported" and long["largest_batch"] == 15


@pytest.mark.parametrize(
    ("provenance", "size"),
    [
        ({"host_memory_gib": 23.5}, 23.5),
        ({"host_memory_gib": 128.0, "gpu": {"memory_gib": 139.8}}, 139.8),
        ({}, float("inf")),
    ],
)
def test_size_of_the_device(provenance, size):
    assert device_memory_gib(provenance) == size
