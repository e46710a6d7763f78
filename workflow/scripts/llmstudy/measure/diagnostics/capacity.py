"""The frontier of a GPU at one context: run a batch that fits by the memory model, and one that does not.

The model is fitted to the probe of the same configuration. A batch a little below the predicted largest and one
a little above it are run, a prefill and one decode step each. If the prediction misses, a few more runs search for the
frontier. The allocator's segments may grow here (the job's ``allocator``): what its default loses to fragments depends
on the order of allocations, not on their sum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, floor
from pathlib import Path

import torch

from llmstudy.errors import Unsupported, is_out_of_memory
from llmstudy.measure.probe import PeakProbe, peaks_of_generation
from llmstudy.measure.session import Session, log
from llmstudy.measure.text import prompt_batch
from llmstudy.runner import record as records
from llmstudy.runner.failures import classify
from llmstudy.stats.capacity import MemoryModel, Usage, fit_memory

GIB = 2**30
NEW_TOKENS = 2  # one of the prefill, one of a decode step
# Shares of the predicted batch: the model predicts what is allocated, and the allocator holds a little more (its
# pages, and the code of kernels that are first loaded by the run).
BELOW, ABOVE = 0.97, 1.05
FURTHER_RUNS = 3  # after a prediction that missed


@dataclass(frozen=True)
class Settings:
    """Contexts, prompt plus new tokens, of which the longest that the model takes is run; size of the device to verify,
    None for the present one; and path of the probe's record, which the prediction is fitted to."""

    contexts: tuple[int, ...]
    device_gib: float | None
    probe: str


def measure(session: Session) -> dict:
    """Return ``{"context_tokens", "usable_gib", "largest_batch", "below", "above", "runs": [{"batch", "status",
    "reason", and peaks in bytes where it fits}]}``; saved after every run.

    Out of memory is a result; any other failure ends the record with its status.
    """
    settings = session.settings_as(Settings)
    context = longest_context(settings.contexts, session.weights.context)
    results: dict = {"context_tokens": context, "runs": []}
    session.save(results)
    require_one_gpu(session.device)
    memory = memory_model(Path(settings.probe))
    limit_device(settings.device_gib)
    probe = PeakProbe(session.device)
    model, _ = session.load_model()
    session.free()
    results["usable_gib"] = usable_gib(settings.device_gib)
    results["largest_batch"] = memory.largest_batch(context, results["usable_gib"])
    results["below"], results["above"] = around(results["largest_batch"])
    session.save(results)
    log(f"predicted for {results['usable_gib']:.2f} GiB and {context} tokens: batch {results['largest_batch']}")
    # Memory does not depend on the text, and no corpus has as many documents as a large batch has rows.
    row = prompt_batch(session, 1, context - NEW_TOKENS)

    def fits(batch: int) -> bool:
        entry = {"batch": batch}
        try:
            peaks = peaks_of_generation(session, model, row.repeat(batch, 1), NEW_TOKENS, probe)
            entry |= {"status": "ok", "reason": ""} | peaks
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            entry |= dict(zip(("status", "reason"), classify(error)))
        log(f"batch {batch}: {entry['status']} {entry['reason']}")
        results["runs"].append(entry)
        session.save(results)
        session.free()
        return entry["status"] == "ok"

    locate(fits, results["largest_batch"])
    return results


def longest_context(contexts: tuple[int, ...], limit: int) -> int:
    """Return the longest of the contexts that a model with a context of ``limit`` tokens takes. Raise Unsupported if
    there is none."""
    taken = [context for context in contexts if NEW_TOKENS < context <= limit]
    if not taken:
        raise Unsupported(
            f"diagnostics.capacity.contexts: none of {list(contexts)} suits the model; allowed: {NEW_TOKENS + 1} to "
            f"its context of {limit}"
        )
    return max(taken)


def require_one_gpu(device: str) -> None:
    """Raise Unsupported if running out of memory would harm others, or would not tell which device was full."""
    if device != "cuda":
        raise Unsupported(
            f"device {device!r}: the largest batch is verified on CUDA alone; a host without memory takes all its "
            "processes down"
        )
    if torch.cuda.device_count() > 1:
        raise Unsupported(
            f"the model does not fit one GPU and has {torch.cuda.device_count()}: the frontier of one is verified"
        )


def memory_model(record: Path) -> MemoryModel:
    """Return the memory model fitted to a probe of a GPU. Raise Unsupported if too few of its workloads were
    measured."""
    results = records.read(record)["results"]
    measured = [entry for entry in results.get("workloads", []) if entry["status"] == "ok"]
    weights = sum(sum(sizes.values()) for sizes in results.get("weights", {}).values()) / GIB
    usages = [
        Usage(
            batch=entry["workload"]["batch"],
            context=entry["workload"]["prompt_tokens"] + entry["workload"]["new_tokens"],
            weights=weights,
            kv_cache=entry["kv_cache_bytes"] / GIB,
            peak=max(entry[phase]["peak_allocated_bytes"] for phase in ("prefill", "decode")) / GIB,
        )
        for entry in measured
    ]
    try:
        return fit_memory(usages, results["load"]["peak_allocated_bytes"] / GIB if usages else 0.0)
    except ValueError as error:
        raise Unsupported(f"no prediction to verify: {error}") from error


def limit_device(device_gib: float | None) -> None:
    """Limit this process to the memory of a device of ``device_gib``, so that a smaller one than the present can be
    verified. Raise Unsupported if the present device is smaller."""
    if device_gib is None:
        return
    _, total = torch.cuda.mem_get_info()
    if device_gib * GIB > total:
        raise Unsupported(
            f"diagnostics.capacity.device_gib: {device_gib:g} GiB; allowed: up to this GPU's {total / GIB:.1f}"
        )
    torch.cuda.set_per_process_memory_fraction(device_gib * GIB / total)


def usable_gib(device_gib: float | None) -> float:
    """Return what PyTorch's allocator can hold on this device at most, GiB: what it has reserved and what is free.

    The device's size on paper also counts what ECC, the CUDA context, loaded kernels and other processes hold, half a
    GiB and more, so a batch that fits it on paper may not run. Call this after the model is loaded, when context and
    libraries are there.
    """
    free, _ = torch.cuda.mem_get_info()
    usable = (free + torch.cuda.memory_reserved()) / GIB
    return usable if device_gib is None else min(usable, device_gib)


def around(largest: int) -> tuple[int, int]:
    """Return the batches just below and just above a predicted frontier; 0 below if not even 1 is predicted to fit."""
    return min(largest, max(1, floor(BELOW * largest))), max(largest + 1, ceil(ABOVE * largest))


def locate(fits: Callable[[int], bool], largest: int) -> tuple[int, int | None]:
    """Return (largest batch known to fit, smallest known not to or None if all fitted) after few calls of ``fits``.

    Two if the prediction holds; if the batch below it does not fit, the one above is not run. After a miss the steps
    away from the prediction double until the frontier lies between two batches, which then approach each other.
    """
    below, above = around(largest)
    low, high = below, None
    if below and not fits(below):
        low, high = 0, below
    elif fits(above):
        low = above
    else:
        return below, above
    step = above - below
    for _ in range(FURTHER_RUNS):
        if high is None:
            batch, step = low + step, 2 * step
        elif high - low == 1:
            break
        elif low == 0:
            batch, step = max(1, high - step), 2 * step
        else:
            batch = (low + high) // 2
        if fits(batch):
            low = batch
        else:
            high = batch
    return low, high
