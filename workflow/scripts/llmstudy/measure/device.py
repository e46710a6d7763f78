"""The device: its rates, measured in the process that needs them, and what NVML and the kernel say of it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import torch

from llmstudy.runner import pool

Value = TypeVar("Value")

COPY_BYTES = {"cuda": 2**31, "cpu": 2**28}  # several times any cache
PASSES = {"cuda": 50, "cpu": 9}
SIDE = {"cuda": 8192, "cpu": 1024}  # of a square matrix, large enough that arithmetic limits its product
PRODUCTS = 7


def bandwidth_gb_s(device: str, synchronize: Callable[[], None]) -> dict[str, float]:
    """Return the bandwidth of a copy and of a pass that only reads, GB/s (10⁹ bytes): ``{"copy", "read"}``.

    A copy counts what it reads and what it writes. Each is the fastest of several and not the median, as in STREAM
    (McCalpin, 1995): it is what the device can do, and whatever disturbs a pass only slows it down. A decode step only
    reads, so that on an H100 it can pass the bandwidth of a copy, 2.95 TB/s, but not that of reading, 3.10.
    """
    source = torch.ones(COPY_BYTES[device] // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    passes = {"copy": (lambda: target.copy_(source), 2), "read": (lambda: torch.sum(source, 0, out=total), 1)}
    total = torch.empty((), device=device)
    rates = {}
    for name, (run, moved) in passes.items():
        run()
        rates[name] = moved * COPY_BYTES[device] / min(_seconds(run, PASSES[device], synchronize)) / 1e9
    return rates


def matmul_tflops(device: str, dtype: torch.dtype, synchronize: Callable[[], None]) -> float:
    """Return the median TFLOP/s of a square matrix product, which takes 2 n³ operations."""
    side = SIDE[device]
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = left @ right
    seconds = _seconds(lambda: torch.matmul(left, right, out=out), PRODUCTS, synchronize)
    return 2 * side**3 / statistics.median(seconds) / 1e12


def _seconds(run: Callable[[], object], times: int, synchronize: Callable[[], None]) -> list[float]:
    seconds = []
    for _ in range(times):
        synchronize()
        start = time.perf_counter()
        run()
        synchronize()
        seconds.append(time.perf_counter() - start)
    return seconds


def read_nvml(read: Callable[[Any, Any], Value]) -> list[Value]:
    """Return what ``read`` gets from (NVML's library, its handle) for each GPU of this process, in CUDA's order.

    Empty without a GPU, NVIDIA's driver or the package nvidia-ml-py; a GPU that does not report it is left out.
    """
    values = []
    with pool.nvml_library() as nvml:
        for gpu in pool.visible(nvml) if nvml else []:
            with suppress(nvml.NVMLError):
                values.append(read(nvml, gpu.handle))
    return values


def unused_gpu() -> str | None:
    """Return which GPU of this machine PyTorch cannot use, and why; None without one, or where nothing keeps it."""
    if torch.cuda.is_available() or not pool.present():
        return None
    names = ", ".join(dict.fromkeys(gpu.name for gpu in pool.usable())) or "a GPU that NVML does not show"
    if torch.version.cuda is None:
        return f"{names}: PyTorch {torch.__version__} is a build without CUDA"
    try:
        torch.cuda.init()
    except Exception as error:
        return f"{names}: {' '.join(str(error).split())[:300]}"
    return f"{names}: CUDA {torch.version.cuda} of PyTorch {torch.__version__} shows no device"


def proc_bytes(file: str, field: str) -> int | None:
    """Return a field of ``/proc/<file>``, which is in KiB there, in bytes; None where it is not."""
    with suppress(OSError):
        for line in Path("/proc", file).read_text(encoding="utf-8").splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    return None
