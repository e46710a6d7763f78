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
CLOCK_DROP = 0.1  # a clock that fell by more than this share between two snapshots is worth a word


def snapshot() -> dict:
    """Load average of the last minute, cores, and the state of the GPU if there is one."""
    found = {"load_average": round(os.getloadavg()[0], 2), "cores": os.cpu_count()}
    with gpu.handle() as nvml:
        if nvml:
            found["gpu"] = nvml.state(os.getpid())
    return found


def flags(before: dict, after: dict, steady: bool) -> list[str]:
    """Words for what may have disturbed the stretch between two snapshots; ``busy`` has one more.

    Both ends count: when the second is taken the work is over, and a GPU may no longer hold back its clocks.
    """
    found = []
    if not steady:
        found.append("not steady")
    states = [snapshot.get("gpu", {}) for snapshot in (before, after)]
    if others := max(state.get("foreign_processes") or 0 for state in states):
        found.append(f"{others} other GPU process{'es' * (others != 1)}")
    slowing = states[0].get("throttle_reasons", 0) | states[1].get("throttle_reasons", 0)
    found += [f"throttled: {word}" for bit, word in _SLOWING.items() if slowing & bit]
    clocks = [state.get("sm_clock_mhz") for state in states]
    if all(clocks) and clocks[1] < (1 - CLOCK_DROP) * clocks[0]:
        found.append(f"SM clock fell from {clocks[0]} to {clocks[1]} MHz")
    return found


def busy(before: dict, threads: int) -> list[str]:
    """A flag if others worked on the machine. On a GPU too: a step that waits for launches is as slow as the host.

    Our own threads count in the load average; one more than those is somebody else's work.
    """
    if before["load_average"] <= threads + 1:
        return []
    return [f"load average {before['load_average']:.1f} on {before['cores']} cores"]
