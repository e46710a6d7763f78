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


def flags(before: dict, after: dict, threads: int | None, steady: bool) -> list[str]:
    """Words for what may have disturbed the stretch between two snapshots.

    threads: of this process where they do the work; None where a GPU does it, which a busy core beside the one that
    launches does not disturb.
    """
    found = []
    if not steady:
        found.append("not steady")
    # Our own threads count in the load average; one more than those is somebody else's work.
    expected = before["cores"] if threads is None else threads + 1
    if before["load_average"] > expected:
        found.append(f"load average {before['load_average']:.1f} on {before['cores']} cores")
    state = after.get("gpu", {})
    if state.get("foreign_processes"):
        found.append(f"{state['foreign_processes']} other GPU processes")
    found += [f"throttled: {word}" for bit, word in _SLOWING.items() if state.get("throttle_reasons", 0) & bit]
    return found
