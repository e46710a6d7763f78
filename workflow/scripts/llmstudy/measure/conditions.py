"""The conditions of a measurement: whatever may have disturbed it is recorded and named, never hidden."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from functools import reduce
from operator import or_
from pathlib import Path

from llmstudy.measure.device import read_nvml

# NVML throttle reasons that mean trouble: hardware slowdown, sync boost, software and hardware thermal slowdown, power
# brake. Idle (1), application clocks (2) and the card's power limit (4), at which it works in use, are none.
_SLOWING = {
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}
OTHER_WORK = 0.2  # share of the cores that other work may take without a word
SHORTEST_S = 0.2  # the kernel counts time in hundredths of a second: a shorter span says nothing


def snapshot() -> dict:
    """Return the time, the work so far of this process and of all on its cores, seconds, and the state of the GPU."""
    state = {"time_s": time.perf_counter(), "own_s": time.process_time(), "busy_s": busy_seconds()}
    if gpus := read_nvml(gpu_state):
        state["gpu"] = combined(gpus)
    return state


def busy_seconds() -> float | None:
    """Return the seconds that the cores of this process have worked since boot, for whomever; None without /proc."""
    try:
        lines = Path("/proc/stat").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    own = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    ticks = 0
    for name, *counts in map(str.split, lines):
        if name in own:
            user, nice, system, _, _, irq, softirq, steal = map(int, counts[:8])
            ticks += user + nice + system + irq + softirq + steal
    return ticks / os.sysconf("SC_CLK_TCK")


def gpu_state(nvml, gpu) -> dict:
    """Return the SM clock (MHz), temperature (°C), power (W), throttle reasons (bit mask) and the number of other
    compute processes of a GPU; what it does not report is left out."""
    readings = {
        "sm_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM),
        "temperature_c": lambda: nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU),
        "power_w": lambda: nvml.nvmlDeviceGetPowerUsage(gpu) / 1000,
        "throttle_reasons": lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu),
        "foreign_processes": lambda: sum(
            process.pid != os.getpid() for process in nvml.nvmlDeviceGetComputeRunningProcesses(gpu)
        ),
    }
    state = {}
    for name, read in readings.items():
        with suppress(nvml.NVMLError):
            state[name] = read()
    return state


def combined(states: list[dict]) -> dict:
    """Return the state of several GPUs that one model is split over as that of one: the slowest clock, the highest
    temperature, power and processes in all, whatever throttles one of them."""
    combine = {"sm_clock_mhz": min, "temperature_c": max, "throttle_reasons": lambda masks: reduce(or_, masks)}
    return {
        name: combine.get(name, sum)([state[name] for state in states if name in state])
        for name in dict.fromkeys(name for state in states for name in state)
    }


def disturbances(before: dict, after: dict) -> list[str]:
    """Return a phrase for each disturbance between two snapshots."""
    phrases = []
    seconds = after["time_s"] - before["time_s"]
    if before["busy_s"] is not None and seconds > SHORTEST_S:
        others = after["busy_s"] - before["busy_s"] - (after["own_s"] - before["own_s"])
        share = others / seconds / len(os.sched_getaffinity(0))
        if share > OTHER_WORK:
            phrases.append(f"other work took {100 * share:.0f} % of the cores")
    states = [one.get("gpu", {}) for one in (before, after)]
    if others := max(state.get("foreign_processes") or 0 for state in states):
        phrases.append(f"{others} other GPU process{'es' * (others != 1)}")
    slowing = states[0].get("throttle_reasons", 0) | states[1].get("throttle_reasons", 0)
    return phrases + [f"throttled: {word}" for bit, word in _SLOWING.items() if slowing & bit]
