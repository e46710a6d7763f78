"""What the profiler saw, reduced to a few counts and durations."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from statistics import median

LAUNCHES = re.compile(r"^(cuda|cu)(LaunchKernel|LaunchCooperativeKernel|GraphLaunch)")
# Host waits for the device; a blocking copy shows as the stream synchronisation that it does.
WAITS = re.compile(r"^(cuda|cu|ctx)(Stream|Device|Event|Ctx)Synchronize")
# On the CPU nothing waits, but these are the reads of a value that would make the host wait for a GPU.
VALUE_READS = "aten::_local_scalar_dense"
# Matrix products by name: aten::mm, addmm, bmm; cuBLAS' gemm, gemv, xmma, nvjet; CUTLASS; the kernels of this project.
MATMUL = re.compile(r"mm|gemv|matmul|matvec|cutlass|nvjet|linear|rows_kernel|tile_kernel")
# GPU kernels that such a name hides in: attention is templated on cutlass::bfloat16_t or called wgmma.
NOT_MATMUL = re.compile(r"flash|fmha|sdpa|attention|dequant")
TOP = 5


@dataclass(frozen=True)
class Event:
    """One profiler event, times in µs. ``top`` marks an operator that no other operator called."""

    name: str
    device: bool
    start: float
    end: float
    own: float
    top: bool


@dataclass
class Trace:
    """One profiled call. Times in ms.

    launches  kernel and graph launches by the host; 0 on a CPU
    waits     host synchronisations; on a CPU values read back
    operators  operators called from outside any operator
    kernels   kernels that the device ran, copies and fills apart; on a CPU the same as operators
    busy_ms   time in which at least one kernel (on a CPU: operator) ran
    wall_ms   the whole call, under the profiler
    own_ms    time by kernel (on a CPU: by operator, without those it calls); kernels that overlap count in full
    """

    launches: int = 0
    waits: int = 0
    operators: int = 0
    kernels: int = 0
    busy_ms: float = 0.0
    wall_ms: float = 0.0
    own_ms: Counter = field(default_factory=Counter)


def record(run: Callable[[], object], device: str) -> Trace:
    """Profile one call of ``run``, which must leave nothing running on the device."""
    import torch
    from torch.profiler import ProfilerActivity

    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device == "cuda" else [])
    with torch.profiler.profile(activities=activities) as profile:
        start = time.perf_counter()
        run()
        wall_ms = 1e3 * (time.perf_counter() - start)
    return reduce(events_of(profile), wall_ms, device)


def events_of(profile) -> Iterable[Event]:
    """The events of a ``torch.profiler.profile``."""
    from torch.autograd import DeviceType

    for event in profile.events():
        span = event.time_range
        on_device = event.device_type != DeviceType.CPU
        own = span.elapsed_us() if on_device else event.self_cpu_time_total
        yield Event(event.name, on_device, span.start, span.end, own, "::" in event.name and not _called(event))


def _called(event) -> bool:
    """Whether an operator called this one."""
    parent = event.cpu_parent
    while parent is not None:
        if "::" in parent.name:
            return True
        parent = parent.cpu_parent
    return False


def reduce(events: Iterable[Event], wall_ms: float, device: str) -> Trace:
    """Counts and durations of one profiled call."""
    trace = Trace(wall_ms=wall_ms)
    works: list[tuple[float, float]] = []
    for event in events:
        if event.device:
            trace.kernels += not event.name.startswith(("Memcpy", "Memset"))
            works.append((event.start, event.end))
            trace.own_ms[event.name] += event.own / 1e3
            continue
        trace.launches += bool(LAUNCHES.match(event.name))
        trace.waits += event.name == VALUE_READS if device == "cpu" else bool(WAITS.match(event.name))
        trace.operators += event.top
        if device == "cpu" and "::" in event.name:
            trace.own_ms[event.name] += event.own / 1e3
            if event.top:
                works.append((event.start, event.end))
    if device == "cpu":
        trace.kernels = trace.operators
    trace.busy_ms = covered(works) / 1e3
    return trace


def covered(intervals: Iterable[tuple[float, float]]) -> float:
    """Length of the union of intervals: kernels that overlap count once."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def per_step(short: list[Trace], long: list[Trace], steps: int) -> dict:
    """What one of the ``steps`` decode steps that ``long`` has more than ``short`` did.

    Counts are medians over the runs. Times are those of the shortest run: whatever disturbs a run makes it longer, and
    a difference of two disturbed times means nothing.

    ``{"launches", "waits", "operators", "kernels", "busy_ms", "profiled_ms", "matmul_share", "top"}``: counts and ms
    per step, the share of matrix products in kernel (on a CPU: operator) time, and the longest kernels with their
    shares.
    """

    def more(name: str, of_runs: Callable = median) -> float:
        longer, shorter = (of_runs(getattr(trace, name) for trace in traces) for traces in (long, short))
        return (longer - shorter) / steps

    found = {name: more(name) for name in ("launches", "waits", "operators", "kernels")}
    found |= {"busy_ms": more("busy_ms", min), "profiled_ms": more("wall_ms", min)}
    names = {name for trace in long for name in trace.own_ms}
    own = {name: max(0.0, min(t.own_ms[name] for t in long) - min(t.own_ms[name] for t in short)) for name in names}
    total = sum(own.values())
    share = {name: value / total if total else 0.0 for name, value in own.items()}
    matmuls = (name for name in share if MATMUL.search(name.lower()) and not NOT_MATMUL.search(name.lower()))
    found["matmul_share"] = sum(share[name] for name in matmuls)
    found["top"] = [[name, share[name]] for name in sorted(share, key=share.get, reverse=True)[:TOP]]
    return found
