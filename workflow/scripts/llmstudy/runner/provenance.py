"""The origin of a record: code, versions, hardware. No hostnames, users or tokens."""

from __future__ import annotations

import math
import os
import platform
import subprocess
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

PACKAGES = ("torch", "transformers", "bitsandbytes", "accelerate", "triton", "flash-attn", "safetensors", "numpy")
# What decides the order of precisions on a CPU: without bf16 instructions bf16 prefill is slower than fp32.
CPU_CAPABILITIES = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8", "asimd", "bf16", "i8mm")


def of_repository() -> dict:
    """Return the commit and whether tracked code differs from it; empty outside a git checkout."""
    folder = Path(__file__).resolve().parent

    def git(*arguments: str) -> str | None:
        # safe.directory: a container or a cluster often mounts the checkout under another user.
        command = ["git", "-c", "safe.directory=*", "-C", str(folder), *arguments]
        try:
            run = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return run.stdout.strip() if run.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    if not commit:
        return {}
    return {
        "git_commit": commit,
        "git_dirty": bool(git("status", "--porcelain", "--untracked-files=no", "--", ":/workflow")),
    }


def of_process(device: str) -> dict:
    """Return versions, CPU, threads and, on CUDA, the GPU of this process. Imports torch."""
    import torch

    cpu, capabilities = processor()
    facts = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "packages": installed(PACKAGES),
        "cpu": cpu,
        "cpu_capabilities": capabilities,
        "cores": cores(),
        "host_cores": os.cpu_count(),
        "cpu_quota": cpu_quota(),
        "threads": torch.get_num_threads(),
        "host_memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        facts["gpu"] = {
            "name": properties.name,
            "count": torch.cuda.device_count(),
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "multiprocessors": properties.multi_processor_count,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
        }
    return facts


def cores() -> int:
    """Return on how many cores this process may run: those that it is pinned to, where it is."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Return the CPU time that the control groups of this process leave it, cores; None without a limit.

    Every group above counts, in version 1 (``cpu.cfs_quota_us``) and 2 (``cpu.max``): the smallest quota binds. A
    container may see its own group as the top one, though its path is that of the host. ``root``: where /proc and the
    mount points lie.
    """
    try:
        mounts = [line.split() for line in (root / "proc/self/mountinfo").read_text(encoding="utf-8").splitlines()]
        groups = [
            line.split(":", 2)[1:] for line in (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
        ]
    except OSError:
        return None
    smallest = math.inf
    for mount in mounts:
        kind = mount[mount.index("-") + 1]
        wanted = "" if kind == "cgroup2" else "cpu" if kind == "cgroup" and "cpu" in mount[-1].split(",") else None
        for path in (path for controllers, path in groups if wanted in controllers.split(",")):
            top = root / mount[4].lstrip("/")
            group = top / os.path.relpath(path, mount[3])  # a part of the hierarchy may be mounted
            for one in (group, *group.parents):
                if one.is_relative_to(top):
                    smallest = min(smallest, _quota(one))
    return None if smallest == math.inf else smallest


def _quota(group: Path) -> float:
    """Return the quota of a control group, cores; infinite where it has none."""
    quota, period = -1, 1
    with suppress(OSError, ValueError):  # no such group, or ``max``
        quota, period = (
            int((group / f"cpu.cfs_{name}_us").read_text(encoding="utf-8")) for name in ("quota", "period")
        )
    with suppress(OSError, ValueError):
        quota, period = map(int, (group / "cpu.max").read_text(encoding="utf-8").split())
    return quota / period if quota > 0 else math.inf


def installed(packages: tuple[str, ...]) -> dict[str, str]:
    """Return the version of each installed package among ``packages``."""
    versions = {}
    for package in packages:
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


def processor() -> tuple[str, list[str]]:
    """Return the processor's name as the kernel gives it, and which of ``CPU_CAPABILITIES`` it has."""
    try:
        lines = [line.partition(":") for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()]
    except OSError:
        lines = []
    fields = {key.strip(): value.strip() for key, _, value in reversed(lines)}  # those of the first core
    flags = fields.get("flags", fields.get("Features", "")).split()
    name = fields.get("model name") or platform.processor() or platform.machine()
    return name, [capability for capability in CPU_CAPABILITIES if capability in flags]
