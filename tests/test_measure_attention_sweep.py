"""Attention alone: the reference against PyTorch's, the kernel that ran, and errors that must show."""

from contextlib import nullcontext

import extra_jobs
import pytest
import torch
from llmstudy.errors import Unsupported
from llmstudy.measure.diagnostics import attention as attention_sweep
from llmstudy.measure.flops import causal_attention_flops


@pytest.mark.parametrize("rows", [1, 7, 40])
def test_reference_is_causal_attention_of_the_last_rows(rows, monkeypatch):
    monkeypatch.setattr(attention_sweep, "REFERENCE_ROWS", 16)
    torch.manual_seed(0)
    query, key, value = torch.randn(1, 6, 40, 8), torch.randn(1, 2, 40, 8), torch.randn(1, 2, 40, 8)
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=0.3, enable_gqa=True
    )[:, :, -rows:]
    torch.testing.assert_close(attention_sweep.reference(query[:, :, -rows:], key, value, 0.3), expected)


def test_operations_of_causal_attention():
    # Llama-2-7B heads at 2 048 tokens; a kernel that takes 1 ms there does 34.4 TFLOP/s.
    assert causal_attention_flops(32, 128, 2048) == 34_359_738_368


def measured(folder, name, **settings):
    session = extra_jobs.session(folder, "attention", kernels=[name], contexts=[16, 48], repeats=2, **settings)
    return attention_sweep.measure(session)


@pytest.mark.parametrize("name", ["eager", "sdpa", "sdpa-math", "sdpa-flash"])
def test_measures_prefill_and_decode(tmp_path, name):
    found = measured(tmp_path, name)
    assert (found["heads"], found["kv_heads"], found["head_dim"]) == (4, 2, 16)
    assert [(point["context"], point["phase"]) for point in found["points"]] == [
        (16, "prefill"),
        (16, "decode"),
        (48, "prefill"),
        (48, "decode"),
    ]
    for point in found["points"]:
        assert point["status"] == "ok", point["reason"]
        assert point["max_abs_error"] < 0.05
        assert len(point["time_ms"]) == 2 and min(point["time_ms"]) > 0
        assert point["extra_bytes"] is None
        assert point["kernels"] == [
            {
                "eager": "matmul-softmax",
                "sdpa-math": "_scaled_dot_product_attention_math",
            }.get(name, "_scaled_dot_product_flash_attention_for_cpu")
        ]


@pytest.mark.parametrize("name", ["sdpa-efficient", "sdpa-cudnn"])
def test_a_kernel_that_is_not_there_is_unsupported(tmp_path, name):
    points = measured(tmp_path, name)["points"]
    assert {point["status"] for point in points} == {"unsupported"}
    assert all(name in point["reason"] for point in points)


@pytest.mark.parametrize("name", ["flash_attention_2", "flash_attention_3"])
def test_a_package_that_is_not_installed_is_asked_for_once(tmp_path, monkeypatch, name):
    """Whatever the library makes of a second call."""
    calls = []

    def function(*_, **__):
        calls.append(name)
        raise ImportError(f"{name} is\nnot there") if len(calls) == 1 else TypeError("the argument must be callable")

    session = extra_jobs.session(tmp_path, "attention", kernels=[name], contexts=[16, 48], repeats=1)
    with pytest.raises(Unsupported, match=f"attention '{name}'"):
        attention_sweep.measure(session)
    prepare = attention_sweep.Operation.__init__
    monkeypatch.setattr(
        attention_sweep.Operation,
        "__init__",
        lambda self, session: (prepare(self, session), setattr(self, "function", function))[0],
    )
    with pytest.raises(Unsupported, match=f"attention '{name}': {name} is not there"):
        attention_sweep.measure(session)
    assert len(calls) == 1


def test_a_silent_fallback_is_unsupported(tmp_path, monkeypatch):
    session = extra_jobs.session(tmp_path, "attention", kernels=["sdpa-math"], contexts=[16], repeats=1)
    monkeypatch.setattr(session, "attention_forced", nullcontext)
    points = attention_sweep.measure(session)["points"]
    assert {point["status"] for point in points} == {"unsupported"}
    assert "flash" in points[0]["reason"]


def test_wrong_results_show_as_error(tmp_path, monkeypatch):
    session = extra_jobs.session(tmp_path, "attention", kernels=["eager"], contexts=[48], repeats=1)
    monkeypatch.setattr(attention_sweep.Operation, "mask", lambda self, context: None)  # sees the future
    prefill, decode = attention_sweep.measure(session)["points"]
    assert prefill["max_abs_error"] > 0.5
    assert decode["max_abs_error"] < 0.05


def test_a_context_that_does_not_fit_costs_only_itself(tmp_path, monkeypatch):
    session = extra_jobs.session(tmp_path, "attention", kernels=["eager"], contexts=[16, 48], repeats=1)
    real = attention_sweep.Operation.inputs

    def limited(self, context, rows):
        if context == 48:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, context, rows)

    monkeypatch.setattr(attention_sweep.Operation, "inputs", limited)
    assert [point["status"] for point in attention_sweep.measure(session)["points"]] == ["ok", "ok", "oom", "oom"]
