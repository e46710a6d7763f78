"""summary.csv: each configuration at the headline workload and protocol of its model, with a verdict for each quantity.

``status`` is that of its speed; what else failed is in ``reason``. Times and their comparison with ``against``, the
fastest configuration without quantization, are those of speed.csv. ``memory_gib`` is that of probes.csv, at the
workload with the nearest number of new tokens where the headline's was not tried; ``memory_ratio`` is to ``against``,
and ``memory_verdict`` ``less`` or ``more`` beyond the margin, else ``same``: it is one figure, without an interval.

Quality is that of quality.csv, under ``protocol``. Under the base runtime it belongs to the precision: where it was
measured with another attention, ``quality_from`` names that. Another runtime has a token step of its own, and its
quality is that of the tokens decoded with it; only where none were scored it is the base runtime's (``quality_from``).

``pareto``: no other configuration is as good, within the margins, in memory, TPOT and perplexity, and better by more
than the margin in one of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd

from llmstudy.llama import without_bos
from llmstudy.tables import Sources
from llmstudy.tables.columns import CONFIGURATION, IDENTITY, KEY, SHARED, WORKLOAD, columns, pick, where
from llmstudy.tables.probes import COLUMNS as PROBES
from llmstudy.tables.probes import nearest_workload
from llmstudy.tables.quality import COLUMNS as QUALITY
from llmstudy.tables.quality import OVERFLOW
from llmstudy.tables.speed import COLUMNS as SPEED
from llmstudy.tables.speed import name_of, ok, outcome

OF_SPEED = (
    "processes ttft_ms tpot_ms tpot_ms_min tpot_ms_max e2e_ms tokens_per_s mbu against tpot_speedup tpot_speedup_low "
    "tpot_speedup_high tpot_verdict generate_speedup generate_speedup_low generate_speedup_high flags"
)
OF_PROBES = ["memory_gib", "weights_gib", "peak_load_gib", "quantized_share"]
OF_QUALITY = ["ppl", "ppl_low", "ppl_high", "kl_nats", "kl_low_nats", "kl_high_nats"]
OF_QUALITY += ["top1_agreement", "top1_low", "top1_high"]
OF_LOSS = ["ppl_ratio", "ppl_ratio_low", "ppl_ratio_high", "ppl_verdict"]
COLUMNS = {
    "summary": [
        *SHARED,
        *pick(SPEED["speed"], OF_SPEED),
        *pick(PROBES["probes"], " ".join(OF_PROBES)),
        *columns("memory_ratio:ratio memory_verdict:text"),
        *pick(QUALITY["quality"], " ".join([*OF_QUALITY[:3], *OF_LOSS, *OF_QUALITY[3:]])),
        *pick(QUALITY["quality"], "protocol"),
        *columns("quality_from:text pareto:text"),
    ]
}
UNMEASURED = "this workload was not measured"
COSTS = {"memory_gib": "memory", "tpot_ms": "speed", "ppl_ratio": "perplexity"}  # of the front, with their margins


def summary(sources: Sources) -> list[dict]:
    """Return a row for every configuration in speed.csv, by model in the order of the study."""
    rows, margins = [], sources.study["margin_percent"]
    for model, headline in sources.study["headline"].items():
        tables = [where(sources.tables[name], {"model": model}) for name in ("speed", "probes", "quality")]
        found = rows_of(*tables, headline, margins, sources.study["runtime"])
        for row, front in zip(found, pareto(pd.DataFrame(found), margins) if found else []):
            rows.append(row | {"pareto": "yes" if front else "no"})
    return rows


def rows_of(
    speed: pd.DataFrame,
    probes: pd.DataFrame,
    quality: pd.DataFrame,
    headline: Mapping,
    margins: Mapping[str, float],
    base: str,
) -> list[dict]:
    """Return the rows of one model without the front; ``base``: the library's runtime."""
    speed = speed[speed["again"] == "no"]
    at_headline = where(speed, {name: headline[name] for name in WORKLOAD})
    tried = where(probes, nearest_workload(probes, headline))
    losses, decoded = (
        at_protocol(quality, headline["corpus"], headline.get(key, "")) for key in ("protocol", "decode")
    )
    decoded = decoded[decoded["runtime"] != base]
    rows = []
    for key, own in speed.groupby(CONFIGURATION, sort=False):
        configuration = dict(zip(CONFIGURATION, key))
        timed, probed = where(at_headline, configuration), where(tried, configuration)
        graded = where(decoded, {name: configuration[name] for name in ("precision", "runtime")})
        if graded.empty:
            graded = losses[losses["precision"] == configuration["precision"]]
        row = own.iloc[0][IDENTITY].to_dict() | outcome_of(timed, probed, graded)
        if len(timed):
            row |= timed.iloc[0][OF_SPEED.split()].to_dict()
        if len(measured := ok(probed)):
            row |= measured.iloc[0][OF_PROBES].to_dict()
        if len(measured := ok(graded)):
            row |= nearest(measured, configuration)
        elif (graded["status"] == OVERFLOW).any():
            row["ppl_verdict"] = OVERFLOW
        rows.append(row)
    bases = {name_of(tuple(row[name] for name in KEY)): row.get("memory_gib") for row in rows}
    for row in rows:
        row |= memory_of(row.get("memory_gib"), bases.get(row.get("against")), margins["memory"])
    return rows


