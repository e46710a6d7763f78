"""A decode step under the profiler: counts on made-up events, and on real operators whose number is known."""

from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from llmstudy.measure import footprint
from llmstudy.measure.diagnostics import profile
from llmstudy.measure.diagnostics.profile import Trace, covered, per_step, summarize
from torch.autograd import DeviceType


def test_overlapping_intervals_count_once():
    assert covered([(5, 15), (0, 10), (20, 21), (6, 7)]) == 16
    assert covered([]) == 0


def event(name: str, start=0.0, end=1.0, device=DeviceType.CPU, parent=None):
    """An event as the profiler has it, times in µs."""
    span = SimpleNamespace(start=start, end=end)
    return SimpleNamespace(name=name, time_range=span, device_type=device, self_cpu_time_total=1.0, cpu_parent=parent)


def test_counts_launches_waits_and_device_time_of_a_gpu():
    linear = event("aten::linear")
    host = ["cudaLaunchKernel", "cuLaunchKernelEx", "cudaLaunchKernelExC", "cudaGraphLaunch", "cudaMemcpyAsync",
            "cudaStreamIsCapturing", "cudaStreamSynchronize", "cudaDeviceSynchronize"]  # fmt: skip
    scope = event("a scope that is no operator", parent=linear)
    events = [
        linear,
        event("aten::mm", parent=scope),
        event("aten::_local_scalar_dense", parent=linear),
        *map(event, host),
        event("ampere_gemm", 100.0, 3100.0, DeviceType.CUDA),
        event("elementwise", 2100.0, 4100.0, DeviceType.CUDA),
    ]
    trace = summarize(events, 9.0, "cuda")
    assert (trace.launches, trace.waits, trace.operators, trace.kernels) == (4, 2, 1, 2)
    assert trace.busy_ms == 4.0 and trace.wall_ms == 9.0
    assert trace.own_ms == {"ampere_gemm": 3.0, "elementwise": 2.0}


def test_a_step_is_what_the_longer_generation_has_more():
    short = [Trace(10, 1, 20, 30, 5.0, 8.0, Counter({"aten::mm": 3.0, "aten::cat": 2.0}))]
    long = [Trace(10 + 8 * 4, 9, 20 + 8 * 7, 62, 13.0, 24.0, Counter({"aten::mm": 9.0, "aten::cat": 4.0}))]
    step = per_step(short, long, 8)
    assert step["launches"] == 4 and step["waits"] == 1 and step["operators"] == 7 and step["kernels"] == 4
    assert step["busy_ms"] == 1.0 and step["profiled_ms"] == 2.0
    assert step["matmul_share"] == 0.75
    assert step["top"] == [["aten::mm", 0.75], ["aten::cat", 0.25]]


@pytest.mark.parametrize(
    "attention",
    [
        "void pytorch_flash::flash_fwd_splitkv_kernel<Flash_fwd_kernel_traits<128, 64, 128, 4, cutlass::bfloat16_t>>",
        "fmha_cutlassF_bf16_aligned_64x128_rf_sm80(PyTorchMemEffAttention::AttentionKernel<cutlass::bfloat16_t>)",
        "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_64x128x128_4x1x1_kernel0_0",
    ],
)
def test_attention_kernels_of_a_gpu_are_no_matrix_products(attention):
    own = Counter({attention: 1.0, "nvjet_tst_64x8_64x16_4x1_v_bz_TNT": 1.0, "void gemv2T_kernel_val<int>": 2.0})
    assert per_step([Trace()], [Trace(own_ms=own)], 1)["matmul_share"] == 0.75


def test_counts_real_operators():
    a = torch.randn(64, 64)

    def run():
        return (torch.nn.functional.linear(a, a).softmax(-1)).sum().item()

    trace = profile.trace(run, "cpu")
    assert trace.operators == 4  # linear, softmax, sum, item
    assert trace.waits == 1
    assert trace.launches == 0
    assert 0 < trace.busy_ms <= trace.wall_ms
    assert trace.own_ms["aten::mm"] + trace.own_ms["aten::addmm"] > 0


@pytest.mark.parametrize(("precision", "runtime"), [("fp32", "generate"), ("fp32", "graph"), ("llm-int8", "generate")])
def test_profiles_every_runtime(measuring, precision, runtime):
    found = profile.measure(measuring("profile", precision=precision, runtime=runtime))
    step = found["step"]
    assert step["operators"] == int(step["operators"]) > 20
    assert found["tpot_ms"] > 0 and found["step_bytes"] > 0 and found["bandwidth_gb_s"] > 0
    assert found["workload"] == {"batch": 1, "prompt_tokens": 9, "new_tokens": 5}
    assert 0 < step["matmul_share"] < 1


def test_the_graph_runtime_calls_fewer_operators_than_the_library(measuring):
    operators = {
        runtime: profile.measure(measuring("profile", runtime=runtime))["step"]["operators"]
        for runtime in ("generate", "graph")
    }
    assert operators["graph"] < operators["generate"]


def test_a_step_needs_its_weights_its_cache_and_their_products(tiny_llama):
    found = profile.demand(tiny_llama, batch=2, context=11)
    linears = 3 * (48 * (48 + 16 + 16 + 48) + 3 * 48 * 104) + 199 * 48  # the head at the end
    assert found["step_flops"] == 2 * (2 * linears + 3 * 4 * 6 * 8 * 11)
    cache = 3 * 2 * 2 * 8 * 4  # layers · K and V · KV heads · head width · fp32
    assert found["step_bytes"] == footprint.step_weight_bytes(tiny_llama) + 2 * 11 * cache
