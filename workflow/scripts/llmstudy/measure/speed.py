"""Speed: TTFT, every inter-token time (ITL) and end-to-end time of greedy generation, for each workload.

All times of a call are stamped inside one generate: TTFT is the time from the call to the first token, and TPOT is the
mean of the times between the tokens after it. Cold call, load time and compile time are apart from the steady state.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial

import torch

from llmstudy import runtimes
from llmstudy.measure import conditions, footprint
from llmstudy.measure.device import copy_bandwidth_gb_s
from llmstudy.measure.energy import EnergyMeter
from llmstudy.measure.session import Session, log
from llmstudy.measure.text import prompt_batch
from llmstudy.models.attention import prove
from llmstudy.runner.job import Workload

PROOF_TOKENS = 2  # one prefill and one decode step under the profiler


@dataclass(frozen=True)
class Warmup:
    """The end of a warm-up: when the last ``minimum`` end-to-end times spread, as (max − min) / median, by less than
    ``tolerance``, or after ``maximum`` calls."""

    minimum: int
    maximum: int
    tolerance: float


@dataclass(frozen=True)
class Settings:
    """Settings of speed; calls are timed until both ``minimum_runs`` and ``minimum_seconds`` are reached."""

    workloads: tuple[Workload, ...]
    warmup: Warmup
    minimum_runs: int
    minimum_seconds: float


def measure(session: Session) -> dict:
    """Return ``{"energy_source", "bandwidth_gb_s", "load_s", "step_weight_bytes", "kv_bytes_per_token", "workloads":
    [{"workload", "status", "reason", "compile_s", "cold_ms", "warmup_e2e_ms", "runs", "attention_kernels",
    "joules_per_token", "conditions", "flags"}]}``."""
    settings = session.settings_as(Settings)
    meter = EnergyMeter(session.device)  # before the model is loaded, which would raise idle power
    bandwidth = copy_bandwidth_gb_s(session.device, session.synchronize)
    session.free()
    model, load_s = session.load_model()
    log(f"loaded in {load_s:.1f} s; copy bandwidth {bandwidth:.0f} GB/s")
    results: dict = {
        "energy_source": meter.source,
        "bandwidth_gb_s": bandwidth,
        "load_s": load_s,
        "step_weight_bytes": footprint.step_weight_bytes(model),
        "kv_bytes_per_token": footprint.kv_bytes_per_token(model),
        "workloads": [],
    }
    session.save(results)
    for workload in settings.workloads:
        with session.case(results, "workloads", workload=asdict(workload)) as entry:
            entry |= measure_workload(session, model, workload, settings, meter)
    return results


def measure_workload(session: Session, model, workload: Workload, settings: Settings, meter: EnergyMeter) -> dict:
    """Return the entry of one workload: a cold call, warm-up until steady, timed calls, proof of the kernel."""
    input_ids = prompt_batch(session, workload.batch, workload.prompt_tokens)
    with session.runtime(model, workload) as runtime:
        call = partial(timed_call, runtime, input_ids, workload)
        compile_s = runtime.prepare().compile_s
        cold = call()
        warmup, steady = warm_up(call, settings.warmup)
        before = conditions.snapshot()
        meter.start()
        runs = timed_runs(call, settings)
        joules = meter.joules()
        after = conditions.snapshot()
    session.free()  # the static cache of the proof must not be beside that of the measurement
    kernels = prove_attention(session, model, workload, input_ids)
    tokens = len(runs) * workload.batch * workload.new_tokens
    return {
        "compile_s": compile_s,
        "cold_ms": cold["e2e_ms"],
        "warmup_e2e_ms": warmup,
        "runs": runs,
        "attention_kernels": kernels,
        "joules_per_token": None if joules is None else joules / tokens,
        "conditions": {"before": before, "after": after},
        "flags": conditions.flags(before, after, steady),
    }


def timed_call(runtime: runtimes.Runtime, input_ids: torch.Tensor, workload: Workload) -> dict:
    """Return ``{"ttft_ms", "itl_ms": [one for every token after the first], "e2e_ms"}`` of one generate, milliseconds.

    The mean of ``itl_ms`` is TPOT, (t_last − t_first) / (n − 1). Raise RuntimeError if another number of tokens came
    than the workload has: such a time compares with nothing.
    """
    start = time.perf_counter()
    timeline = runtime.generate(input_ids)
    e2e_s = time.perf_counter() - start
    expected = (workload.batch, workload.new_tokens)
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


def warm_up(call: Callable[[], dict], warmup: Warmup) -> tuple[list[float], bool]:
    """Return the end-to-end times of the warm-up, ms, and whether it ended because the last ones agree."""
    times: list[float] = []
    while len(times) < warmup.maximum:
        times.append(call()["e2e_ms"])
        last = times[-warmup.minimum :]
        if len(last) == warmup.minimum and max(last) - min(last) < warmup.tolerance * statistics.median(last):
            return times, True
    return times, False


def timed_runs(call: Callable[[], dict], settings: Settings) -> list[dict]:
    """Return at least ``minimum_runs`` calls that together take at least ``minimum_seconds``."""
    runs: list[dict] = []
    start = time.perf_counter()
    while len(runs) < settings.minimum_runs or time.perf_counter() - start < settings.minimum_seconds:
        runs.append(call())
    log(f"  {len(runs)} runs, median {statistics.median(run['e2e_ms'] for run in runs):.1f} ms")
    return runs


def prove_attention(session: Session, model, workload: Workload, input_ids: torch.Tensor) -> list[str]:
    """Return the attention kernels that run for a workload.

    Preparing is part of the proof: a captured graph shows its operators only while it is captured. Raise Unsupported if
    another kernel than the configured one ran.
    """
    with session.runtime(model, replace(workload, new_tokens=PROOF_TOKENS)) as runtime:

        def run() -> None:
            runtime.prepare()
            runtime.generate(input_ids)

        return prove(session.job.identity.attention, run)
