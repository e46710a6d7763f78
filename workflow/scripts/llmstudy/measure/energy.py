"""Energy of a stretch of work: NVML's counter on a GPU, RAPL's on a CPU where it is readable, else None.

Idle power is measured for half a second before and its share subtracted, so that the figure is what the work added.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from llmstudy.measure import gpu

IDLE_WINDOW_S = 0.5
RAPL = Path("/sys/class/powercap")


class EnergyMeter:
    """Reads a counter before and after: ``start()``, work, ``joules()``."""

    def __init__(self, device: str, sleep: Callable[[float], None] = time.sleep):
        self.read, self.source = self._counter(device)
        self.idle_w = None
        if self.read:
            before, start = self.read(), time.perf_counter()
            sleep(IDLE_WINDOW_S)
            self.idle_w = (self.read() - before) / (time.perf_counter() - start)

    def start(self) -> None:
        """Begin a stretch of work."""
        self.began = (self.read(), time.perf_counter()) if self.read else None

    def joules(self) -> float | None:
        """Joules since ``start`` above idle; None without a counter."""
        if not self.read:
            return None
        energy, start = self.began
        return max(0.0, self.read() - energy - self.idle_w * (time.perf_counter() - start))

    @staticmethod
    def _counter(device: str) -> tuple[Callable[[], float] | None, str | None]:
        if device == "cuda":
            return _nvml_counter()
        return _rapl_counter()


def _nvml_counter():
    with gpu.handle() as nvml:
        if nvml is None or nvml.energy_j() is None:
            return None, None

    def read() -> float:
        with gpu.handle() as nvml:
            return nvml.energy_j()

    return read, "nvml"


def _rapl_counter():
    # Package domains only (intel-rapl:0): core and DRAM domains lie within or beside them and would count twice.
    counters = [path / "energy_uj" for path in sorted(RAPL.glob("intel-rapl:[0-9]*")) if path.name.count(":") == 1]
    try:
        for counter in counters:
            counter.read_text()
    except OSError:
        return None, None
    if not counters:
        return None, None
    return lambda: sum(int(counter.read_text()) for counter in counters) / 1e6, "rapl"
