"""Energy of a stretch of work: NVML's counter on a GPU, RAPL's on a CPU where it is readable, else None.

Idle power is measured for half a second, before the model is loaded, and its share subtracted, so that the figure is
what the work added. Work that adds too little to be told from idling has none.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llmstudy.measure import gpu

IDLE_WINDOW_S = 0.5
RAPL = Path("/sys/class/powercap")


@dataclass(frozen=True)
class Counter:
    """Energy counters that are read together.

    source    where they come from, as it stands in the record
    read      joules of each since some time in the past
    ranges_j  joules after which each begins again at 0; None where that is not known
    """

    source: str
    read: Callable[[], list[float]]
    ranges_j: list[float | None]

    def since(self, before: list[float]) -> float | None:
        """Joules since ``read`` gave ``before``; None if a counter of unknown range began again in between.

        One that began again did so once: RAPL's 32 bits last for minutes at full power, a stretch of work for seconds.
        """
        total = 0.0
        for start, end, range_j in zip(before, self.read(), self.ranges_j, strict=True):
            if end < start and range_j is None:
                return None
            total += end - start + (range_j if end < start else 0.0)
        return total


class EnergyMeter:
    """Reads a counter before and after: ``start()``, work, ``joules()``. To be made while the device is idle."""

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
        """Begin a stretch of work."""
        self.began = (self.counter.read(), time.perf_counter()) if self.counter else None

    def joules(self) -> float | None:
        """Joules since ``start`` above idle; None without a counter, where one began again at an unknown value, or
        where the work drew no more than idling."""
        if not self.counter:
            return None
        before, start = self.began
        used_j = self.counter.since(before)
        if used_j is None or self.idle_w is None:
            return None
        added = used_j - self.idle_w * (time.perf_counter() - start)
        return added if added > 0 else None


def _nvml_counter() -> Counter | None:
    with gpu.handle() as nvml:
        if nvml is None or nvml.energy_j() is None:
            return None

    def read() -> list[float]:
        with gpu.handle() as nvml:
            return [nvml.energy_j()]

    return Counter("nvml", read, [None])


def _rapl_counter() -> Counter | None:
    # Package domains only (intel-rapl:0): core and DRAM domains lie within or beside them and would count twice.
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
    """A file of the kernel's powercap framework (Documentation/power/powercap) that holds microjoules."""
    return int(file.read_text()) / 1e6
