"""capacity.csv: the largest batch that fits the device at each context, predicted by the fitted memory model.

``largest_batch`` has the predicted peak ``fits_gib``, ``first_too_large`` has ``too_large_gib``. ``largest_ok`` and
``smallest_oom`` are what memory.csv has at that context, empty where none was tried. ``residual_gib`` is the largest
error of the fit on its ``fitted_rows``. A configuration without a memory model says why in status and reason.

Where the frontier was verified, ``usable_gib`` is what the verifying process could take of ``device_gib``, and the
prediction is for that; at the verified context ``verified_fits`` is the largest batch that ran, ``verified_oom`` the
smallest that ran out of memory, and ``prediction`` is ``held`` or ``missed``, or the status of a verification that
failed, with its ``prediction_reason``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from llmstudy.stats.capacity import MemoryModel, Usage, fit_memory
from llmstudy.tables import Sources
from llmstudy.tables.columns import CONFIGURATION, IDENTITY, SHARED, columns
from llmstudy.tables.memory import PEAKS, peak_gib, peaks_that_count

COLUMNS = {
    "capacity": [
        *SHARED,
        *columns("device_gib usable_gib"),
        *columns("context_tokens largest_batch", "count"),
        *columns("fits_gib"),
        *columns("first_too_large", "count"),
        *columns("too_large_gib"),
        *columns("largest_ok smallest_oom verified_fits verified_oom", "count"),
        *columns("prediction prediction_reason", "text"),
        *columns("residual_gib"),
        *columns("fitted_rows", "count"),
    ]
}


def capacity(sources: Sources) -> list[dict]:
    """Predict the frontier of every configuration in memory.csv, for the configured device or the measured one."""
    settings = sources.study["capacity"]
    device_gib = settings["device_gib"]
    if device_gib is None:
        sizes = (device_memory_gib(record["provenance"]) for record in sources.of_kind("memory"))
        device_gib = min(sizes, default=0.0)
    verified = sources.of_kind("capacity")
    return rows_of(sources.tables["memory"], settings["contexts"], device_gib, verified)


def device_memory_gib(provenance: dict) -> float:
    """Return the memory of the device that a record's provenance names: a GPU, else the host; infinite if unknown."""
    return provenance.get("gpu", {}).get("memory_gib") or provenance.get("host_memory_gib") or math.inf


def rows_of(memory: pd.DataFrame, contexts: list[int], device_gib: float, verified: Sequence[dict] = ()) -> list[dict]:
    """Return a row per configuration and context, or one per configuration that says why nothing was predicted.

    Args:
        memory: The table.
        contexts: Prompt plus new tokens.
        device_gib: Memory of the device.
        verified: Capacity records.
    """
    verifications = {tuple(record["identity"][column] for column in CONFIGURATION): record for record in verified}
    rows = []
    for key, measured in memory.groupby(CONFIGURATION, sort=False):
        record = verifications.get(key)
        usable_gib = record["results"].get("usable_gib") if record else None
        shared = measured.iloc[0][IDENTITY].to_dict() | {"device_gib": device_gib, "usable_gib": usable_gib}
        try:
            model = fit(measured)
        except ValueError as error:
            rows.append(shared | unpredicted(measured, error))
            continue
        shared |= {"status": "ok", "reason": "", "residual_gib": model.residual, "fitted_rows": model.rows}
        for context in contexts:
            row = shared | frontier(model, context, usable_gib or device_gib) | tried(measured, context)
            if record and context == verified_context(record):
                row |= verification(record)
            rows.append(row)
    return rows


def fit(memory: pd.DataFrame) -> MemoryModel:
    """Fit the memory model to the rows of one configuration that have status ok and a peak."""
    peaks = peak_gib(memory, PEAKS[1:])
    measured = memory[(memory["status"] == "ok") & peaks.notna()]
    accounted = measured.reindex(columns=["weights_gib", "kv_cache_gib"]).astype(float).fillna(0.0)
    usages = [
        Usage(row.batch, row.prompt_tokens + row.new_tokens, weights, kv_cache, peaks[row.Index])
        for row, weights, kv_cache in zip(measured.itertuples(), *(accounted[name] for name in accounted))
    ]
    load = peaks_that_count(measured, PEAKS[:1]).max().fillna(0.0).iloc[0]
    return fit_memory(usages, float(load))


def unpredicted(measured: pd.DataFrame, error: ValueError) -> dict:
    """Return why a configuration has no memory model: its measurements failed, or there are too few."""
    failed = measured[measured["status"] != "ok"]
    if len(failed) == len(measured):
        return failed.iloc[0][["status", "reason"]].to_dict()
    return {"status": "unsupported", "reason": f"memory.csv: {error}"}


def frontier(model: MemoryModel, context: int, device_gib: float) -> dict:
    """Return the largest batch of ``context`` tokens that fits and the first that does not, with their peaks."""
    batch = model.largest_batch(context, device_gib)
    return {
        "context_tokens": context,
        "largest_batch": batch,
        "fits_gib": model.peak_gib(batch, context) if batch else None,
        "first_too_large": batch + 1,
        "too_large_gib": model.peak_gib(batch + 1, context),
    }


def tried(measured: pd.DataFrame, context: int) -> dict:
    """Return the largest batch of ``context`` tokens that ran and the smallest that ran out of memory."""
    here = measured[measured["prompt_tokens"] + measured["new_tokens"] == context]
    return {
        "largest_ok": here.loc[here["status"] == "ok", "batch"].max(),
        "smallest_oom": here.loc[here["status"] == "oom", "batch"].min(),
    }


def verified_context(record: dict) -> int:
    """Return the context of a capacity record; the longest of its settings where it failed before it chose one."""
    return record["results"].get("context_tokens", max(record["settings"]["contexts"]))


def verification(record: dict) -> dict:
    """Return the columns of a capacity record. The prediction held if the batch below it fits and the one above it
    does not."""
    results = record["results"]
    status = {run["batch"]: run["status"] for run in results.get("runs", [])}
    too_large = min((batch for batch in status if status[batch] == "oom"), default=None)
    fits = max((batch for batch in status if status[batch] == "ok"), default=0 if too_large == 1 else None)
    columns = {"verified_fits": fits, "verified_oom": too_large}
    if record["status"] != "ok":
        return columns | {"prediction": record["status"], "prediction_reason": record["reason"]}
    held = status.get(results["below"], "ok") == "ok" and status.get(results["above"]) == "oom"
    return columns | {"prediction": "held" if held else "missed"}
