"""Probe: one configuration alone in a process: whether it runs, load, cold call, memory by phase, proof of the kernel.

Phases: load, decode (the whole workload), prefill (a generate of one token). On CUDA the peaks are the allocator's; on
the CPU they are the growth of the process's peak RSS over the state before loading, one reading of a process.
"""

from __future__ import annotations

import os
import resource
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from llmstudy import runtimes
from llmstudy.measure import footprint
from llmstudy.measure.calls import prove_attention, timed_call
from llmstudy.measure.device import proc_bytes, read_nvml
from llmstudy.measure.session import Session, log
from llmstudy.measure.text import prompt_batch
from llmstudy.runner.job import Workload


@dataclass(frozen=True)
class Settings:
    """The workloads that are tried."""

    workloads: tuple[Workload, ...]


def measure(session: Session) -> dict:
    """Return ``{"load_s", "load", "weights", "quantized_share", "workloads": [{"workload", "status", "reason",
    "compile_s", "cold_ms", "decode", "prefill", "kv_cache_bytes", "kv_cache_measured_prefill_bytes",
    "attention_kernels"}]}``; sizes in bytes; ``load``, ``decode`` and ``prefill`` are readings of ``PeakProbe``."""
    settings = session.settings_as(Settings)
    session.weights.tokenizer  # noqa: B018 - some 50 MB that are not the model's
    session.free()
    probe = PeakProbe(session.device)
    model, load_s = session.load_model()
    results: dict = {
        "load_s": load_s,
        "load": probe.reading(),
        "weights": footprint.weight_bytes(model),
        "quantized_share": footprint.quantized_share(model),
        "workloads": [],
    }
    log(f"loaded in {load_s:.1f} s")
    session.save(results)
    for workload in settings.workloads:
        # A workload that runs out of memory locates the limit; the others still count.
        with session.case(results, "workloads", workload=asdict(workload)) as entry:
            entry |= measure_workload(session, model, workload, probe)
    return results


def measure_workload(session: Session, model, workload: Workload, probe: PeakProbe) -> dict:
    """Return the cold call, peaks of decode and prefill, the KV cache by formula and, of the library's, from its
    tensors, and the attention kernels that ran."""
    input_ids = prompt_batch(session, workload.batch, workload.prompt_tokens)
    session.free()
    probe.reset()
    with session.runtime(model, workload) as runtime:
        compile_s = runtime.prepare().compile_s
        cold = timed_call(runtime, input_ids, workload)
        entry: dict = {"compile_s": compile_s, "cold_ms": cold["e2e_ms"], "decode": probe.reading()}
    entry["prefill"] = peaks_of_generation(session, model, input_ids, 1, probe)
    tokens = workload.prompt_tokens + workload.new_tokens
    facts = runtimes.facts(session.job.identity.runtime)
    entry["kv_cache_bytes"] = int(workload.batch * footprint.kv_bytes(model, tokens, facts.whole_cache))
    session.free()
    if not facts.own_cache:  # else the runtime's has the formula's size
        entry["kv_cache_measured_prefill_bytes"] = measured_kv_bytes(session, model, input_ids)
    session.free()
    return entry | {"attention_kernels": prove_attention(session, model, workload, input_ids)}


def peaks_of_generation(session: Session, model, input_ids: torch.Tensor, new_tokens: int, probe: PeakProbe) -> dict:
    """Return the peaks while ``new_tokens`` follow ``input_ids`` [batch, prompt tokens], the preparation of the runtime
    included."""
    session.free()
    probe.reset()
    with session.runtime(model, Workload(*input_ids.shape, new_tokens)) as runtime:
        runtime.prepare()
        runtime.generate(input_ids)
        return probe.reading()  # before the runtime frees memory, or the driver's figure is not of this phase


def measured_kv_bytes(session: Session, model, input_ids: torch.Tensor) -> int:
    """Return the bytes of the tensors in the library's KV cache after a prefill of ``input_ids``."""
    with torch.inference_mode(), session.attention_forced():
        cache = model(input_ids, use_cache=True, logits_to_keep=1).past_key_values
    return sum(tensor.untyped_storage().nbytes() for layer in cache.layers for tensor in (layer.keys, layer.values))


class PeakProbe:
    """Peaks since the last ``reset``: the device allocator's, the driver's, and the host process's RSS, bytes."""

    def __init__(self, device: str):
        self.device = device
        self.reset()
        self.baseline_rss = _status_bytes("VmRSS")

    def reset(self) -> None:
        """Begin a phase."""
        if self.device == "cuda":
            for index in range(torch.cuda.device_count()):
                torch.cuda.reset_peak_memory_stats(index)
        with suppress(OSError):  # if it fails, the host's peak is the highest so far
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # sets VmHWM to the present RSS

    def reading(self) -> dict:
        """Return the phase's ``peak_rss_bytes``, ``peak_rss_growth_bytes``, and on CUDA ``peak_allocated_bytes``,
        ``peak_reserved_bytes`` and ``driver_bytes`` (None without NVML)."""
        reading = {
            "peak_rss_bytes": _status_bytes("VmHWM"),
            "peak_rss_growth_bytes": max(0, _status_bytes("VmHWM") - self.baseline_rss),
        }
        if self.device == "cuda":
            torch.cuda.synchronize()
            devices = range(torch.cuda.device_count())
            reading["peak_allocated_bytes"] = sum(torch.cuda.max_memory_allocated(index) for index in devices)
            reading["peak_reserved_bytes"] = sum(torch.cuda.max_memory_reserved(index) for index in devices)
            driver = [size for size in read_nvml(process_bytes) if size is not None]
            reading["driver_bytes"] = sum(driver) if driver else None
        return reading


def process_bytes(nvml, gpu) -> int | None:
    """Return the device memory of this process as NVIDIA's driver counts it, CUDA context included; None if unknown."""
    processes = nvml.nvmlDeviceGetComputeRunningProcesses(gpu)
    return next((process.usedGpuMemory for process in processes if process.pid == os.getpid()), None)


def _status_bytes(field: str) -> int:
    """Return a field of this process's status, bytes; the peak RSS from getrusage where there is no /proc."""
    return proc_bytes("self/status", field) or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
