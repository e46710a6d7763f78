"""Copy bandwidth of the device, measured in the job that needs it."""

from __future__ import annotations

import time

COPY_BYTES = {"cuda": 2**31, "cpu": 2**28}  # several times any cache
COPIES = {"cuda": 50, "cpu": 9}


def copy_bandwidth_gb_s(device: str, synchronize) -> float:
    """GB/s (10⁹ bytes) of the fastest of several copies of a large tensor, counting bytes read plus bytes written.

    The best and not the median, as in STREAM (McCalpin, 1995): it stands for what the device can do, and whatever
    disturbs a copy only slows it down. Medians of single processes on one H200 lay between 3.65 and 4.25 TB/s.
    """
    import torch

    source = torch.ones(COPY_BYTES[device], dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    seconds = []
    for _ in range(COPIES[device]):
        synchronize()
        start = time.perf_counter()
        target.copy_(source)
        synchronize()
        seconds.append(time.perf_counter() - start)
    return 2 * COPY_BYTES[device] / min(seconds) / 1e9
