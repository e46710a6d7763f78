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

import pandas as pd

from llmstudy.stats.estimate import critical_value, log_error
from llmstudy.stats.processes import student_interval
from llmstudy.tables import Sources
from llmstudy.tables.columns import SHARED, columns
from llmstudy.tables.phrases import interval, name, number
from llmstudy.tables.verdict import SIGNIFICANCE

COLUMNS = {"recommendation": [*SHARED, *columns("meets_limits sentence", "text")]}


def recommendation(sources: Sources) -> list[dict]:
    """Return a row per model."""
    study = sources.study
    reference = {model: headline["reference"] for model, headline in study["headline"].items()}
    smallest = study["smallest_effect_percent"]
    return recommend(sources.tables["summary"], reference, study["limits"], smallest).to_dict("records")


@dataclass(frozen=True)
class Limit:
    """A bound on one column of summary.csv.

    Attributes:
        column: Name of the column.
        label: Name of the quantity in a sentence.
        unit: Behind the number, with a space.
        sign: 1 for at most ``bound``, −1 for at least.
        worst: Column with the worst end of the interval; empty without one.
        bound: The limit.
    """

    column: str
    label: str
    unit: str
    sign: int
    worst: str
    bound: float

    def miss(self, row: Mapping) -> float:
        """Return how far the row lies beyond the bound, relative to it: 0 within, infinite if not measured."""
        value = row[self.column]
        if math.isnan(value):
            return math.inf
        return max(0.0, self.sign * (value - self.bound) / (abs(self.bound) or 1.0))

    def clause(self, row: Mapping) -> str:
        """Return "TPOT 6.2 ms <= 20 ms", with the comparison that holds."""
        if math.isnan(row[self.column]):
            return f"{self.label} not measured"
        inside = "<=" if self.sign > 0 else ">="
        outside = ">" if self.sign > 0 else "<"
        relation = outside if self.miss(row) else inside
        return f"{self.label} {number(row[self.column])}{self.unit} {relation} {self.with_unit()}"

    def with_unit(self) -> str:
        """Return the bound with its unit."""
        return f"{number(self.bound)}{self.unit}"


# key of the config and column: label, unit, sign, the end of the interval at which the quantity is worst
LIMITS = {
    "memory_gib": ("memory", " GiB", 1, ""),
    "tpot_ms": ("TPOT", " ms", 1, "tpot_high_ms"),
    "ppl_loss_percent": ("PPL loss", " %", 1, "ppl_loss_high_percent"),
    "top1_agreement": ("top-1 agreement", "", -1, "top1_low"),
}
ON_QUALITY = ("ppl_loss_percent", "top1_agreement")


def recommend(
    judged: pd.DataFrame,
    reference: Mapping[str, str],
    limits: Mapping[str, float | None],
    smallest: Mapping[str, float],
) -> pd.DataFrame:
    """Return the recommended configuration of each model, in one sentence.

    Args:
        judged: summary.csv of one study (see ``verdict.judge``).
        reference: Reference precision per model.
        limits: ``memory_gib``, ``tpot_ms``, ``ppl_loss_percent``, ``top1_agreement``; None or absent means no limit.
        smallest: Smallest effect in percent: ``tpot``, ``memory``, ``ppl``.

    Returns:
        One row per model: the identity columns, status and reason of the recommended configuration, ``meets_limits``
        and ``sentence``. If nothing was measured, precision, attention and runtime are empty, status and reason those
        of the first configuration.
    """
    rows = []
    for model, group in judged.groupby("model", sort=False):
        row, meets, sentence = _recommend_one(group, reference[model], limits, smallest)
        chosen = (group.iloc[0] if row is None else row)[[column.name for column in SHARED]].to_dict()
        if row is None:
            chosen |= dict.fromkeys(("precision", "attention", "runtime"), "")
        rows.append(chosen | {"meets_limits": meets, "sentence": sentence})
    return pd.DataFrame(rows)


def _recommend_one(
    group: pd.DataFrame, reference: str, limits: Mapping[str, float | None], smallest: Mapping[str, float]
) -> tuple[pd.Series | None, bool, str]:
    measured = group[(group["status"] == "ok") & group["tpot_ms"].notna()].sort_values("tpot_ms", kind="stable")
    if measured.empty:
        reasons = ", ".join(f"{name(row)}: {row['status']}" for _, row in group.iterrows())
        return None, False, f"No configuration was measured ({reasons})."
    synthetic = measured["weights"].iloc[0] == "synthetic"
    _know_quality(measured, reference, synthetic)
    bounds = [
        Limit(key, *LIMITS[key], bound=float(limits[key]))
        for key in LIMITS
        if limits.get(key) is not None and not (synthetic and key in ON_QUALITY)
    ]
    misses = pd.DataFrame([[limit.miss(row) for limit in bounds] for _, row in measured.iterrows()], measured.index)
    within = measured[(misses == 0).all(axis=1)]
    if within.empty:
        row = measured.loc[misses.max(axis=1).idxmin()]
        return row, False, _nothing_fits(row, measured, bounds)
    candidates, note = within, ""
    scope = "within the limits" if bounds else "measured"
    if synthetic:
        note = " Random weights: speed and memory alone decide."
    elif all(limits.get(key) is None for key in ON_QUALITY):
        candidates, kept, note = _without_loss(within, reference, smallest["ppl"])
        scope = " and ".join(filter(None, [scope if bounds else "", kept])) or scope
    row, why = _choose(candidates, smallest, scope)
    return row, True, _taken(row, why, bounds, group, reference) + note


