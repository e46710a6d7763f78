"""The frontier of a GPU: located around a prediction, on a device that is pretended."""

import json

import pytest
import torch
from llmstudy.errors import Unsupported
from llmstudy.measure import probe
from llmstudy.measure.diagnostics import capacity
from llmstudy.runner.record import SCHEMA

GIB = 2**30
WEIGHTS, FIXED, KV, TOKEN = 12.5, 0.3, 4.9e-4, 1.1e-4  # GiB, as in stats.capacity


def searched(frontier: int, predicted: int) -> tuple[tuple[int, int | None], list[int]]:
    """What is located on a device whose largest batch is ``frontier``, and the batches that were run for it."""
    tried = []

    def fits(batch):
        tried.append(batch)
        return batch <= frontier

    return capacity.locate(fits, predicted), tried


@pytest.mark.parametrize(
    ("predicted", "around"), [(0, (0, 1)), (1, (1, 2)), (7, (6, 8)), (10, (9, 11)), (30, (29, 32)), (1000, (970, 1050))]
)
def test_a_prediction_that_holds_takes_two_runs(predicted, around):
    below, above = around
    for frontier in {predicted, below, above - 1}:
        located, tried = searched(frontier, predicted)
        assert located == around
        assert tried == [batch for batch in around if batch]


@pytest.mark.parametrize("frontier", [26, 27, 28, 32, 33, 34])
def test_a_near_miss_is_located_exactly(frontier):
    """30 are predicted, so 29 and 32 are tried: what is at most that width away is found to the sequence."""
    located, tried = searched(frontier, 30)
    assert located == (frontier, frontier + 1)
    assert len(tried) <= 2 + capacity.FURTHER_RUNS and len(set(tried)) == len(tried)


def test_a_far_miss_is_halved():
    """1000 are predicted, so 970 and 1050 are tried; the first step away from them is 80."""
    assert searched(1100, 1000) == ((1090, 1110), [970, 1050, 1130, 1090, 1110])
    assert searched(900, 1000) == ((890, 910), [970, 890, 930, 910])


@pytest.mark.parametrize("frontier", [0, 1, 3, 9, 17, 45, 99, 10_000])
@pytest.mark.parametrize("predicted", [0, 1, 2, 8, 30, 400])
def test_the_frontier_always_lies_where_it_is_located(frontier, predicted):
    (fits, too_large), tried = searched(frontier, predicted)
    assert fits <= frontier and (too_large is None or frontier < too_large)
    assert fits in (0, *tried) and too_large in (None, *tried)
    assert len(tried) <= 2 + capacity.FURTHER_RUNS and min(tried) >= 1


def law(batch, context):
    return WEIGHTS + FIXED + batch * (KV + TOKEN) * context


def probe_record(**changes):
    """The record of three workloads that follow the law above, in bytes."""
    entries = []
    for batch, prompt, new in ((1, 10, 2), (4, 10, 2), (4, 60, 4)):
        context = prompt + new
        reading = {"peak_allocated_bytes": law(batch, context) * GIB}
        entry = {"workload": {"batch": batch, "prompt_tokens": prompt, "new_tokens": new}, "status": "ok", "reason": ""}
        entries.append(entry | {"prefill": reading, "decode": reading, "kv_cache_bytes": KV * batch * context * GIB})
    weights = {"embeddings": {}, "linears": {"bf16": WEIGHTS * GIB}}
    results = {"weights": weights, "load": {"peak_allocated_bytes": WEIGHTS * GIB}, "workloads": entries}
    return {"schema": SCHEMA, "status": "ok", "results": results} | changes


class Full:
    """A runtime on a device that holds ``holds`` sequences."""

    holds = 0
    fault = torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    closed = 0

    def __init__(self, model, batch, prompt_tokens, new_tokens):
        assert (prompt_tokens, new_tokens) == (62, 2)
        self.batch = batch

    def prepare(self):
        pass

    def generate(self, input_ids):
        assert input_ids.shape == (self.batch, 62)
        if self.batch > type(self).holds:
            raise self.fault

    def close(self):
        type(self).closed += 1


