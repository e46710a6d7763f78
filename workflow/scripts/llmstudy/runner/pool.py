"""The pool of GPUs of a host: each job takes one for itself, and several only for a model that does not fit one.

A process needs some ten seconds for its imports before it touches the GPU. With more processes than GPUs
(``--resources gpu=2`` on one) the next one can spend them while another measures: a job takes a *seat* at a GPU, which
says what CUDA shows to its child, and later its *turn*, in which nobody else measures there. Both are locks of the
parent: it releases them when the child is gone, and with it all that the child had on the GPU; the kernel releases
them should the parent be killed. Under SLURM, CUDA_VISIBLE_DEVICES holds what SLURM granted, and nobody waits.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from llmstudy.errors import StudyError
from llmstudy.llama import gpus_needed
from llmstudy.models import precisions
from llmstudy.runner.job import Configuration, Job

# The same for every checkout and user of the host, whatever TMPDIR says; the first one that can be written to.
FOLDERS = ("/tmp", "/dev/shm")
# What shows a GPU of NVIDIA's, of Linux and of Windows (WSL), and one of AMD's.
SIGNS = ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/usr/lib/wsl/lib/nvidia-smi")
AMD = "/dev/kfd"
HIDDEN = ("", "-1", "NoDevFiles")  # values of CUDA_VISIBLE_DEVICES that leave no GPU


@dataclass(frozen=True)
class Gpu:
    """A GPU or a slice of one (MIG); ``number`` is that of nvidia-smi: ``0``, of a slice ``0:1``; memory in bytes."""

    uuid: str
    number: str
    name: str
    memory: int
    handle: Any = field(default=None, compare=False)  # NVML's, while the library is open

    def __str__(self) -> str:
        return f"GPU {self.number} ({self.name})"


def present() -> bool:
    """Return whether this machine has a GPU of NVIDIA's that CUDA_VISIBLE_DEVICES does not hide; costs nothing."""
    return os.environ.get("CUDA_VISIBLE_DEVICES") not in HIDDEN and any(Path(sign).exists() for sign in SIGNS)


def check_present(device: str, rules: Iterable[str]) -> None:
    """Raise StudyError if the study asks for a GPU, this machine has none, and one of the ``rules`` measures."""
    measures = any(rule.startswith("measure") for rule in rules)
    if measures and device == "cuda" and not present() and not Path(AMD).exists():
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        why = f"CUDA_VISIBLE_DEVICES={hidden} hides every GPU" if hidden in HIDDEN else "this machine has no NVIDIA GPU"
        raise StudyError(f"device: 'cuda', but {why}; allowed here: auto, cpu; on a cluster see docs/cluster.md")


@contextmanager
def nvml_library() -> Iterator[Any]:
    """Yield NVML's library, opened; None without NVIDIA's driver or the package nvidia-ml-py."""
    with ExitStack() as stack:
        try:
            import pynvml

            pynvml.nvmlInit()
            stack.callback(pynvml.nvmlShutdown)
        except Exception:  # ImportError, or an error of the package that was not imported
            pynvml = None
        yield pynvml


def visible(nvml) -> list[Gpu]:
    """Return the GPUs that CUDA_VISIBLE_DEVICES leaves, in its order: numbers as nvidia-smi counts, UUIDs or their
    beginnings, names of slices. As in CUDA, an entry that names none ends the list. A GPU in slices is its slices."""
    gpus = [gpu for index in range(nvml.nvmlDeviceGetCount()) for gpu in _devices(nvml, index)]
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    if names is None:
        return gpus
    chosen: dict[str, Gpu] = {}
    for name in map(str.strip, names.split(",")):
        found = [gpu for gpu in gpus if gpu.number.split(":")[0] == name or (name and gpu.uuid.startswith(name))]
        if not found:
            break
        chosen |= {gpu.uuid: gpu for gpu in found}
    return list(chosen.values())


