"""The time of a decode step explained: launches, host waits, device time, bytes and arithmetic per token.

Two generations of the same prompt that differ by ``steps`` decode steps are profiled; what the longer one has more,
divided by ``steps``, belongs to one step. That holds for every runtime, and excludes the prefill. Times of the step
come from runs without the profiler, which slows the host down.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from statistics import fmean, median

import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity

from llmstudy.errors import Unsupported
from llmstudy.measure import footprint
from llmstudy.measure.calls import timed_call
from llmstudy.measure.device import bandwidth_gb_s, matmul_tflops
from llmstudy.measure.session import Session, log
from llmstudy.measure.text import prompt_batch
from llmstudy.runner.job import PROFILE_TOKENS, Workload

RUNS = 3  # of each generation, with and without the profiler
TOP = 5  # kernels that are named
LAUNCHES = re.compile(r"^(cuda|cu)(LaunchKernel|LaunchCooperativeKernel|GraphLaunch)")
# Host waits for the device; a blocking copy shows as the stream synchronization that it does.
WAITS = re.compile(r"^(cuda|cu|ctx)(Stream|Device|Event|Ctx)Synchronize")
# On the CPU nothing waits, but these are the reads of a value that would make the host wait for a GPU.
VALUE_READS = "aten::_local_scalar_dense"
# Matrix products by name: aten::mm, addmm, bmm; cuBLAS' gemm, gemv, xmma, nvjet; CUTLASS; the kernels of this project.
MATMUL = re.compile(r"mm|gemv|matmul|matvec|cutlass|nvjet|linear|rows_kernel|tile_kernel")
# GPU kernels that match it too: attention is templated on cutlass::bfloat16_t or called wgmma.
NOT_MATMUL = re.compile(r"flash|fmha|sdpa|attention|dequant")


@dataclass(frozen=True)
class Settings:
    """Sequences, tokens of each prompt, and decode steps to average over."""

    batch: int
    prompt_tokens: int
    steps: int


def measure(session: Session) -> dict:
    """Return ``{"workload", "bandwidth_gb_s", "matmul_tflops", "step_bytes", "step_flops", "tpot_ms", "step"}``,
    ``step`` as ``per_step`` returns it. Raise Unsupported if the profiler sees no kernel of the GPU."""
    settings = session.settings_as(Settings)
    short = Workload(settings.batch, settings.prompt_tokens, PROFILE_TOKENS)
    long = Workload(settings.batch, settings.prompt_tokens, PROFILE_TOKENS + settings.steps)
    bandwidth = max(bandwidth_gb_s(session.device, session.synchronize).values())
    session.free()
    model, _ = session.load_model()
    tflops = matmul_tflops(session.device, model.dtype, session.synchronize)
    results = {"workload": asdict(long), "bandwidth_gb_s": bandwidth, "matmul_tflops": tflops}
    results |= demand(model, settings.batch, settings.prompt_tokens + settings.steps / 2)
    session.save(results)
    input_ids = prompt_batch(session, settings.batch, settings.prompt_tokens)
    short_traces, _ = profiled(session, model, input_ids, short)
    long_traces, tpot_ms = profiled(session, model, input_ids, long)
    results |= {"tpot_ms": tpot_ms, "step": per_step(short_traces, long_traces, settings.steps)}
    if session.device == "cuda" and results["step"]["kernels"] <= 0:  # without CUPTI the profiler sees the host alone
        raise Unsupported("profiler: it saw no kernel of the device in a decode step; CUPTI is not available here")
    log(f"{tpot_ms:.2f} ms per token; {results['step']}")
    return results


def demand(model, batch: int, context: float) -> dict:
    """Return ``{"step_bytes", "step_flops"}``: bytes that one decode step of the whole batch must read, and its
    floating-point operations."""
    return {
        "step_bytes": int(footprint.step_weight_bytes(model) + batch * footprint.kv_bytes(model, context)),
        "step_flops": int(batch * footprint.step_flops(model, context)),
    }


def profiled(session: Session, model, input_ids: torch.Tensor, workload: Workload) -> tuple[list[Trace], float]:
    """Return (traces of several runs, TPOT in ms without the profiler) of one workload."""
    with session.runtime(model, workload) as runtime:
        runtime.prepare()
        runs = [timed_call(runtime, input_ids, workload) for _ in range(1 + RUNS)][1:]
        traces = [trace(lambda: runtime.generate(input_ids), session.device) for _ in range(RUNS)]
    return traces, median(fmean(run["itl_ms"]) for run in runs)


@dataclass
class Trace:
    """Counts and times (ms) of one profiled call.

    Attributes:
        launches: kernel and graph launches by the host; 0 on a CPU.
        waits: host synchronizations; on a CPU values read back.
        operators: operators called from outside any operator.
        kernels: kernels that the device ran, without copies and fills; on a CPU the same as operators.
        busy_ms: time in which at least one kernel (on a CPU: operator) ran.
        wall_ms: the whole call, under the profiler.
        own_ms: time by kernel (on a CPU: by operator, without those it calls); kernels that overlap count in full.
    """

    launches: int = 0
    waits: int = 0
    operators: int = 0
    kernels: int = 0
    busy_ms: float = 0.0
    wall_ms: float = 0.0
    own_ms: Counter = field(default_factory=Counter)


def trace(run: Callable[[], object], device: str) -> Trace:
    """Profile one call of ``run``, which must leave nothing running on the device."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device == "cuda" else [])
    with torch.profiler.profile(activities=activities) as profile:
        start = time.perf_counter()
        run()
        wall_ms = 1e3 * (time.perf_counter() - start)
    return summarize(profile.events(), wall_ms, device)