@pytest.fixture
def session(measuring, tmp_path, monkeypatch):
    """A session whose device is taken for a GPU of 14 GiB; it holds what the memory model says."""

    def session(holds=None, record=None, contexts=(64, 9999)):
        monkeypatch.setattr(capacity, "require_one_gpu", lambda device: None)
        monkeypatch.setattr(capacity, "usable_gib", lambda device_gib: 14.0)
        monkeypatch.setattr(probe.runtimes, "get", lambda name: Full)
        monkeypatch.setattr(Full, "holds", predicted() if holds is None else holds)
        monkeypatch.setattr(Full, "closed", 0)
        path = tmp_path / "probe.json"
        path.write_text(json.dumps(record or probe_record()))
        return measuring("capacity", contexts=list(contexts), probe=str(path))

    return session


def predicted() -> int:
    return max(batch for batch in range(1, 1000) if law(batch, 64) <= 14.0)


def test_a_device_that_is_as_the_model_says(session):
    one = session()
    found = capacity.measure(one)
    below, above = capacity.around(predicted())
    assert predicted() > 20 and below < predicted() < above
    assert (found["context_tokens"], found["usable_gib"], found["largest_batch"]) == (64, 14.0, predicted())
    assert [(run["batch"], run["status"]) for run in found["runs"]] == [(below, "ok"), (above, "oom")]
    assert found["runs"][0]["peak_rss_bytes"] > 0 and "out of memory" in found["runs"][1]["reason"]
    assert [len(saved["runs"]) for saved in one.saved] == [0, 0, 1, 2] and Full.closed == 2


def test_a_device_that_holds_less_is_located(session):
    found = capacity.measure(session(holds=predicted() - 2))
    ok = [run["batch"] for run in found["runs"] if run["status"] == "ok"]
    failed = [run["batch"] for run in found["runs"] if run["status"] == "oom"]
    assert (max(ok), min(failed)) == (predicted() - 2, predicted() - 1)


def test_another_failure_than_memory_ends_the_record(session, monkeypatch):
    monkeypatch.setattr(Full, "fault", Unsupported("no such kernel"))
    one = session()
    with pytest.raises(Unsupported, match="no such kernel"):
        capacity.measure(one)
    assert [run["status"] for run in one.saved[-1]["runs"]] == ["ok"]  # what was found until then is kept


def test_a_configuration_without_a_memory_model_is_unsupported(session):
    failed = probe_record(status="oom", results={})
    with pytest.raises(Unsupported, match="no prediction to verify: .*at least 2 measured workloads, there is 0"):
        capacity.measure(session(record=failed))


def test_no_context_that_the_model_takes(session):
    with pytest.raises(Unsupported, match=r"none of \[2, 9999\] suits the model; allowed: 3 to its context of 256"):
        capacity.measure(session(contexts=(2, 9999)))


def test_a_cpu_is_never_filled(measuring):
    one = measuring("capacity")
    with pytest.raises(Unsupported, match="device 'cpu': .* CUDA alone"):
        capacity.measure(one)
    assert one.saved == [{"context_tokens": 64, "runs": []}]


def test_several_gpus_have_no_single_frontier(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(Unsupported, match="does not fit one GPU and has 2"):
        capacity.require_one_gpu("cuda")


def test_usable_is_what_is_free_and_what_is_reserved_but_no_more_than_asked(monkeypatch):
    fractions = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (20 * GIB, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 59 * GIB)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", fractions.append)
    assert (capacity.usable_gib(None), capacity.usable_gib(90.0), capacity.usable_gib(24.0)) == (79, 79, 24)
    capacity.limit_device(None)
    capacity.limit_device(24.0)
    assert fractions == [0.3]
    with pytest.raises(Unsupported, match="device_gib: 90 GiB; allowed: up to this GPU's 80.0"):
        capacity.limit_device(90.0)
