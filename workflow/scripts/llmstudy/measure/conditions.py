"""What could have disturbed a measurement: noted and flagged, never hidden."""

from __future__ import annotations

import os

from llmstudy.measure import gpu

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


def snapshot() -> dict:
    """Load average of the last minute, cores, and the state of the GPU if there is one."""
    found = {"load_average": round(os.getloadavg()[0], 2), "cores": os.cpu_count()}
    with gpu.handle() as nvml:
        if nvml:
            found["gpu"] = nvml.state(os.getpid())
    return found


def flags(after: dict, steady: bool) -> list[str]:
    """Words for what may have disturbed the stretch that ended with a snapshot; ``busy`` has one more."""
    found = []
    if not steady:
        found.append("not steady")
    state = after.get("gpu", {})
    if state.get("foreign_processes"):
        found.append(f"{state['foreign_processes']} other GPU processes")
    found += [f"throttled: {word}" for bit, word in _SLOWING.items() if state.get("throttle_reasons", 0) & bit]
    return found


def busy(before: dict, threads: int) -> list[str]:
    """A flag if others worked on the machine. On a GPU too: a step that waits for launches is as slow as the host.

    Our own threads count in the load average; one more than those is somebody else's work.
    """
    if before["load_average"] <= threads + 1:
        return []
    return [f"load average {before['load_average']:.1f} on {before['cores']} cores"]
