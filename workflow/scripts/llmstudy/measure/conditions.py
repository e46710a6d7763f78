"""The conditions of a measurement: whatever may have disturbed it is recorded and flagged, never hidden."""

from __future__ import annotations

import os
from contextlib import suppress

from llmstudy.measure.device import read_nvml

# NVML throttle reasons that slow the clocks down: software power cap, hardware slowdown, sync boost, software and
# hardware thermal slowdown, power brake. Idle (1) and application clocks (2) are not disturbances.
_SLOWING = {
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}
CLOCK_DROP = 0.1  # share by which the SM clock may fall between two snapshots without a flag


def snapshot() -> dict:
    """Return the load average of the last minute, the number of cores, and the state of the GPU if there is one."""
    state = {"load_average": round(os.getloadavg()[0], 2), "cores": os.cpu_count()}
    if gpu := read_nvml(gpu_state):
        state["gpu"] = gpu
    return state


def gpu_state(nvml, gpu) -> dict:
    """Return clocks (MHz), temperature (°C), power (W), throttle reasons (bit mask) and the number of other compute
    processes of a GPU; what it does not report is left out."""
    readings = {
        "sm_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM),
        "memory_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_MEM),
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


def flags(before: dict, after: dict, steady: bool) -> list[str]:
    """Return a phrase for each disturbance between two snapshots, and one if the warm-up did not end ``steady``.

    Both snapshots count: the work is over when the second is taken, and the GPU may have raised its clocks again.
    """
    phrases = []
    if not steady:
        phrases.append("not steady")
    states = [snapshot.get("gpu", {}) for snapshot in (before, after)]
    if others := max(state.get("foreign_processes") or 0 for state in states):
        phrases.append(f"{others} other GPU process{'es' * (others != 1)}")
    slowing = states[0].get("throttle_reasons", 0) | states[1].get("throttle_reasons", 0)
    phrases += [f"throttled: {word}" for bit, word in _SLOWING.items() if slowing & bit]
    clocks = [state.get("sm_clock_mhz") for state in states]
    if all(clocks) and clocks[1] < (1 - CLOCK_DROP) * clocks[0]:
        phrases.append(f"SM clock fell from {clocks[0]} to {clocks[1]} MHz")
    return phrases
