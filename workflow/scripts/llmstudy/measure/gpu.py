"""What NVML says about the GPU. Absent without an NVIDIA driver or the nvidia-ml-py package."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass


@dataclass(frozen=True)
class Nvml:
    """An open handle to the first visible GPU."""

    library: object
    device: object
    driver: str

    def energy_j(self) -> float | None:
        """Energy drawn since the driver was loaded, joules."""
        with suppress(self.library.NVMLError):
            return self.library.nvmlDeviceGetTotalEnergyConsumption(self.device) / 1000
        return None

    def process_memory_gib(self, pid: int) -> float | None:
        """Device memory that the driver counts for a process, CUDA context included, GiB."""
        with suppress(self.library.NVMLError):
            for process in self.library.nvmlDeviceGetComputeRunningProcesses(self.device):
                if process.pid == pid and process.usedGpuMemory:
                    return process.usedGpuMemory / 2**30
        return None

    def state(self, pid: int) -> dict:
        """Clocks (MHz), temperature (°C), power (W), throttle reasons (bit mask) and other compute processes."""
        nvml, device = self.library, self.device
        readings = {
            "sm_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(device, nvml.NVML_CLOCK_SM),
            "memory_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(device, nvml.NVML_CLOCK_MEM),
            "temperature_c": lambda: nvml.nvmlDeviceGetTemperature(device, nvml.NVML_TEMPERATURE_GPU),
            "power_w": lambda: nvml.nvmlDeviceGetPowerUsage(device) / 1000,
            "throttle_reasons": lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(device),
            "foreign_processes": lambda: sum(
                process.pid != pid for process in nvml.nvmlDeviceGetComputeRunningProcesses(device)
            ),
        }
        found = {}
        for name, read in readings.items():
            with suppress(nvml.NVMLError):
                found[name] = read()
        return found


@contextmanager
def handle() -> Iterator[Nvml | None]:
    """NVML for the first visible GPU, or None where there is none."""
    try:
        import pynvml
    except ImportError:
        yield None
        return
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield None
        return
    try:
        device = _first_visible(pynvml)
        yield None if device is None else Nvml(pynvml, device, pynvml.nvmlSystemGetDriverVersion())
    finally:
        pynvml.nvmlShutdown()


def _first_visible(pynvml):
    """NVML's handle of the first GPU that CUDA shows; None if NVML does not know it.

    NVML counts all GPUs in the order of the bus, CUDA those of CUDA_VISIBLE_DEVICES in an order of its own, so the UUID
    decides where it is known. A slice of a GPU (MIG) has a UUID too, under a prefix of its own.
    """
    torch = sys.modules.get("torch")
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    names = [first] if first.startswith(("GPU-", "MIG-")) else []
    if torch and torch.cuda.is_initialized():
        uuid = torch.cuda.get_device_properties(0).uuid
        names = [f"GPU-{uuid}", f"MIG-{uuid}", *names]
    for name in names:
        with suppress(pynvml.NVMLError):
            return pynvml.nvmlDeviceGetHandleByUUID(name)
    with suppress(pynvml.NVMLError):
        return pynvml.nvmlDeviceGetHandleByIndex(int(first) if first.isdigit() else 0)
    return None