def at_protocol(quality: pd.DataFrame, corpus: str, protocol: str) -> pd.DataFrame:
    """Return the rows of quality.csv at a corpus and protocol, however the tokenizer of the model begins a text."""
    return quality[(quality["corpus"] == corpus) & (quality["protocol"].map(without_bos) == without_bos(protocol))]


def outcome_of(speed: pd.DataFrame, probes: pd.DataFrame, quality: pd.DataFrame) -> dict:
    """Return status and reason of a configuration: those of its speed, with notes on what else failed."""
    if speed.empty:
        return {"status": "error", "reason": UNMEASURED}
    first = speed.iloc[0][["status", "reason"]].to_dict()
    if first["status"] != "ok":
        return first
    notes = [first["reason"]] if first["reason"] else []
    for name, rows in (("probe", probes), ("quality", quality)):
        if len(rows) and (failed := outcome(rows))["status"] != "ok":
            notes.append(f"{name}: {failed['reason'] or failed['status']}")
    return {"status": "ok", "reason": "; ".join(notes)}


def memory_of(own: float | None, base: float | None, margin_percent: float) -> dict:
    """Return the ratio of two sizes and its verdict; nothing without both."""
    if not own or not base or math.isnan(own) or math.isnan(base):
        return {}
    ratio, margin = own / base, 1 + margin_percent / 100
    word = "less" if ratio < 1 / margin else "more" if ratio > margin else "same"
    return {"memory_ratio": ratio, "memory_verdict": word}


def nearest(measured: pd.DataFrame, configuration: Mapping[str, str]) -> dict:
    """Return the quality of the configuration, else of the nearest one with the same precision."""
    same = (measured[column] == configuration[column] for column in ("attention", "runtime"))
    nearness = next(same) * 2 + next(same)
    row = measured.loc[nearness.idxmax()]
    elsewhere = "" if nearness.max() == 3 else f"{row['attention']}, {row['runtime']}"
    return row[[*OF_QUALITY, *OF_LOSS, "protocol"]].to_dict() | {"quality_from": elsewhere}


def pareto(rows: pd.DataFrame, margins: Mapping[str, float]) -> list[bool]:
    """Return which rows no other dominates; a quantity that no row has is left out."""
    costs = rows.reindex(columns=list(COSTS)).astype(float)
    costs = costs.loc[:, costs.notna().any()]
    able = (rows["status"] == "ok").to_numpy() & costs.notna().all(axis=1).to_numpy() & (costs.shape[1] > 0)
    slack = np.log1p([margins[COSTS[name]] / 100 for name in costs])
    logs = np.log(costs.to_numpy())
    lead = logs[None, :, :] - logs[:, None, :]  # [other, own, quantity]: how much more the own row costs
    dominates = (lead >= -slack).all(axis=2) & (lead > slack).any(axis=2) & able[:, None]
    return list(able & ~dominates.any(axis=0))
