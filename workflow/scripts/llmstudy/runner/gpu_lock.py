"""The GPU lock: measurements of time and memory have a GPU alone, the others share it.

A process needs some ten seconds for its imports before it touches the GPU. With Snakemake's ``--resources gpu=2`` the
next process can spend them while one measures; the lock here keeps the measurements themselves apart. Where SLURM
grants a GPU to one job it is never waited for. On a CPU a measuring job asks Snakemake for every core instead.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path


@contextmanager
def gpu_lock(device: str, alone: bool) -> Iterator[None]:
    """Wait for every visible GPU and hold them within the context, ``alone`` or shared with others that share.

    This process can use no GPU afterwards: its memory is given back first, or the next one would measure beside that.
    """
    with ExitStack() as stack:
        if device == "cuda":
            for path in locks(visible_gpus()):
                stack.enter_context(locked(path, alone=alone))
            stack.callback(destroy_contexts)
        yield


def destroy_contexts() -> None:
    """Destroy the CUDA contexts of this process, and with them what it holds on any GPU (cuDevicePrimaryCtxReset)."""
    import torch

    with suppress(OSError, AttributeError):
        driver = ctypes.CDLL("libcuda.so.1")
        for index in range(torch.cuda.device_count()):
            handle = ctypes.c_int()
            if driver.cuDeviceGet(ctypes.byref(handle), index) == 0:
                driver.cuDevicePrimaryCtxReset_v2(handle)


def visible_gpus() -> list[str]:
    """Return the UUIDs of the GPUs that CUDA shows: indices differ between processes that see different GPUs."""
    import torch

    return [str(torch.cuda.get_device_properties(index).uuid) for index in range(torch.cuda.device_count())]


def locks(gpus: Iterable[str]) -> list[Path]:
    """Return the lock file of each GPU, in an order that all processes share, so that none waits in a circle.

    The files belong to the user: on a shared machine nobody can hold up somebody else's study.
    """
    return [Path(tempfile.gettempdir()) / f"llmstudy-{os.getuid()}-{gpu}.lock" for gpu in sorted(gpus)]


@contextmanager
def locked(path: Path, alone: bool) -> Iterator[None]:
    """Hold ``path`` alone or shared; the kernel releases it when the process ends, however it ends."""
    with path.open("w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield
