"""capacity.csv: the largest batch that fits a GPU at each context, predicted by the fitted memory model.

``largest_batch`` has the predicted peak ``fits_gib``, ``first_too_large`` has ``too_large_gib``. ``largest_ok`` and
``smallest_oom`` are what probes.csv has at that context, empty where none was tried. ``residual_gib`` is the largest
error of the fit on its ``fitted_rows``. A configuration without a memory model says why in status and reason.

Where the frontier was verified, ``usable_gib`` is what the verifying process could take of ``device_gib``, and the
prediction is for that; at the verified context ``verified_fits`` is the largest batch that ran, ``verified_oom`` the
smallest that ran out of memory, and ``prediction`` is ``held`` or ``missed``, or the status of a verification that
failed, with its ``prediction_reason``.
"""

from __future__ import annotations

import math

import pandas as pd

from llmstudy.stats.capacity import MemoryModel, Usage, fit_memory
from llmstudy.tables import Sources
from llmstudy.tables.columns import CONFIGURATION, IDENTITY, SHARED, columns
from llmstudy.tables.probes import PEAKS

COLUMNS = {
    "capacity": columns(
        "device_gib usable_gib context_tokens:count largest_batch:count fits_gib first_too_large:count too_large_gib "
        "largest_ok:count smallest_oom:count verified_fits:count verified_oom:count prediction:text "
        "prediction_reason:text residual_gib fitted_rows:count",
        SHARED,
    )
}


def capacity(sources: Sources) -> list[dict]:
    """Predict the frontier of every configuration that probes.csv has of a GPU, for the configured device or the
    measured one: a row per configuration and context, or one per configuration that says why nothing was predicted.

    None on a CPU: the peak of a process is one reading of chance there, and nothing can be predicted from it.
    """
    settings = sources.study["capacity"]
    device_gib = settings["device_gib"]
    if device_gib is None:
        sizes = (device_memory_gib(record["provenance"]) for record in sources.of_kind("probe"))
        device_gib = min(sizes, default=0.0)
    verified = {
        tuple(record["identity"][key] for key in CONFIGURATION): record for record in sources.of_kind("capacity")
    }
    rows = []
    probes = sources.tables["probes"]
    for key, measured in probes[probes["device"] == "cuda"].groupby(CONFIGURATION, sort=False):
        record = verified.get(key)
        usable_gib = record["results"].get("usable_gib") if record else None
        shared = measured.iloc[0][IDENTITY].to_dict() | {"device_gib": device_gib, "usable_gib": usable_gib}
        try:
            model = fit(measured)
        except ValueError as error:
            row = {"status": "unsupported", "reason": f"probes.csv: {error}"}
            if (measured["status"] != "ok").all():
                row = measured.iloc[0][["status", "reason"]].to_dict()
            rows.append(shared | row)
            continue
        shared |= {"status": "ok", "reason": "", "residual_gib": model.residual, "fitted_rows": model.rows}
        for context in settings["contexts"]:
            batch = model.largest_batch(context, usable_gib or device_gib)
            tried = measured[measured["prompt_tokens"] + measured["new_tokens"] == context].groupby("status")["batch"]
            row = shared | {"context_tokens": context, "largest_batch": batch, "first_too_large": batch + 1}
            row["fits_gib"] = model.peak_gib(batch, context) if batch else None
            row["too_large_gib"] = model.peak_gib(batch + 1, context)
            row |= {"largest_ok": tried.max().get("ok"), "smallest_oom": tried.min().get("oom")}
            # a verification that failed before it chose a context was to choose the longest
            if record and context == record["results"].get("context_tokens", max(record["settings"]["contexts"])):
                row |= verification(record)
            rows.append(row)
    return rows


def device_memory_gib(provenance: dict) -> float:
    """Return the memory of the device that a record's provenance names: a GPU, else the host; infinite if unknown."""
    return provenance.get("gpu", {}).get("memory_gib") or provenance.get("host_memory_gib") or math.inf


def fit(probes: pd.DataFrame) -> MemoryModel:
    """Fit the memory model to the rows of one configuration that have status ok."""
    measured = probes[probes["status"] == "ok"]
    contexts = measured["prompt_tokens"] + measured["new_tokens"]
    sizes = measured[["weights_gib", "kv_cache_gib"]].astype(float).fillna(0.0)
    sizes["peak"] = measured[list(PEAKS[1:])].astype(float).max(axis=1)
    usages = [Usage(*row) for row in zip(measured["batch"], contexts, *(sizes[name] for name in sizes))]
    return fit_memory(usages, float(measured[PEAKS[0]].astype(float).max()))


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
