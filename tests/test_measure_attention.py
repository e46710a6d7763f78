"""Attention alone: the reference against PyTorch's, the kernel that ran, and errors that must show."""

from contextlib import nullcontext

import pytest
import torch
from llmstudy.errors import Unsupported
from llmstudy.measure.diagnostics import attention


@pytest.mark.parametrize("rows", [1, 7, 40])
def test_reference_is_causal_attention_of_the_last_rows(rows, monkeypatch):
    monkeypatch.setattr(attention, "REFERENCE_ROWS", 16)
    torch.manual_seed(0)
    query, key, value = torch.randn(1, 6, 40, 8), torch.randn(1, 2, 40, 8), torch.randn(1, 2, 40, 8)
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=0.3, enable_gqa=True
    )[:, :, -rows:]
    torch.testing.assert_close(attention.reference(query[:, :, -rows:], key, value, 0.3), expected)


@pytest.mark.parametrize("name", ["eager", "sdpa", "sdpa-math", "sdpa-flash"])
def test_measures_prefill_and_decode(measuring, name):
    found = attention.measure(measuring("attention", attention=name))
    assert (found["heads"], found["kv_heads"], found["head_dim"]) == (4, 2, 16)
    points = [(context, phase) for context in (16, 48) for phase in ("prefill", "decode")]
    assert [(point["context"], point["phase"]) for point in found["points"]] == points
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
def test_a_kernel_that_is_not_there_is_unsupported(measuring, name):
    points = attention.measure(measuring("attention", attention=name))["points"]
    assert {point["status"] for point in points} == {"unsupported"}
    assert all(name in point["reason"] for point in points)


@pytest.mark.parametrize("name", ["flash_attention_2", "flash_attention_3"])
def test_a_package_that_is_not_installed_is_asked_for_once(measuring, monkeypatch, name):
    """Whatever the library makes of a second call."""
    calls = []

    def function(*_, **__):
        calls.append(name)
        raise ImportError(f"{name} is\nnot there") if len(calls) == 1 else TypeError("the argument must be callable")

    session = measuring("attention", attention=name)
    with pytest.raises(Unsupported, match=f"attention '{name}'"):
        attention.measure(session)
    prepare = attention.Operation.__init__
    monkeypatch.setattr(
        attention.Operation,
        "__init__",
        lambda self, session: (prepare(self, session), setattr(self, "function", function))[0],
    )
    with pytest.raises(Unsupported, match=f"attention '{name}': {name} is not there"):
        attention.measure(session)
    assert len(calls) == 1


def test_a_silent_fallback_is_unsupported(measuring, monkeypatch):
    session = measuring("attention", attention="sdpa-math", contexts=[16])
    monkeypatch.setattr(session, "attention_forced", nullcontext)
    points = attention.measure(session)["points"]
    assert {point["status"] for point in points} == {"unsupported"}
    assert "flash" in points[0]["reason"]


def test_wrong_results_show_as_error(measuring, monkeypatch):
    session = measuring("attention", attention="eager", contexts=[48])
    monkeypatch.setattr(attention.Operation, "mask", lambda self, context: None)  # sees the future
    prefill, decode = attention.measure(session)["points"]
    assert prefill["max_abs_error"] > 0.5
    assert decode["max_abs_error"] < 0.05


def test_a_context_that_does_not_fit_costs_only_itself(measuring, monkeypatch):
    session = measuring("attention", attention="eager")
    real = attention.Operation.inputs

    def limited(self, context, rows):
        if context == 48:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, context, rows)

    monkeypatch.setattr(attention.Operation, "inputs", limited)
    assert [point["status"] for point in attention.measure(session)["points"]] == ["ok", "ok", "oom", "oom"]
