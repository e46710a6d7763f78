"""Speed: what is stamped, how often, and what a record keeps apart. No assertion on absolute times."""

import statistics

import pytest
import tiny
import torch
from llmstudy.errors import Unsupported
from llmstudy.measure import device, measure, speed
from llmstudy.runner.job import Workload
from llmstudy.runtimes import PrepareInfo, Timeline

WORKLOAD = Workload(**tiny.WORKLOAD)


@pytest.fixture(autouse=True)
def small_copies(monkeypatch):
    monkeypatch.setitem(device.COPY_BYTES, "cpu", 2**20)


class Clockwork:
    """A runtime that answers at once with fixed stamps."""

    stamps = [0.010, 0.012, 0.015, 0.019]

    def __init__(self, model, batch, prompt_tokens, new_tokens):
        self.shape = (batch, new_tokens)
        self.closed = False

    def prepare(self):
        return PrepareInfo(compile_s=1.25)

    def generate(self, input_ids):
        return Timeline(tokens=torch.zeros(self.shape, dtype=torch.int64), token_s=self.stamps[: self.shape[1]])

    def close(self):
        self.closed = True


def test_a_record_keeps_load_cold_call_and_steady_state_apart(measuring):
    workloads = [tiny.WORKLOAD, tiny.WORKLOAD | {"batch": 1, "new_tokens": 2}]
    results = measure(measuring("speed", workloads=workloads, minimum_runs=4))
    assert results["load_s"] > 0 and results["bandwidth_gb_s"] > 0
    for entry, new_tokens in zip(results["workloads"], (4, 2)):
        assert entry["status"] == "ok" and entry["workload"]["new_tokens"] == new_tokens
        assert entry["cold_ms"] > 0 and entry["compile_s"] == 0
        assert 2 <= len(entry["warmup_e2e_ms"]) <= 3
        assert len(entry["runs"]) == 4
        for run in entry["runs"]:
            assert len(run["itl_ms"]) == new_tokens - 1  # a time for every token after the first
            assert 0 < run["ttft_ms"] < run["e2e_ms"]
            assert run["ttft_ms"] + sum(run["itl_ms"]) <= run["e2e_ms"]
    assert results["kv_bytes_per_token"] == 2 * 2 * 2 * 16 * 4  # K and V · layers · KV heads · head width · fp32
    embedding = tiny.VOCABULARY * 64 * 4
    layer = 64 * (64 + 32 + 32 + 64) + 3 * 64 * 128 + 2 * 64  # q, k, v, o; gate, up, down; two norms
    assert results["step_weight_bytes"] == 4 * (2 * layer + 64) + embedding  # the head, as large as the embedding


def test_ttft_and_tpot_come_from_the_stamps_of_one_call():
    run = speed.timed_call(Clockwork(None, 2, 9, 4), None, WORKLOAD)
    assert run["ttft_ms"] == 10.0
    assert run["itl_ms"] == [2.0, 3.0, 4.0]
    assert statistics.fmean(run["itl_ms"]) == pytest.approx(1e3 * (0.019 - 0.010) / 3)  # (t_last − t_first)/(n − 1)


@pytest.mark.parametrize("new_tokens", [3, 5])
def test_a_call_with_another_number_of_tokens_is_an_error(new_tokens):
    with pytest.raises(RuntimeError, match="instead of"):
        speed.timed_call(Clockwork(None, 2, 9, new_tokens), None, WORKLOAD)


def test_one_workload_that_does_not_fit_costs_no_other(measuring, monkeypatch):
    created = []

    class Full(Clockwork):
        def prepare(self):
            created.append(self)
            if self.shape[0] == 7:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            return super().prepare()

    monkeypatch.setattr(speed.runtimes, "get", lambda name: Full)
    monkeypatch.setattr(speed, "prove_attention", lambda *_: ["sdpa"])
    monkeypatch.setattr(speed, "prompt_batch", lambda session, batch, tokens: torch.zeros(batch, tokens))
    session = measuring("speed", workloads=[tiny.WORKLOAD | {"batch": batch} for batch in (2, 7, 1)])
    entries = measure(session)["workloads"]
    assert [entry["status"] for entry in entries] == ["ok", "oom", "ok"]
    assert entries[1]["reason"] == "CUDA out of memory" and "runs" not in entries[1]
    assert entries[0]["compile_s"] == 1.25 and entries[0]["runs"][0]["ttft_ms"] == 10.0
    assert [len(saved["workloads"]) for saved in session.saved] == [0, 1, 2, 3]  # after loading and each workload
    assert all(runtime.closed for runtime in created)  # the one that failed too


def test_attention_that_did_not_run_makes_the_workload_unsupported(measuring, monkeypatch):
    def refuse(*_):
        raise Unsupported("attention 'sdpa-flash': math ran instead")

    monkeypatch.setattr(speed, "prove_attention", refuse)
    entry = measure(measuring("speed"))["workloads"][0]
    assert entry["status"] == "unsupported" and "math" in entry["reason"]


@pytest.mark.parametrize(
    ("times", "warmup", "expected"),
    [
        ([100, 50, 10, 10.1, 10.2, 99], speed.Warmup(3, 10, 0.05), (5, True)),  # the last three agree
        ([10, 10.3, 10.4, 10.5], speed.Warmup(3, 10, 0.05), (3, True)),  # (10.4 − 10) / 10.3 = 0.039
        ([1, 2, 1, 2, 1, 2], speed.Warmup(2, 4, 0.05), (4, False)),
        ([1, 1.05, 1.05], speed.Warmup(3, 3, 0.05), (3, True)),  # 5 % of the smallest, not of the median
    ],
)
def test_warm_up_stops_when_the_last_calls_agree_or_at_its_maximum(times, warmup, expected):
    remaining = iter(times)
    count, steady = expected
    assert speed.warm_up(lambda: {"e2e_ms": next(remaining)}, warmup) == (times[:count], steady)


def test_runs_go_on_until_a_count_and_a_duration_are_reached(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(speed.time, "perf_counter", lambda: now[0])

    def call():
        now[0] += 1.0
        return {"e2e_ms": 1000.0}

    for seconds, expected in [(0, 3), (2.5, 3), (10, 10), (10.5, 11)]:
        settings = speed.Settings((), speed.Warmup(2, 2, 1), minimum_runs=3, minimum_seconds=seconds)
        assert len(speed.timed_runs(call, settings)) == expected


def test_a_run_that_is_not_steady_is_flagged(measuring):
    session = measuring("speed", warmup={"minimum": 2, "maximum": 2, "tolerance": 1e-9})
    assert "not steady" in measure(session)["workloads"][0]["flags"]
