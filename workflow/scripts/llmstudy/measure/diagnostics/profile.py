"""Why a decode step takes as long as it does: launches, host waits, device time, bytes and arithmetic per token.

Two generations of the same prompt that differ by ``steps`` decode steps are profiled; what the longer one has more,
divided by ``steps``, belongs to one step. That holds for every runtime, and leaves prefill out of it. Times of the step
itself come from runs without the profiler, which slows the host down.
"""

from __future__ import annotations

from statistics import fmean, median

from llmstudy import runtimes
from llmstudy.errors import Unsupported
from llmstudy.measure import footprint
from llmstudy.measure.bandwidth import copy_bandwidth_gb_s
from llmstudy.measure.diagnostics.trace import Trace, per_step, record
from llmstudy.measure.flops import matmul_tflops, step_flops
from llmstudy.measure.prompts import prompt_batch
from llmstudy.measure.session import Session, log
from llmstudy.measure.speed import run_once

SHORT = 2  # new tokens of the shorter generation: prefill and one step
RUNS = 3  # of each kind; medians


def measure(session: Session) -> dict:
    """``{"workload", "bandwidth_gb_s", "matmul_tflops", "step_bytes", "step_flops", "tpot_ms", "step"}``, the last as
    from ``trace.per_step``."""
    import torch

    settings = session.settings
    workload = {"batch": settings["batch"], "prompt_tokens": settings["prompt_tokens"]}
    bandwidth = copy_bandwidth_gb_s(session.device, session.synchronize)
    session.free()
    peak = matmul_tflops(session.device, getattr(torch, session.precision.compute_dtype), session.synchronize)
    model, _ = session.load_model()
    results = {
        "workload": workload | {"new_tokens": SHORT + settings["steps"]},
        "bandwidth_gb_s": bandwidth,
        "matmul_tflops": peak,
        **demand(model, workload["batch"], workload["prompt_tokens"] + settings["steps"] / 2),
    }
    session.save(results)
    input_ids = prompt_batch(session, **workload)
    short, _ = profiled(session, model, input_ids, workload | {"new_tokens": SHORT})
    long, tpot_ms = profiled(session, model, input_ids, workload | {"new_tokens": SHORT + settings["steps"]})
    results |= {"tpot_ms": tpot_ms, "step": per_step(short, long, settings["steps"])}
    if session.device == "cuda" and results["step"]["kernels"] <= 0:  # without CUPTI the profiler sees the host alone
        raise Unsupported("profiler: it saw no kernel of the device in a decode step; CUPTI is not available here")
    log(f"{tpot_ms:.2f} ms per token; {results['step']}")
    return results


def demand(model, batch: int, context: float) -> dict:
    """What one decode step cannot do without: bytes to read and floating-point operations, for the whole batch."""
    weights = footprint.weight_bytes(model)
    kv_bytes = footprint.kv_bytes_per_token(model.config, model.dtype) * batch * context
    return {
        "step_bytes": int(footprint.step_weight_bytes(model, weights) + kv_bytes),
        "step_flops": int(step_flops(model.config, batch, context)),
    }


def profiled(session: Session, model, input_ids, workload: dict) -> tuple[list[Trace], float]:
    """(traces of several runs, TPOT in ms without the profiler) of one workload."""
    runtime = runtimes.get(session.job["identity"]["runtime"])(model, **workload)
    try:
        with session.attention_forced():
            runtime.prepare()
            runs = [run_once(runtime, input_ids, workload) for _ in range(1 + RUNS)][1:]
            traces = [record(lambda: runtime.generate(input_ids), session.device) for _ in range(RUNS)]
    finally:
        runtime.close()
    return traces, median(fmean(run["itl_ms"]) for run in runs)