def _know_quality(measured: pd.DataFrame, reference: str, synthetic: bool) -> None:
    """Fill in what is known without measuring: the reference agrees with itself; random weights have no quality."""
    quality = ["ppl_ratio", "top1_agreement"]
    if synthetic:
        measured[quality] = math.nan
    else:
        is_reference = measured["precision"] == reference
        measured.loc[is_reference, quality] = measured.loc[is_reference, quality].fillna(1.0)
    measured["ppl_loss_percent"] = (measured["ppl_ratio"] - 1) * 100
    measured["ppl_loss_high_percent"] = (measured["ppl_ratio_high"] - 1) * 100


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
    tied = rows[[_same_speed(row, fastest, smallest["tpot"]) for _, row in rows.iterrows()]]
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
    near = _hardly_slower(row, fastest, smallest["tpot"])
    speed = f"at most {number(smallest['tpot'])} % slower than" if near else "not distinguishable in speed from"
    return row, f"{speed} {name(fastest)} ({number(fastest['tpot_ms'])} ms) and lower in {gain}"


def _hardly_slower(row: pd.Series, fastest: pd.Series, smallest_percent: float) -> bool:
    """Return whether the difference of two TPOTs is too small to matter."""
    return row["tpot_ms"] <= fastest["tpot_ms"] * (1 + smallest_percent / 100)


def _same_speed(row: pd.Series, fastest: pd.Series, smallest_percent: float) -> bool:
    """Return whether two TPOTs cannot be told apart; without intervals, whether they differ by too little to matter."""
    if _hardly_slower(row, fastest, smallest_percent):
        return True
    difference = math.log(row["tpot_ms"] / fastest["tpot_ms"])
    if math.isnan(row["tpot_degrees"]) or math.isnan(fastest["tpot_degrees"]):
        return False
    degrees = [int(side["tpot_degrees"]) for side in (row, fastest)]
    errors = [
        log_error(side["tpot_low_ms"], side["tpot_high_ms"], critical_value(of_side))
        for side, of_side in zip((row, fastest), degrees)
    ]
    return student_interval(difference, math.hypot(*errors), min(degrees)).p >= SIGNIFICANCE


def _taken(row: pd.Series, why: str, bounds: list[Limit], group: pd.DataFrame, reference: str) -> str:
    numbers = [limit.clause(row) for limit in bounds]
    limited = {limit.column for limit in bounds}
    for limit in bounds:
        worst = row.get(limit.worst, math.nan)
        if limit.sign * (worst - limit.bound) > 0:
            numbers.append(f"though the interval of {limit.label} reaches {number(worst)}{limit.unit}")
    if "tpot_ms" not in limited:
        numbers.append(f"TPOT {number(row['tpot_ms'])} ms ({interval(row['tpot_low_ms'], row['tpot_high_ms'])})")
    if "memory_gib" not in limited and not math.isnan(row["memory_gib"]):
        numbers.append(f"memory {number(row['memory_gib'])} GiB")
    if "ppl_loss_percent" not in limited and row["precision"] != reference and pd.notna(row["ppl_ratio"]):
        low = (row["ppl_ratio_low"] - 1) * 100
        numbers.append(f"PPL loss {number(row['ppl_loss_percent'])} % ({interval(low, row['ppl_loss_high_percent'])})")
    return f"Take {name(row)}, {why}: {', '.join(numbers)}{_gain(row, group, reference)}."


def _gain(row: pd.Series, group: pd.DataFrame, reference: str) -> str:
    """Return speed and memory against the reference precision: its fastest configuration, and under ``generate``.

    TPOT does not include the prefill, so the first comparison has the end-to-end times too.
    """
    dense = group[(group["precision"] == reference) & (group["status"] == "ok") & group["tpot_ms"].notna()]
    base = dense[dense["verdict"] == "reference"]
    rivals = [] if dense.empty or row["precision"] == reference else [dense.loc[dense["tpot_ms"].idxmin()]]
    rivals += [start for _, start in base.iterrows() if all(start.name != other.name for other in [row, *rivals])]
    clauses = []
    for rival in rivals:
        gain = f"{number(rival['tpot_ms'] / row['tpot_ms'])} x the decode speed of {name(rival)}"
        ratio = row["memory_gib"] / rival["memory_gib"]
        clauses.append(gain if math.isnan(ratio) else f"{gain} at {number(ratio)} x its memory")
        if len(clauses) == 1 and pd.notna(row["e2e_ms"]) and pd.notna(rival["e2e_ms"]):
            clauses[0] += f" (end to end {number(row['e2e_ms'])} ms against {number(rival['e2e_ms'])} ms)"
    return f"; {', '.join(clauses)}" if clauses else ""


def _nothing_fits(row: pd.Series, measured: pd.DataFrame, bounds: list[Limit]) -> str:
    never = []
    for limit in bounds:
        misses = measured.apply(limit.miss, axis=1)
        if (misses > 0).all():
            best = measured.loc[misses.idxmin()]
            nearest = f"nearest {name(best)}: {limit.clause(best)}"
            never.append(f"{limit.label} of {limit.with_unit()} is out of reach of all ({nearest})")
    blame = "; ".join(never) if never else "each limit is met by some configuration, but no one meets them all"
    clauses = ", ".join(limit.clause(row) for limit in bounds)
    return f"No configuration meets the limits: {blame}. {name(row)} comes nearest: {clauses}."
