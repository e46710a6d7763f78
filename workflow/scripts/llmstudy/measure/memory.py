"""Memory: weights by component and dtype, KV cache by formula and measured, peaks by phase, host RSS.

Phases: load, prefill (a generate of one token), decode (the whole workload). On CUDA the peaks are the allocator's; on
the CPU they are the growth of the process's peak RSS over the state before loading.
"""

from __future__ import annotations

import os
from contextlib import suppress
from functools import partial
from pathlib import Path

from llmstudy import runtimes
from llmstudy.measure import footprint, gpu
from llmstudy.measure.prompts import prompt_batch
from llmstudy.measure.session import Session


def measure(session: Session) -> dict:
    """``{"weights", "load", "workloads": [...]}``, bytes everywhere; saved after every workload."""
    probe = PeakProbe(session.device)
    model, _ = session.load_model()
    results: dict = {
        "load": probe.reading(),
        "weights": footprint.weight_bytes(model),
        "kv_bytes_per_token": footprint.kv_bytes_per_token(model.config, model.dtype),
        "workloads": [],
    }
    session.save(results)
    for workload in session.settings["workloads"]:
        # An out-of-memory workload locates the limit; the others still count.
        measured = partial(measure_workload, session, model, workload, probe)
        session.piece(results, "workloads", {"workload": workload}, measured)
    return results


def measure_workload(session: Session, model, workload: dict, probe: PeakProbe) -> dict:
    """Peaks of prefill and decode, and the KV cache by formula and, of the library's own, from its tensors."""
    input_ids = prompt_batch(session, workload["batch"], workload["prompt_tokens"])
    found: dict = {}
    for phase, new_tokens in (("prefill", 1), ("decode", workload["new_tokens"])):
        found[phase] = peaks_of_generation(session, model, input_ids, new_tokens, probe)
    tokens = workload["prompt_tokens"] + workload["new_tokens"]
    found["kv_cache_bytes"] = footprint.kv_bytes_per_token(model.config, model.dtype) * workload["batch"] * tokens
    session.free()
    if (
        session.job["identity"]["runtime"] == "generate"
    ):  # another runtime has a cache of its own, by the formula's size
        found["kv_cache_measured_prefill_bytes"] = measured_kv_bytes(session, model, input_ids)
    return found


def peaks_of_generation(session: Session, model, input_ids, new_tokens: int, probe: PeakProbe) -> dict:
    """Peaks while ``new_tokens`` follow ``input_ids`` [batch, prompt tokens], what the runtime prepares included."""
    session.free()
    probe.reset()
    runtime = runtimes.get(session.job["identity"]["runtime"])(model, *input_ids.shape, new_tokens)
    try:
        with session.attention_forced():
            runtime.prepare()
            runtime.generate(input_ids)
        return probe.reading()  # before the runtime gives memory back, or the driver's figure is not of this phase
    finally:
        runtime.close()


def measured_kv_bytes(session: Session, model, input_ids) -> int:
    """Bytes of the tensors in the library's KV cache after a prefill of ``input_ids``."""
    import torch

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
        """Start a phase."""
        if self.device == "cuda":
            import torch

            for index in range(torch.cuda.device_count()):
                torch.cuda.reset_peak_memory_stats(index)
        with suppress(OSError):  # without it the host's peak is the highest so far
            Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back to the present RSS

    def reading(self) -> dict:
        """What the phase took."""
        found = {
            "peak_rss_bytes": _status_bytes("VmHWM"),
            "peak_rss_growth_bytes": max(0, _status_bytes("VmHWM") - self.baseline_rss),
        }
        if self.device == "cuda":
            import torch

            torch.cuda.synchronize()
            devices = range(torch.cuda.device_count())
            found["peak_allocated_bytes"] = sum(torch.cuda.max_memory_allocated(index) for index in devices)
            found["peak_reserved_bytes"] = sum(torch.cuda.max_memory_reserved(index) for index in devices)
            with gpu.handle() as nvml:
                driver = nvml.process_memory_gib(os.getpid()) if nvml else None
            found["driver_bytes"] = None if driver is None else int(driver * 2**30)
        return found


def _status_bytes(field: str) -> int:
    """A field of /proc/self/status, bytes; peak RSS from getrusage where there is no /proc."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
