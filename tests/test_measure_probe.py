"""Probe: cold call, bytes by phase, the KV cache by formula and measured, peaks that see what is allocated, proof."""

import json
import os
import subprocess
import sys

import numpy as np
import tiny
import torch
from llmstudy.errors import StudyError, Unsupported
from llmstudy.measure import measure, probe
from llmstudy.measure.text import prompt_batch
from llmstudy.runtimes.generate import GenerateRuntime

WORKLOAD = tiny.WORKLOAD
KV_PER_TOKEN = 2 * 2 * 2 * 16 * 4  # K and V · layers · KV heads · head width · fp32


def test_weights_cache_and_phases(measuring):
    session = measuring("probe", workloads=[WORKLOAD, WORKLOAD | {"batch": 3, "prompt_tokens": 20}])
    results = measure(session)
    # the load counts even if no workload fits
    assert [len(saved["workloads"]) for saved in session.saved] == [0, 1, 2]
    assert set(results["weights"]) == {"embeddings", "linears", "norms", "head", "other"}
    assert results["load_s"] > 0 and results["quantized_share"] == 0
    for entry, batch, prompt in zip(results["workloads"], (2, 3), (9, 20)):
        assert entry["status"] == "ok" and entry["cold_ms"] > 0 and entry["compile_s"] == 0
        assert entry["kv_cache_bytes"] == KV_PER_TOKEN * batch * (prompt + 4)
        assert entry["kv_cache_measured_prefill_bytes"] == KV_PER_TOKEN * batch * prompt
        for phase in ("prefill", "decode"):
            assert entry[phase]["peak_rss_bytes"] >= entry[phase]["peak_rss_growth_bytes"] >= 0
    assert results["load"]["peak_rss_bytes"] > 2**26  # a process with torch in it


def test_bf16_halves_the_cache(measuring):
    entry = measure(measuring("probe", precision="bf16"))["workloads"][0]
    assert entry["kv_cache_bytes"] == KV_PER_TOKEN // 2 * 2 * 13
    assert entry["kv_cache_measured_prefill_bytes"] == KV_PER_TOKEN // 2 * 2 * 9


def test_the_peak_of_the_host_sees_an_allocation_of_its_phase():
    peaks = probe.PeakProbe("cpu")
    block = np.ones(96 * 2**20, dtype=np.uint8)
    grown = peaks.reading()["peak_rss_growth_bytes"]
    assert grown >= 0.9 * block.nbytes
    del block
    peaks.reset()
    assert peaks.reading()["peak_rss_growth_bytes"] < grown / 2  # the next phase begins from what is left


def test_code_does_not_count_as_memory_of_the_model(tiny_weights, tiny_corpus, tmp_path):
    """In a process of its own: there importing transformers and bitsandbytes takes 160 MB, the model half of one."""
    job = tiny.job("probe", tiny_weights, tiny_corpus, precision="nf4")
    (tmp_path / "job.json").write_text(json.dumps(job.to_dict()))
    files = [str(tmp_path / name) for name in ("job.json", "out.json", ".")]
    command = [sys.executable, "-m", "llmstudy.runner.child", *files]
    library = os.path.dirname(os.path.dirname(probe.__file__))
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": os.path.dirname(library)})
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["status"] == "ok"
    assert result["results"]["load"]["peak_rss_growth_bytes"] < 40 * 2**20


def test_a_workload_that_fails_costs_no_other_and_its_runtime_is_closed(measuring, monkeypatch):
    closed = []

    class Full:
        def __init__(self, model, batch, prompt_tokens, new_tokens):
            self.real = GenerateRuntime(model, batch, prompt_tokens, new_tokens)
            self.prepare = self.full if batch == 3 else self.real.prepare
            self.generate, self.close = self.real.generate, lambda: closed.append(batch)

        def full(self):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    def prove(session, model, workload, input_ids):
        if workload.batch == 4:
            raise Unsupported("attention 'sdpa-flash': math ran instead")

    def prompts(session, batch, prompt_tokens):
        if batch == 7:
            raise StudyError("corpus 'tiny-text': too little text")
        return prompt_batch(session, batch, prompt_tokens)

    monkeypatch.setattr(probe, "prompt_batch", prompts)
    monkeypatch.setattr(probe.runtimes, "get", lambda name: Full)
    monkeypatch.setattr(probe, "prove_attention", prove)
    batches = (2, 3, 7, 4, 1)
    found = measure(measuring("probe", workloads=[WORKLOAD | {"batch": batch} for batch in batches]))["workloads"]
    assert [entry["status"] for entry in found] == ["ok", "oom", "error", "unsupported", "ok"]
    assert "math ran" in found[3]["reason"] and not any("decode" in entry for entry in found[1:4])
    assert closed == [2, 2, 3, 4, 4, 1, 1]
