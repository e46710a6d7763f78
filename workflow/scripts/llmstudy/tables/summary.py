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

import pandas as pd

from llmstudy.tables import Sources
from llmstudy.tables.columns import CONFIGURATION, IDENTITY, PROTOCOL, SHARED, WORKLOAD, columns, pick
from llmstudy.tables.memory import nearest_workload, peak_gib
from llmstudy.tables.quality import COLUMNS as QUALITY
from llmstudy.tables.speed import COLUMNS as SPEED
from llmstudy.tables.speed import ok, outcome
from llmstudy.tables.verdict import judge

TIMES: dict = {}
OF_QUALITY = [
    *("ppl", "ppl_low", "ppl_high", "ppl_ratio", "ppl_ratio_low", "ppl_ratio_high"),
    *("kl_nats", "kl_low_nats", "kl_high_nats", "top1_agreement", "top1_low", "top1_high"),
]
COLUMNS = {
    "summary": [
        *SHARED,
        *pick(
            SPEED["speed"],
            "processes ttft_ms tpot_ms tpot_ms_min tpot_ms_max e2e_ms tokens_per_s mbu against tpot_speedup "
            "tpot_speedup_low tpot_speedup_high tpot_verdict generate_speedup generate_speedup_low "
            "generate_speedup_high flags",
        ),
        *columns("memory_gib weights_gib memory_ratio:ratio memory_verdict:text peak_load_gib"),
        *pick(QUALITY["quality"], " ".join(OF_QUALITY[:6])),
        *columns("ppl_verdict:text"),
        *pick(QUALITY["quality"], " ".join(OF_QUALITY[6:])),
        *columns("quality_from:text pareto:text"),
    ]
}


def summary(sources: Sources) -> list[dict]:
    """Return a row for every configuration in speed.csv, by model in the order of the study."""
    rows, smallest = [], sources.study["smallest_effect_percent"]
    for model, headline in sources.study["headline"].items():
        tables = [_where(sources.tables[name], {"model": model}) for name in ("speed", "memory", "quality")]
        if found := rows_of(*tables, headline):
            rows += judge(pd.DataFrame(found), headline["reference"], smallest).to_dict("records")
    return rows


def rows_of(speed: pd.DataFrame, memory: pd.DataFrame, quality: pd.DataFrame, headline: Mapping) -> list[dict]:
    """Return the rows of one model without their verdict."""
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
        row |= dict.fromkeys(TIMES, math.nan) | {"repeats": 0, "flags": ""}
        if len(own_speed):
            row |= {name: own_speed.iloc[0][source] for name, source in TIMES.items()}
        row |= ok(own_peaks)[["memory_gib", "weights_gib"]].max().to_dict()
        row["memory_ratio"] = row["memory_gib"] / ok(_where(peaks, base))["memory_gib"].max()
        row |= _quality(ok(own_quality), configuration)
        if configuration["precision"] == base["precision"] and not math.isnan(row["ppl"]):
            row["ppl_ratio"] = 1.0
        rows.append(row)
    return rows


def _where(table: pd.DataFrame, values: Mapping) -> pd.DataFrame:
    return table[(table[list(values)] == list(values.values())).all(axis=1)]


def _outcome(speed: pd.DataFrame, memory: pd.DataFrame, quality: pd.DataFrame) -> dict:
    if speed.empty:
        return {"status": "error", "reason": "this workload was not measured"}
    first = speed.iloc[0][["status", "reason"]].to_dict()
    if first["status"] != "ok":
        return first
    notes = [first["reason"]] if first["reason"] else []
    for name, rows in (("memory", memory), ("quality", quality)):
        if len(rows) and (failed := outcome(rows))["status"] != "ok":
            notes.append(f"{name}: {failed['reason'] or failed['status']}")
    return {"status": "ok", "reason": "; ".join(notes)}


def _quality(measured: pd.DataFrame, configuration: Mapping[str, str]) -> dict:
    """Return the quality of the configuration, else of the nearest one with the same precision."""
    if measured.empty:
        return dict.fromkeys(OF_QUALITY, math.nan) | {"quality_from": ""}
    same = (measured[column] == configuration[column] for column in ("attention", "runtime"))
    nearness = next(same) * 2 + next(same)
    row = measured.loc[nearness.idxmax()]
    elsewhere = "" if nearness.max() == 3 else f"{row['attention']}, {row['runtime']}"
    return row.reindex(OF_QUALITY).to_dict() | {"quality_from": elsewhere}
