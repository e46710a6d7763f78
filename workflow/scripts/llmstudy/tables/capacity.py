"""capacity.csv: the largest batch that fits the device at each context, predicted by the fitted memory model.

``largest_batch`` with its predicted peak ``fits_gib``, and ``first_too_large`` with ``too_large_gib``; ``largest_ok``
and ``smallest_oom`` are what memory.csv really saw at that context, empty where none was tried. ``residual_gib`` is the
largest error of the fit on its ``fitted_rows``. A configuration that has no memory model says why in status and reason.

Where the frontier was verified, ``usable_gib`` is what the verifying process could take of ``device_gib``, and the
prediction is for that; at the verified context ``verified_fits`` is the largest batch that ran, ``verified_oom`` the
smallest that ran out of memory, and ``prediction`` is ``held`` or ``missed``, or the status of a verification that
failed, with its ``prediction_reason``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from llmstudy.errors import StudyError
from llmstudy.runner.provenance import device_memory_gib
from llmstudy.stats.capacity import capacity_table, fit_memory, measured_frontier
from llmstudy.tables.columns import CONFIGURATION, IDENTITY, SHARED
from llmstudy.tables.common import read_records, read_table, write_table

PREDICTED = ["context_tokens", "largest_batch", "fits_gib", "first_too_large", "too_large_gib"]
FITTED = ["residual_gib", "fitted_rows"]
VERIFIED = ["verified_fits", "verified_oom", "prediction", "prediction_reason"]
COLUMNS = [*SHARED, "device_gib", "usable_gib", *PREDICTED, "largest_ok", "smallest_oom", *VERIFIED, *FITTED]


def write(
    memory: Path,
    records: list[str],
    verified: list[str],
    contexts: list[int],
    device_gib: float | None,
    output: Path,
) -> None:
    """Predict the frontier of every configuration.

    memory      the study's memory.csv
    records     its memory records, which know the device's size
    verified    its capacity records
    contexts    prompt plus new tokens
    device_gib  memory of the device; None takes the measured one's
    """
    if device_gib is None:
        device_gib = min((device_memory_gib(one["provenance"]) for one in read_records(records)), default=0.0)
    write_table(rows_of(read_table(memory), contexts, device_gib, read_records(verified)), COLUMNS, output)


def rows_of(memory: pd.DataFrame, contexts: list[int], device_gib: float, verified: Sequence[dict] = ()) -> list[dict]:
    """A row per configuration and context, or one per configuration that says why nothing could be predicted."""
    verifications = {tuple(record["identity"][column] for column in CONFIGURATION): record for record in verified}
    rows = []
    for key, own in memory.groupby(CONFIGURATION, sort=False):
        record = verifications.get(key)
        usable_gib = record["results"].get("usable_gib") if record else None
        shared = own.iloc[0][IDENTITY].to_dict() | {"device_gib": device_gib, "usable_gib": usable_gib}
        try:
            predicted = capacity_table(fit_memory(own), contexts, usable_gib or device_gib)
        except StudyError as error:
            rows.append(shared | unpredicted(own, error))
            continue
        shared |= {"status": "ok", "reason": ""}
        for row in predicted.merge(measured_frontier(own), on="context_tokens", how="left").to_dict("records"):
            found = verification(record) if record and row["context_tokens"] == verified_context(record) else {}
            rows.append(row | shared | found)
    return rows


def unpredicted(own: pd.DataFrame, error: StudyError) -> dict:
    """Why a configuration has no memory model: its measurements failed, or there are too few."""
    failed = own[own["status"] != "ok"]
    if len(failed) == len(own):
        return failed.iloc[0][["status", "reason"]].to_dict()
    return {"status": "unsupported", "reason": str(error)}


def verified_context(record: dict) -> int:
    """The context that a capacity record is about; the longest it was asked for where it did not come to choose."""
    return record["results"].get("context_tokens", max(record["settings"]["contexts"]))


def verification(record: dict) -> dict:
    """What the runs of a capacity record say of its prediction, which holds if the batch below it fits and the batch
    above it does not."""
    results = record["results"]
    status = {run["batch"]: run["status"] for run in results.get("runs", [])}
    too_large = min((batch for batch in status if status[batch] == "oom"), default=None)
    fits = max((batch for batch in status if status[batch] == "ok"), default=0 if too_large == 1 else None)
    found = {"verified_fits": fits, "verified_oom": too_large}
    if record["status"] != "ok":
        return found | {"prediction": record["status"], "prediction_reason": record["reason"]}
    held = status.get(results["below"], "ok") == "ok" and status.get(results["above"]) == "oom"
    return found | {"prediction": "held" if held else "missed"}