def _devices(nvml, index: int) -> Iterator[Gpu]:
    whole = nvml.nvmlDeviceGetHandleByIndex(index)
    slices = []
    with suppress(nvml.NVMLError):  # a GPU that cannot be sliced
        if nvml.nvmlDeviceGetMigMode(whole)[0]:
            for number in range(nvml.nvmlDeviceGetMaxMigDeviceCount(whole)):
                with suppress(nvml.NVMLError):  # no such slice
                    slices.append((f"{index}:{number}", nvml.nvmlDeviceGetMigDeviceHandleByIndex(whole, number)))
    for number, handle in slices or [(str(index), whole)]:
        uuid, name = nvml.nvmlDeviceGetUUID(handle), nvml.nvmlDeviceGetName(handle)
        yield Gpu(uuid, number, name, nvml.nvmlDeviceGetMemoryInfo(handle).total, handle)


def usable() -> list[Gpu]:
    """Return the visible GPUs that a study may use: those of the kind with the most memory. Numbers of unlike GPUs are
    not those of one device."""
    with nvml_library() as nvml:
        try:
            gpus = visible(nvml) if nvml else []
        except nvml.NVMLError:  # the driver was replaced while it ran, or hides a GPU
            gpus = []
    best = max(gpus, key=lambda gpu: gpu.memory, default=None)
    return [gpu for gpu in gpus if (gpu.name, gpu.memory) == (best.name, best.memory)]


def weight_bytes(job: Job, *configurations: Configuration) -> float:
    """Return the bytes that the fetched weights of a job take in the largest of some configurations: as published those
    of their files."""
    sizes = []
    for precision in map(precisions.get, {one.precision for one in configurations}):
        folder = job.checkpoints[precision.checkpoint] if precision.checkpoint else job.model_folder
        content = json.loads(Path(folder, "manifest.json").read_text(encoding="utf-8"))
        stored = sum(one["bytes"] for name, one in content["files"].items() if name.endswith(".safetensors"))
        as_stored = precision.compute_dtype == "auto"
        sizes.append(stored if as_stored else content["parameters"] / 8 * precision.weight_bits)
    return max(sizes)


@dataclass
class Seat:
    """The GPUs of a job: what its child sees at once, and uses when it is its turn; none on a CPU."""

    gpus: list[Gpu]
    locks: ExitStack

    def take_turn(self, log: IO[str]) -> None:
        """Wait until nobody else measures on these GPUs, first come first served, and say so in ``log``."""
        for gpu in sorted(self.gpus, key=lambda gpu: gpu.uuid):  # one order for all, or two could wait for each other
            if not _lock(self.locks, gpu, "turn"):
                print(
                    f"{time.strftime('%H:%M:%S')} waiting for {gpu}: another job measures on it", file=log, flush=True
                )
                _lock(self.locks, gpu, "turn", wait=True)


@contextmanager
def seat(gpus: Iterable[Gpu], weight_bytes: float) -> Iterator[Seat]:
    """Hold a seat at as many of ``gpus`` as the weights need, those with the fewest seats taken."""
    gpus = list(gpus)
    with ExitStack() as locks:
        wanted = min(len(gpus), gpus_needed(weight_bytes, gpus[0].memory)) if gpus else 0
        if any(":" in gpu.number for gpu in gpus):
            wanted = 1  # CUDA shows one slice to a process
        taken: dict[str, Gpu] = {}
        for number in itertools.count():
            for gpu in gpus:
                if len(taken) < wanted and gpu.uuid not in taken and _lock(locks, gpu, f"seat{number}"):
                    taken[gpu.uuid] = gpu
            if len(taken) == wanted:
                break
        yield Seat(list(taken.values()), locks)


def _lock(locks: ExitStack, gpu: Gpu, name: str, wait: bool = False) -> bool:
    """Lock a file of a GPU until ``locks`` is closed; return False if another process has it and we do not wait."""
    folder = next((one for one in FOLDERS if os.access(one, os.W_OK)), FOLDERS[0])
    path = Path(folder, f"llmstudy-{gpu.uuid}.{name}")
    mask = os.umask(0)  # any user of the host may lock it
    try:
        descriptor = _opened(path)
    finally:
        os.umask(mask)
    locks.callback(os.close, descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    with suppress(OSError):
        os.utime(path)  # so that whatever clears old files away leaves it
    return True


def _opened(path: Path) -> int:
    # Linux refuses O_CREAT for a file of somebody else in a folder that all may write to (fs.protected_regular).
    with suppress(FileExistsError):
        return os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL, 0o666)
    return os.open(path, os.O_RDONLY)
