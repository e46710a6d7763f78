"""Copy bandwidth of the device, measured in the job that needs it."""

from __future__ import annotations

import statistics
import time

COPY_BYTES = {"cuda": 2**31, "cpu": 2**28}  # several times any cache
COPIES = 9


def copy_bandwidth_gb_s(device: str, synchronize) -> float:
    """Median GB/s (10⁹ bytes) of copying a large tensor, counting bytes read plus bytes written."""
    import torch

    source = torch.ones(COPY_BYTES[device], dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    seconds = []
    for _ in range(COPIES):
        synchronize()
        start = time.perf_counter()
        target.copy_(source)
        synchronize()
        seconds.append(time.perf_counter() - start)
    return 2 * COPY_BYTES[device] / statistics.median(seconds) / 1e9
