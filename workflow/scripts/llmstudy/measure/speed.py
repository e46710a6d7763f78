"""Latency: TTFT, every inter-token time and end-to-end time of greedy generation, one entry per workload.

All stamps come from inside one generate. The cold call, load time and compile time stand apart from the steady state.
"""

from __future__ import annotations

import statistics
import time
from functools import partial

from llmstudy import runtimes
from llmstudy.measure import conditions, footprint
from llmstudy.measure.bandwidth import copy_bandwidth_gb_s
from llmstudy.measure.energy import EnergyMeter
from llmstudy.measure.prompts import prompt_batch
from llmstudy.measure.session import Session, log
from llmstudy.measure.steady import SteadyState
from llmstudy.models.attention import prove

PROVING_TOKENS = 2  # one prefill and one decode step under the profiler


def measure(session: Session) -> dict:
    """``{"load_s", "bandwidth_gb_s", "attention_kernels", "workloads": [...]}``; saved after every workload."""
    results: dict = {"workloads": []}
    meter = EnergyMeter(session.device)  # measures idle power, which loading would raise
    results["energy_source"] = meter.source
    bandwidth = copy_bandwidth_gb_s(session.device, session.synchronize)
    session.free()
    model, load_s = session.load_model()
    weights = footprint.weight_bytes(model)
    results |= {
        "load_s": load_s,
        "bandwidth_gb_s": bandwidth,
        "step_weight_bytes": footprint.step_weight_bytes(model, weights),
        "kv_bytes_per_token": footprint.kv_bytes_per_token(model.config, model.dtype),
    }
    log(f"loaded in {load_s:.1f} s; copy bandwidth {bandwidth:.0f} GB/s")
    session.save(results)
    for workload in session.settings["workloads"]:
        measured = partial(measure_workload, session, model, workload, meter)
        session.piece(results, "workloads", {"workload": workload}, measured)
    return results


def measure_workload(session: Session, model, workload: dict, meter: EnergyMeter) -> dict:
    """Cold call, warm-up until steady, then runs until both a count and a duration are reached."""
    settings = session.settings
    input_ids = prompt_batch(session, workload["batch"], workload["prompt_tokens"])
    runtime = runtimes.get(session.job["identity"]["runtime"])(model, **workload)
    try:
        with session.attention_forced():
            compile_s = runtime.prepare().compile_s
            cold = run_once(runtime, input_ids, workload)
            warmup, steady = warm_up(lambda: run_once(runtime, input_ids, workload), settings["warmup"])
            before = conditions.snapshot()
            meter.start()
            runs = timed_runs(lambda: run_once(runtime, input_ids, workload), settings)
            joules = meter.joules()
            after = conditions.snapshot()
    finally:
        runtime.close()
    session.free()  # a static cache of the proof must not stand beside that of the measurement
    kernels = prove_attention(session, model, workload, input_ids)
    tokens = len(runs) * workload["batch"] * workload["new_tokens"]
    return {
        "compile_s": compile_s,
        "cold_ms": cold["e2e_ms"],
        "attention_kernels": kernels,
        "warmup_e2e_ms": warmup,
        "runs": runs,
        "joules_per_token": None if joules is None else joules / tokens,
        "conditions": {"before": before, "after": after},
        "flags": conditions.flags(before, after, steady),
    }


def run_once(runtime, input_ids, workload: dict) -> dict:
    """One generation: TTFT, the times between tokens, and the end of the call, milliseconds.

    Raises RuntimeError if the number of tokens is not what was asked for: such a time compares with nothing.
    """
    start = time.perf_counter()
    timeline = runtime.generate(input_ids)
    e2e_s = time.perf_counter() - start
    expected = (workload["batch"], workload["new_tokens"])
    if tuple(timeline.tokens.shape) != expected or len(timeline.token_s) != expected[1]:
        raise RuntimeError(
            f"{tuple(timeline.tokens.shape)} tokens with {len(timeline.token_s)} stamps instead of {expected}"
        )
    stamps = timeline.token_s
    return {
        "ttft_ms": round(1e3 * stamps[0], 4),
        "itl_ms": [round(1e3 * (b - a), 4) for a, b in zip(stamps, stamps[1:])],
        "e2e_ms": round(1e3 * e2e_s, 4),
    }


def prove_attention(session: Session, model, workload: dict, input_ids) -> list[str]:
    """Which attention kernels run for this workload; raises Unsupported if it is not the configured one.

    Preparing belongs to the proof: a captured graph shows its operators only while it is captured.
    """
    runtime = runtimes.get(session.job["identity"]["runtime"])
    short = runtime(model, workload["batch"], workload["prompt_tokens"], PROVING_TOKENS)

    def run() -> None:
        short.prepare()
        short.generate(input_ids)

    try:
        with session.attention_forced():
            return prove(session.attention, run)
    finally:
        short.close()


def warm_up(run, settings: dict) -> tuple[list[float], bool]:
    """Run until the last few end-to-end times agree or the maximum is reached: (their times in ms, steady)."""
    state = SteadyState(window=settings["minimum"], tolerance=settings["tolerance"], maximum=settings["maximum"])
    times = []
    while True:
        times.append(run()["e2e_ms"])
        if state.add(times[-1]):
            return times, state.steady


def timed_runs(run, settings: dict) -> list[dict]:
    """Runs until at least ``minimum_runs`` and at least ``minimum_seconds`` of them."""
    runs: list[dict] = []
    start = time.perf_counter()
    while len(runs) < settings["minimum_runs"] or time.perf_counter() - start < settings["minimum_seconds"]:
        runs.append(run())
    log(f"  {len(runs)} runs, median {statistics.median(run['e2e_ms'] for run in runs):.1f} ms")
    return runs
