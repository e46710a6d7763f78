"""summary.csv: each configuration at the headline workload and protocol of its model, judged against the reference.

``status`` is that of its speed; what else failed is in ``reason``. Times are those of speed.csv. ``memory_gib`` is the
highest peak of memory.csv, at the workload with the nearest number of new tokens where the headline's was not
measured; ``memory_ratio`` is against the reference precision with the same attention under runtime ``generate``.
Quality belongs to the precision: where it was measured with another attention or runtime, ``quality_from`` names those
("sdpa-math, generate"). The reference precision has a PPL ratio of 1. See ``verdict`` for the columns after ``flags``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import pandas as pd

from llmstudy.tables import Sources
from llmstudy.tables.columns import CONFIGURATION, IDENTITY, PROTOCOL, SHARED, WORKLOAD, Column, columns, pick
from llmstudy.tables.memory import nearest_workload, peak_gib
from llmstudy.tables.quality import COLUMNS as QUALITY
from llmstudy.tables.speed import COLUMNS as SPEED
from llmstudy.tables.speed import outcome
from llmstudy.tables.verdict import judge

RENAMED = {"repeats": "processes", "tpot_low_ms": "tpot_ms_low", "tpot_high_ms": "tpot_ms_high"}
OF_SPEED = ["repeats", "e2e_ms", "ttft_ms", "tpot_ms", "tpot_low_ms", "tpot_high_ms", "tpot_degrees", "tokens_per_s"]
OF_SPEED += ["mbu", "speedup", "speedup_low", "speedup_high", "speedup_p", "flags"]
TIMES = {name: RENAMED.get(name, name) for name in OF_SPEED}
OF_QUALITY = [
    *("ppl", "ppl_low", "ppl_high", "ppl_ratio", "ppl_ratio_low", "ppl_ratio_high", "ppl_ratio_p"),
    *("kl_nats", "kl_low_nats", "kl_high_nats", "top1_agreement", "top1_low", "top1_high"),
]
COLUMNS = {
    "summary": [
        *SHARED,
        *(replace(column, name=name) for name, source in TIMES.items() for column in pick(SPEED["speed"], source)),
        *columns("memory_gib weights_gib"),
        *columns("memory_ratio", "ratio"),
        *pick(QUALITY["quality"], " ".join(OF_QUALITY)),
        *columns("quality_from", "text"),
        Column("speedup_p_holm", "adjusted p of the speed-up", "p"),
        Column("ppl_ratio_p_holm", "adjusted p of the PPL ratio", "p"),
        *columns("pareto verdict verdict_reason", "text"),
    ]
}


def summary(sources: Sources) -> list[dict]:
    """Return a row for every configuration in speed.csv, by model in the order of the study."""
    study = sources.study
    rows = [row for model, headline in study["headline"].items() for row in rows_of(sources.tables, model, headline)]
    reference = {model: headline["reference"] for model, headline in study["headline"].items()}
    return judge(pd.DataFrame(rows), reference, study["smallest_effect_percent"]).to_dict("records")


def rows_of(tables: Mapping[str, pd.DataFrame], model: str, headline: Mapping) -> list[dict]:
    """Return the rows of one model without their verdict."""
    speed, memory, quality = (_where(tables[name], {"model": model}) for name in ("speed", "memory", "quality"))
    at_headline = _where(speed, {name: headline[name] for name in WORKLOAD})
    peaks = _where(memory, nearest_workload(memory, headline)).assign(memory_gib=peak_gib)
    quality = _where(quality, {name: headline[name] for name in PROTOCOL})
    rows = []
    for key, rows_of_configuration in speed.groupby(CONFIGURATION, sort=False):
        configuration = dict(zip(CONFIGURATION, key))
        base = configuration | {"precision": headline["reference"], "runtime": "generate"}
        own_speed, own_peaks = _where(at_headline, configuration), _where(peaks, configuration)
        own_quality = _where(quality, {"precision": configuration["precision"]})
        row = rows_of_configuration.iloc[0][IDENTITY].to_dict() | _outcome(own_speed, own_peaks, own_quality)
        row |= _times(own_speed) | _memory(_ok(own_peaks), _ok(_where(peaks, base)))
        row |= _quality(_ok(own_quality), configuration)
        if configuration["precision"] == base["precision"] and not math.isnan(row["ppl"]):
            row["ppl_ratio"] = 1.0
        rows.append(row)
    return rows


def _where(table: pd.DataFrame, values: Mapping) -> pd.DataFrame:
    same = pd.Series(True, index=table.index)
    for column, value in values.items():
        same &= table[column] == value
    return table[same]


def _ok(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["status"] == "ok"]


def _outcome(speed: pd.DataFrame, memory: pd.DataFrame, quality: pd.DataFrame) -> dict:
    if speed.empty:
        return {"status": "error", "reason": "this workload was not measured"}
    first = speed.iloc[0]
    if first["status"] != "ok":
        return {"status": first["status"], "reason": first["reason"]}
    notes = [first["reason"]] if first["reason"] else []
    for name, rows in (("memory", memory), ("quality", quality)):
        if len(rows) and (failed := outcome(rows))["status"] != "ok":
            notes.append(f"{name}: {failed['reason'] or failed['status']}")
    return {"status": "ok", "reason": "; ".join(notes)}


def _times(speed: pd.DataFrame) -> dict:
    if speed.empty:
        return dict.fromkeys(TIMES, math.nan) | {"repeats": 0, "flags": ""}
    return {name: speed.iloc[0][source] for name, source in TIMES.items()}


def _memory(measured: pd.DataFrame, reference: pd.DataFrame) -> dict:
    peak = measured["memory_gib"].max()
    return {
        "memory_gib": peak,
        "weights_gib": measured["weights_gib"].max(),
        "memory_ratio": peak / reference["memory_gib"].max(),
    }


def _quality(measured: pd.DataFrame, configuration: Mapping[str, str]) -> dict:
    """Return the quality of the configuration, else of the nearest one with the same precision."""
    if measured.empty:
        return dict.fromkeys(OF_QUALITY, math.nan) | {"quality_from": ""}
    same = (measured[column] == configuration[column] for column in ("attention", "runtime"))
    nearness = next(same) * 2 + next(same)
    row = measured.loc[nearness.idxmax()]
    elsewhere = "" if nearness.max() == 3 else f"{row['attention']}, {row['runtime']}"
    return {column: row.get(column, math.nan) for column in OF_QUALITY} | {"quality_from": elsewhere}
