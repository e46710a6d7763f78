"""The frontier of a GPU at one context: the batch that the memory model says fits, and one that it says does not, run.

The model is fitted to the memory record of the same configuration. A batch a little below the predicted one and a batch
a little above it are run, a prefill and one decode step each. Where the prediction misses, a few runs more look for the
frontier. The allocator's segments may grow here (the job's ``allocator``): what its default loses to fragments depends
on the order of allocations, not on their sum.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, floor
from pathlib import Path

from llmstudy.errors import Unsupported
from llmstudy.measure.memory import PeakProbe, peaks_of_generation
from llmstudy.measure.prompts import prompt_batch
from llmstudy.measure.session import Session, log
from llmstudy.runner import record as records
from llmstudy.runner.failures import classify, is_out_of_memory
from llmstudy.stats.capacity import MemoryModel, Usage, fit_memory

GIB = 2**30
NEW_TOKENS = 2  # one of the prefill, one of a decode step
# Shares of the predicted batch: the model predicts what is allocated, and the allocator holds a little more (its
# pages, and the code of kernels that are first loaded by the run).
BELOW, ABOVE = 0.97, 1.05
FURTHER_RUNS = 3  # after a prediction that missed


def measure(session: Session) -> dict:
    """``{"context_tokens", "usable_gib", "largest_batch", "below", "above", "runs": [{"batch", "status", "reason"} and
    peaks in bytes where it fits]}``; saved after every run. Out of memory is a finding; any other failure ends the
    record with its status."""
    context = longest_context(session)
    results: dict = {"context_tokens": context, "runs": []}
    session.save(results)
    require_one_gpu(session.device)
    memory = memory_model(Path(session.settings["memory_record"]))
    limit_device(session.settings["device_gib"])
    probe = PeakProbe(session.device)
    model, _ = session.load_model()
    session.free()
    results["usable_gib"] = usable_gib(session.settings["device_gib"])
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


def longest_context(session: Session) -> int:
    """The longest of the job's contexts that the model takes; raises Unsupported if there is none."""
    asked = session.settings["contexts"]
    taken = [context for context in asked if NEW_TOKENS < context <= session.weights.context]
    if not taken:
        raise Unsupported(
            f"extras.capacity.contexts: none of {asked} suits the model; allowed: {NEW_TOKENS + 1} to its context of "
            f"{session.weights.context}"
        )
    return max(taken)


def require_one_gpu(device: str) -> None:
    """Raise Unsupported where running out of memory would harm others, or does not say which device was full."""
    import torch

    if device != "cuda":
        raise Unsupported(
            f"device {device!r}: the largest batch is verified on CUDA alone; without memory left a host takes all its "
            "processes down"
        )
    if torch.cuda.device_count() > 1:
        raise Unsupported(
            f"{torch.cuda.device_count()} GPUs are visible: the frontier of one is verified; allowed: one, by "
            "CUDA_VISIBLE_DEVICES"
        )


def memory_model(record: Path) -> MemoryModel:
    """Fit the model to a memory record of a GPU; raise Unsupported where too few of its workloads were measured."""
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
    """Let this process take no more than a device of ``device_gib`` has, so that a smaller one than the present can be
    verified; None takes the present one as it is."""
    import torch

    if device_gib is None:
        return
    _, total = torch.cuda.mem_get_info()
    if device_gib * GIB > total:
        raise Unsupported(
            f"extras.capacity.device_gib: {device_gib:g} GiB; allowed: up to this GPU's {total / GIB:.1f}"
        )
    torch.cuda.set_per_process_memory_fraction(device_gib * GIB / total)


def usable_gib(device_gib: float | None) -> float:
    """What PyTorch's allocator can hold on this device at most, GiB: what it has reserved and what is free.

    The device's size on paper also counts what ECC, the CUDA context, loaded kernels and other processes hold, half a
    GiB and more, so a batch that fits it on paper may not run. To be asked after the model is loaded, when context and
    libraries are there.
    """
    import torch

    free, _ = torch.cuda.mem_get_info()
    usable = (free + torch.cuda.memory_reserved()) / GIB
    return usable if device_gib is None else min(usable, device_gib)


def around(largest: int) -> tuple[int, int]:
    """The batches just below and just above a predicted frontier; 0 below where not even one is said to fit."""
    return min(largest, max(1, floor(BELOW * largest))), max(largest + 1, ceil(ABOVE * largest))


def locate(fits: Callable[[int], bool], largest: int) -> tuple[int, int | None]:
    """(largest batch known to fit, smallest known not to or None if all fitted), by few calls of ``fits``.

    Two where the prediction holds; one that does not fit below it makes the one above needless. After a miss the steps
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
