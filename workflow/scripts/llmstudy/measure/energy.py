"""Energy of a piece of work: from NVML's counter on a GPU, from RAPL's on a CPU where it is readable, else None.

Idle power is measured for half a second, before the model is loaded, and subtracted: the figure is what the work added.
Work that adds too little to stand out from idle power has no figure.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llmstudy.measure.device import read_nvml

IDLE_WINDOW_S = 0.5
RAPL = Path("/sys/class/powercap")


@dataclass(frozen=True)
class Counter:
    """Energy counters that are read together.

    Attributes:
        source: ``nvml`` or ``rapl``, for the record.
        read: returns the joules of each counter since some time in the past.
        ranges_j: joules after which each counter starts again at 0; None if unknown.
    """

    source: str
    read: Callable[[], list[float]]
    ranges_j: list[float | None]

    def since(self, before: list[float]) -> float | None:
        """Return the joules since ``read`` gave ``before``; None if a counter of unknown range started again.

        A counter is taken to start again at most once: RAPL's 32 bits last for minutes at full power, the work for
        seconds.
        """
        total = 0.0
        for start, end, range_j in zip(before, self.read(), self.ranges_j, strict=True):
            if end < start and range_j is None:
                return None
            total += end - start + (range_j if end < start else 0.0)
        return total


class EnergyMeter:
    """Reads a counter before and after: ``start()``, work, ``joules()``. Create it while the device is idle."""

    def __init__(self, device: str, sleep: Callable[[float], None] = time.sleep):
        self.counter = _nvml_counter() if device == "cuda" else _rapl_counter()
        self.source = self.counter and self.counter.source
        self.idle_w = None
        if self.counter:
            before, start = self.counter.read(), time.perf_counter()
            sleep(IDLE_WINDOW_S)
            idle_j = self.counter.since(before)
            self.idle_w = None if idle_j is None else idle_j / (time.perf_counter() - start)

    def start(self) -> None:
        """Begin a piece of work."""
        self.began = (self.counter.read(), time.perf_counter()) if self.counter else None

    def joules(self) -> float | None:
        """Return the joules above idle since ``start``; None without a counter, if it started again at an unknown
        value, or if the work used no more than idling."""
        if not self.counter:
            return None
        before, start = self.began
        used_j = self.counter.since(before)
        if used_j is None or self.idle_w is None:
            return None
        added = used_j - self.idle_w * (time.perf_counter() - start)
        return added if added > 0 else None


def _nvml_counter() -> Counter | None:
    def read() -> list[float]:
        return [read_nvml(lambda nvml, gpu: nvml.nvmlDeviceGetTotalEnergyConsumption(gpu) / 1000)]  # millijoules

    return Counter("nvml", read, [None]) if read() != [None] else None


def _rapl_counter() -> Counter | None:
    # Package domains only (intel-rapl:0): core and DRAM domains are parts of them or beside them, so would count twice.
    domains = [path for path in sorted(RAPL.glob("intel-rapl:[0-9]*")) if path.name.count(":") == 1]

    def read() -> list[float]:
        return [_joules(domain / "energy_uj") for domain in domains]

    try:
        read()
    except OSError:
        return None
    return Counter("rapl", read, [_range_j(domain) for domain in domains]) if domains else None


def _range_j(domain: Path) -> float | None:
    try:
        return _joules(domain / "max_energy_range_uj")
    except OSError:
        return None


def _joules(file: Path) -> float:
    """Return joules from a file of the kernel's powercap framework (Documentation/power/powercap), in microjoules."""
    return int(file.read_text()) / 1e6
