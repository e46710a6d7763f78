"""The origin of a record: code, versions, hardware. No hostnames, users or tokens."""

from __future__ import annotations

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
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
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