def summarize(events: Iterable[FunctionEvent], wall_ms: float, device: str) -> Trace:
    """Return the counts and times of one call from its profiler events, whose times are in µs."""
    trace = Trace(wall_ms=wall_ms)
    intervals: list[tuple[float, float]] = []
    for event in events:
        span = (event.time_range.start, event.time_range.end)
        if event.device_type != DeviceType.CPU:
            trace.kernels += not event.name.startswith(("Memcpy", "Memset"))
            trace.own_ms[event.name] += (span[1] - span[0]) / 1e3
            intervals.append(span)
            continue
        trace.launches += bool(LAUNCHES.match(event.name))
        trace.waits += event.name == VALUE_READS if device == "cpu" else bool(WAITS.match(event.name))
        if not _is_operator(event):
            continue
        from_outside = not _called_by_operator(event)
        trace.operators += from_outside
        if device == "cpu":
            trace.own_ms[event.name] += event.self_cpu_time_total / 1e3
            intervals += [span] * from_outside
    if device == "cpu":
        trace.kernels = trace.operators
    trace.busy_ms = covered(intervals) / 1e3
    return trace


def _is_operator(event: FunctionEvent) -> bool:
    return "::" in event.name


def _called_by_operator(event: FunctionEvent) -> bool:
    parent = event.cpu_parent
    while parent is not None and not _is_operator(parent):
        parent = parent.cpu_parent
    return parent is not None


def covered(intervals: Iterable[tuple[float, float]]) -> float:
    """Return the length of the union of intervals: kernels that overlap count once."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def per_step(short: list[Trace], long: list[Trace], steps: int) -> dict:
    """Return what one of the ``steps`` decode steps did by which ``long`` is longer than ``short``.

    Counts are medians over the runs. Times are those of the shortest run: whatever disturbs a run makes it longer, and
    a difference of two disturbed times means nothing.

    Returns:
        ``{"launches", "waits", "operators", "kernels", "busy_ms", "profiled_ms", "matmul_share", "top"}``: counts and
        ms per step, the share of matrix products in kernel (on a CPU: operator) time, and the longest kernels with
        their shares.
    """

    def more(name: str, of_runs: Callable = median) -> float:
        longer, shorter = (of_runs(getattr(trace, name) for trace in traces) for traces in (long, short))
        return (longer - shorter) / steps

    step = {name: more(name) for name in ("launches", "waits", "operators", "kernels")}
    step |= {"busy_ms": more("busy_ms", min), "profiled_ms": more("wall_ms", min)}
    names = {name for trace in long for name in trace.own_ms}
    own = {name: max(0.0, min(t.own_ms[name] for t in long) - min(t.own_ms[name] for t in short)) for name in names}
    total = sum(own.values())
    share = {name: value / total if total else 0.0 for name, value in own.items()}
    matmuls = (name for name in share if MATMUL.search(name.lower()) and not NOT_MATMUL.search(name.lower()))
    step["matmul_share"] = sum(share[name] for name in matmuls)
    step["top"] = [[name, share[name]] for name in sorted(share, key=share.get, reverse=True)[:TOP]]
    return step
