"""recommendation.csv: one recommended configuration per model, from the limits in the config.

Rule, in this order:

1. Candidates are the measured configurations that meet every limit, by their point estimates. If no limit on quality
   is set, a configuration whose PPL is shown to be worse than the reference, or not known well enough to say, is no
   candidate: a loss that nobody allowed is not taken. If every one loses, the least loss remains. Random weights have
   no quality, so only speed and memory decide, and the sentence says so.
2. Of these, the fastest by TPOT and all that cannot be told apart from it (Student's t on the log scale from the
   intervals in the table, unadjusted, or a difference below the smallest effect) remain.
3. Of these, those with the least PPL remain, then those with the least memory, each within the smallest effect, then
   the fastest.

If nothing meets the limits, the sentence names the limits that no configuration meets and the configuration that comes
nearest: the one whose worst miss, relative to its limit, is smallest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from llmstudy.stats.estimate import critical_value
from llmstudy.stats.processes import student_interval
from llmstudy.tables import Sources
from llmstudy.tables.columns import SHARED, columns, number
from llmstudy.tables.verdict import SIGNIFICANCE, span

COLUMNS = {
    "advice": columns(
        "use:text batch:count prompt_tokens:count new_tokens:count verdict:text against:text speedup speedup_low "
        "speedup_high tpot_ms tokens_per_s memory_gib memory_ratio:ratio ppl_ratio:ratio ppl_ratio_low:ratio "
        "ppl_ratio_high:ratio ppl_verdict:text processes:count evidence:text instead:text sentence:text",
        SHARED,
    )
}


@dataclass(frozen=True)
class Limit:
    """A bound on a column of summary.csv: label and unit in a sentence, sign 1 for at most and −1 for at least, and the
    column with the worst end of the interval, empty without one."""

    column: str
    label: str
    unit: str
    sign: int
    worst: str
    bound: float

    def clause(self, row: Mapping) -> str:
        """Return "TPOT 6.2 ms <= 20 ms", with the comparison that holds."""
        value = row[self.column]
        if math.isnan(value):
            return f"{self.label} not measured"
        relation = ("<=", ">=", ">", "<")[(self.sign < 0) + 2 * (self.sign * (value - self.bound) > 0)]
        return f"{self.label} {number(value)}{self.unit} {relation} {number(self.bound)}{self.unit}"


LIMITS = {
    "memory_gib": ("memory", " GiB", 1, ""),
    "tpot_ms": ("TPOT", " ms", 1, "tpot_high_ms"),
    "ppl_loss_percent": ("PPL loss", " %", 1, "ppl_loss_high_percent"),
    "top1_agreement": ("top-1 agreement", "", -1, "top1_low"),
}
ON_QUALITY = ("ppl_loss_percent", "top1_agreement")


def recommendation(sources: Sources) -> list[dict]:
    """Return a row per model."""
    limits, smallest = sources.study["limits"], sources.study["smallest_effect_percent"]
    models = sources.tables["summary"].groupby("model", sort=False)
    return [recommend(rows, sources.reference(model), limits, smallest) for model, rows in models]


def recommend(
    rows: pd.DataFrame, reference: str, limits: Mapping[str, float | None], smallest: Mapping[str, float]
) -> dict:
    """Return the recommended configuration of one model: the cells of its row.

    ``limits`` has a bound, or None, for keys of ``LIMITS``. If nothing was measured, precision, attention and runtime
    are empty, status and reason those of the first configuration.
    """
    identity = [column.name for column in SHARED]
    measured = rows[(rows["status"] == "ok") & rows["tpot_ms"].notna()].sort_values("tpot_ms", kind="stable")
    if measured.empty:
        reasons = ", ".join(f"{_name(row)}: {row['status']}" for _, row in rows.iterrows())
        chosen = rows.iloc[0][identity].to_dict() | dict.fromkeys(("precision", "attention", "runtime"), "")
        return chosen | {"meets_limits": False, "sentence": f"No configuration was measured ({reasons})."}
    synthetic = measured["weights"].iloc[0] == "synthetic"
    quality = ["ppl_ratio", "top1_agreement"]
    same = measured["precision"] == reference
    measured.loc[same, quality] = measured.loc[same, quality].fillna(1.0)
    if synthetic:
        measured[quality] = math.nan
    measured["ppl_loss_percent"] = (measured["ppl_ratio"] - 1) * 100
    measured["ppl_loss_high_percent"] = (measured["ppl_ratio_high"] - 1) * 100
    bounds = [
        Limit(key, *LIMITS[key], bound=float(limits[key]))
        for key in LIMITS
        if limits.get(key) is not None and not (synthetic and key in ON_QUALITY)
    ]
    # how far each row lies beyond each bound, relative to it
    misses = pd.DataFrame(index=measured.index)
    for limit in bounds:
        misses[limit.column] = limit.sign * (measured[limit.column] - limit.bound) / (abs(limit.bound) or 1.0)
    misses = misses.clip(lower=0.0).fillna(math.inf)
    within = measured[(misses == 0).all(axis=1)]
    if within.empty:
        row = measured.loc[misses.max(axis=1).idxmin()]
        sentence = _nothing_fits(row, measured, bounds, misses)
        return row[identity].to_dict() | {"meets_limits": False, "sentence": sentence}
    scope, note = "within the limits" if bounds else "measured", ""
    if synthetic:
        note = " Random weights: speed and memory alone decide."
    elif all(limits.get(key) is None for key in ON_QUALITY):
        within, kept, note = _without_loss(within, reference, smallest["ppl"])
        scope = " and ".join(filter(None, [scope if bounds else "", kept])) or scope
    row, why = _choose(within, smallest, scope)
    sentence = _taken(row, why, bounds, rows, reference) + note
    return row[identity].to_dict() | {"meets_limits": True, "sentence": sentence}


def _name(row: Mapping) -> str:
    return f"{row['precision']} ({row['attention']}, {row['runtime']})"


def _without_loss(rows: pd.DataFrame, reference: str, smallest_percent: float) -> tuple[pd.DataFrame, str, str]:
    """Return the rows that are not shown to lose quality, what distinguishes them in words, and a note on the others.

    Where each row loses, the rows are those that lose least. A loss without an interval counts if it would matter.
    """
    unknown = rows["ppl_ratio"].isna()
    unsure = rows["ppl_ratio_p_holm"].isna() & (rows["precision"] != reference)
    lost = ((rows["ppl_ratio_p_holm"] < SIGNIFICANCE) | unsure) & (rows["ppl_loss_percent"] > smallest_percent)
    kept = rows[~(lost | unknown)]
    left_out = [f"{lost.sum()} with a loss of quality, which no limit in the config allows"] if lost.any() else []
    left_out += [f"{unknown.sum()} whose quality is not known"] if unknown.any() else []
    if len(kept):
        note = f" Left out: {'; '.join(left_out)}." if left_out else ""
        return kept, "without a shown loss of quality" if left_out else "", note
    if unknown.all():
        return rows, "", " Their quality is not known."
    least = rows["ppl_ratio"].min() * (1 + smallest_percent / 100)
    note = " Each choice loses quality."
    if unknown.any():
        note = f" Each choice whose quality is known loses quality. Left out: {left_out[-1]}."
    return rows[rows["ppl_ratio"] <= least], "with the least loss of quality", note


def _choose(rows: pd.DataFrame, smallest: Mapping[str, float], scope: str) -> tuple[pd.Series, str]:
    """Return the row that the rule takes from the candidates, and why; ``scope`` says what the candidates are."""
    fastest = rows.loc[rows["tpot_ms"].idxmin()]
    near = rows["tpot_ms"] <= fastest["tpot_ms"] * (1 + smallest["tpot"] / 100)
    tied = rows[near | np.array([_not_distinguishable(row, fastest) for _, row in rows.iterrows()])]
    gain = ""
    for column, key, label in (("ppl_ratio", "ppl", "PPL"), ("memory_gib", "memory", "memory")):
        if tied[column].notna().any():
            tied = tied[tied[column] <= tied[column].min() * (1 + smallest[key] / 100)]
            if not gain and fastest.name not in tied.index:
                gain = label
    row = tied.loc[tied["tpot_ms"].idxmin()]
    if len(rows) == 1:
        return row, f"the only configuration {scope}"
    if row.name == fastest.name:
        return row, f"the fastest by TPOT of {len(rows)} {scope}"
    speed = (
        f"at most {number(smallest['tpot'])} % slower than" if near[row.name] else "not distinguishable in speed from"
    )
    return row, f"{speed} {_name(fastest)} ({number(fastest['tpot_ms'])} ms) and lower in {gain}"


def _not_distinguishable(row: pd.Series, fastest: pd.Series) -> bool:
    """Return whether two TPOTs cannot be told apart by their intervals; False without one."""
    sides = pd.DataFrame([row, fastest])[["tpot_ms", "tpot_low_ms", "tpot_high_ms", "tpot_degrees"]].astype(float)
    errors = np.log(sides["tpot_high_ms"] / sides["tpot_low_ms"]) / (2 * sides["tpot_degrees"].map(critical_value))
    difference = math.log(row["tpot_ms"] / fastest["tpot_ms"])
    return student_interval(difference, math.hypot(*errors), sides["tpot_degrees"].min()).p >= SIGNIFICANCE


def _taken(row: pd.Series, why: str, bounds: list[Limit], rows: pd.DataFrame, reference: str) -> str:
    numbers = [limit.clause(row) for limit in bounds]
    limited = {limit.column for limit in bounds}
    for limit in bounds:
        worst = row.get(limit.worst, math.nan)
        if limit.sign * (worst - limit.bound) > 0:
            numbers.append(f"though the interval of {limit.label} reaches {number(worst)}{limit.unit}")
    if "tpot_ms" not in limited:
        numbers.append(f"TPOT {number(row['tpot_ms'])} ms ({span(row['tpot_low_ms'], row['tpot_high_ms'])})")
    if "memory_gib" not in limited and not math.isnan(row["memory_gib"]):
        numbers.append(f"memory {number(row['memory_gib'])} GiB")
    if "ppl_loss_percent" not in limited and row["precision"] != reference and pd.notna(row["ppl_ratio"]):
        low = (row["ppl_ratio_low"] - 1) * 100
        numbers.append(f"PPL loss {number(row['ppl_loss_percent'])} % ({span(low, row['ppl_loss_high_percent'])})")
    return f"Take {_name(row)}, {why}: {', '.join(numbers)}{_gain(row, rows, reference)}."


def _gain(row: pd.Series, rows: pd.DataFrame, reference: str) -> str:
    """Return speed and memory against the reference precision: its fastest configuration, with the end-to-end times
    since TPOT does not include the prefill, and under ``generate``."""
    dense = rows[(rows["precision"] == reference) & (rows["status"] == "ok") & rows["tpot_ms"].notna()]
    rivals = [] if dense.empty or row["precision"] == reference else [dense["tpot_ms"].idxmin()]
    rivals += [start for start in dense.index[dense["verdict"] == "reference"] if start not in [row.name, *rivals]]
    clauses = []
    for _, rival in dense.loc[rivals].iterrows():
        gain = f"{number(rival['tpot_ms'] / row['tpot_ms'])} x the decode speed of {_name(rival)}"
        ratio = row["memory_gib"] / rival["memory_gib"]
        clauses.append(gain if math.isnan(ratio) else f"{gain} at {number(ratio)} x its memory")
        if len(clauses) == 1 and pd.notna(row["e2e_ms"]) and pd.notna(rival["e2e_ms"]):
            clauses[0] += f" (end to end {number(row['e2e_ms'])} ms against {number(rival['e2e_ms'])} ms)"
    return f"; {', '.join(clauses)}" if clauses else ""


def _nothing_fits(row: pd.Series, measured: pd.DataFrame, bounds: list[Limit], misses: pd.DataFrame) -> str:
    never = []
    for limit in bounds:
        if (misses[limit.column] > 0).all():
            best, bound = measured.loc[misses[limit.column].idxmin()], f"{number(limit.bound)}{limit.unit}"
            nearest = f"nearest {_name(best)}: {limit.clause(best)}"
            never.append(f"{limit.label} of {bound} is out of reach of all ({nearest})")
    blame = "; ".join(never) or "each limit is met by some configuration, but no one meets them all"
    clauses = ", ".join(limit.clause(row) for limit in bounds)
    return f"No configuration meets the limits: {blame}. {_name(row)} comes nearest: {clauses}."
