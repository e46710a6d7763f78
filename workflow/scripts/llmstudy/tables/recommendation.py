"""One recommended configuration per model, from the limits in the config.

Rule, in this order:

1. Candidates are the measured configurations that meet every limit, by their point estimates. If no limit on quality
   is set, a configuration whose PPL is shown to be worse than the reference, or not known well enough to say, is no
   candidate: a loss that nobody allowed is not taken. If every one loses, the least loss stays. Random weights have no
   quality, so only speed and memory decide, and the sentence says so.
2. Of these, the fastest by TPOT and all that cannot be told apart from it (Student's t on the log scale from the
   intervals in the table, unadjusted, or a difference below the smallest effect) stay.
3. Of these, the ones with the least PPL stay, then the ones with the least memory, each within the smallest effect,
   then the fastest.

If nothing meets the limits, the sentence names the limits that no configuration meets and the configuration that comes
nearest: the one whose worst miss, relative to its limit, is smallest.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from llmstudy.stats.estimate import log_error
from llmstudy.stats.processes import student_interval
from llmstudy.stats.student import critical_value
from llmstudy.tables import Sources
from llmstudy.tables.columns import SHARED, Column
from llmstudy.tables.phrases import interval, name, number
from llmstudy.tables.verdict import SIGNIFICANCE


COLUMNS = {
    "recommendation": [
        *SHARED,
        Column("meets_limits", "meets the limits", "text"),
        Column("sentence", "recommendation", "text"),
    ]
}


def recommendation(sources: Sources) -> list[dict]:
    """Return a row per model."""
    study = sources.study
    reference = {model: headline["reference"] for model, headline in study["headline"].items()}
    smallest = study["smallest_effect_percent"]
    return recommend(sources.tables["summary"], reference, study["limits"], smallest).to_dict("records")


@dataclass(frozen=True)
class Limit:
    """A bound on one column of the summary. `sign` 1: at most `bound`; -1: at least."""

    column: str
    label: str
    unit: str
    sign: int
    bound: float

    def miss(self, row: Mapping) -> float:
        """How far the row lies beyond the bound, relative to it; 0 if it meets the limit, infinite if not measured."""
        value = row[self.column]
        if math.isnan(value):
            return math.inf
        return max(0.0, self.sign * (value - self.bound) / (abs(self.bound) or 1.0))

    def told(self, row: Mapping) -> str:
        """ "TPOT 6.2 ms <= 20 ms", with the comparison that holds."""
        if math.isnan(row[self.column]):
            return f"{self.label} not measured"
        inside = "<=" if self.sign > 0 else ">="
        outside = ">" if self.sign > 0 else "<"
        relation = outside if self.miss(row) else inside
        return f"{self.label} {number(row[self.column])}{self.unit} {relation} {self.asked()}"

    def asked(self) -> str:
        """The bound with its unit."""
        return f"{number(self.bound)}{self.unit}"


# config key: column, label, unit, sign
LIMITS = {
    "memory_gib": ("memory_gib", "memory", " GiB", 1),
    "tpot_ms": ("tpot_ms", "TPOT", " ms", 1),
    "ppl_loss_percent": ("ppl_loss_percent", "PPL loss", " %", 1),
    "top1_agreement": ("top1_agreement", "top-1 agreement", "", -1),
}
ON_QUALITY = ("ppl_loss_percent", "top1_agreement")
# the end of its interval at which a limited quantity is worst
WORST = {"tpot_ms": "tpot_high_ms", "ppl_loss_percent": "ppl_loss_high_percent", "top1_agreement": "top1_low"}


def recommend(
    judged: pd.DataFrame,
    reference: Mapping[str, str],
    limits: Mapping[str, float | None],
    smallest: Mapping[str, float],
) -> pd.DataFrame:
    """The recommended configuration of each model, in one sentence.

    `judged`: as returned by `verdict.judge`. `reference`: reference precision per model. `limits`: keys `memory_gib`,
    `tpot_ms`, `ppl_loss_percent`, `top1_agreement`; None or absent means no limit. `smallest`: smallest effect in
    percent for `tpot`, `memory`, `ppl`. Returns one row per study and model: the identity columns, status and reason of
    the chosen configuration, `meets_limits` and `sentence`; if nothing was measured precision, attention and runtime
    are empty, status and reason those of the first configuration.
    """
    rows = []
    for (_, model), group in judged.groupby(["study", "model"], sort=False):
        row, meets, sentence = _recommend_one(group, reference[model], limits, smallest)
        chosen = {column.name: "" if row is None else row[column.name] for column in SHARED}
        first = group.iloc[0]
        chosen |= {column: first[column] for column in ("study", "model", "weights")}
        if row is None:
            chosen |= {column: first[column] for column in ("device", "status", "reason")}
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
    asked = [
        Limit(*LIMITS[key], bound=float(limits[key]))
        for key in LIMITS
        if limits.get(key) is not None and not (synthetic and key in ON_QUALITY)
    ]
    misses = pd.DataFrame([[limit.miss(row) for limit in asked] for _, row in measured.iterrows()], measured.index)
    within = measured[(misses == 0).all(axis=1)]
    if within.empty:
        row = measured.loc[misses.max(axis=1).idxmin()]
        return row, False, _nothing_fits(row, measured, asked)
    candidates, note = within, ""
    scope = "within the limits" if asked else "measured"
    if synthetic:
        note = " Random weights: speed and memory alone decide."
    elif all(limits.get(key) is None for key in ON_QUALITY):
        candidates, kept, note = _without_loss(within, reference, smallest["ppl"])
        scope = " and ".join(filter(None, [scope if asked else "", kept])) or scope
    row, why = _choose(candidates, smallest, scope)
    return row, True, _taken(row, why, asked, group, reference) + note


def _know_quality(measured: pd.DataFrame, reference: str, synthetic: bool) -> None:
    """Fill in what follows from the meaning: the reference agrees with itself; random weights have no quality."""
    quality = ["ppl_ratio", "top1_agreement"]
    if synthetic:
        measured[quality] = math.nan
    else:
        is_reference = measured["precision"] == reference
        measured.loc[is_reference, quality] = measured.loc[is_reference, quality].fillna(1.0)
    measured["ppl_loss_percent"] = (measured["ppl_ratio"] - 1) * 100
    measured["ppl_loss_high_percent"] = (measured["ppl_ratio_high"] - 1) * 100


def _without_loss(rows: pd.DataFrame, reference: str, smallest_percent: float) -> tuple[pd.DataFrame, str, str]:
    """The rows that are not shown to lose quality, what distinguishes them in words, and a note on those left out.

    Where each row loses, those that lose least. A loss without an interval counts if it would matter.
    """
    unknown = rows["ppl_ratio"].isna()
    unsure = rows["ppl_ratio_p_holm"].isna() & (rows["precision"] != reference)
    lost = ((rows["ppl_ratio_p_holm"] < SIGNIFICANCE) | unsure) & (rows["ppl_loss_percent"] > smallest_percent)
    kept = rows[~(lost | unknown)]
    told = []
    if lost.any():
        told.append(f"{lost.sum()} with a loss of quality, which no limit in the config allows")
    if unknown.any():
        told.append(f"{unknown.sum()} whose quality is not known")
    if len(kept):
        note = f" Left out: {'; '.join(told)}." if told else ""
        return kept, "without a shown loss of quality" if told else "", note
    if unknown.all():
        return rows, "", " Their quality is not known."
    least = rows["ppl_ratio"].min() * (1 + smallest_percent / 100)
    left = f" Left out: {unknown.sum()} whose quality is not known." if unknown.any() else ""
    told = f" Each choice{' whose quality is known' if left else ''} loses quality.{left}"
    return rows[rows["ppl_ratio"] <= least], "with the least loss of quality", told


def _choose(rows: pd.DataFrame, smallest: Mapping[str, float], scope: str) -> tuple[pd.Series, str]:
    """The row that the rule takes from the candidates and the clause that says why; `scope` says what they are."""
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
    """Whether the difference of two TPOTs is too small to matter."""
    return row["tpot_ms"] <= fastest["tpot_ms"] * (1 + smallest_percent / 100)


def _same_speed(row: pd.Series, fastest: pd.Series, smallest_percent: float) -> bool:
    """Whether two TPOTs cannot be told apart. Without intervals only the smallest effect keeps them together."""
    if _hardly_slower(row, fastest, smallest_percent):
        return True
    difference = math.log(row["tpot_ms"] / fastest["tpot_ms"])
    if math.isnan(row["tpot_degrees"]) or math.isnan(fastest["tpot_degrees"]):
        return False
    degrees = [int(side["tpot_degrees"]) for side in (row, fastest)]
    errors = [
        log_error(side["tpot_low_ms"], side["tpot_high_ms"], critical_value(own))
        for side, own in zip((row, fastest), degrees)
    ]
    return student_interval(difference, math.hypot(*errors), min(degrees)).p >= SIGNIFICANCE


def _taken(row: pd.Series, why: str, asked: list[Limit], group: pd.DataFrame, reference: str) -> str:
    numbers = [limit.told(row) for limit in asked]
    limited = {limit.column for limit in asked}
    for limit in asked:
        worst = row.get(WORST.get(limit.column, ""), math.nan)
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
    """Speed and memory against the reference precision: at its own fastest, and as everybody starts, under `eager`.

    TPOT leaves the prefill out, so the first comparison has the end-to-end times too.
    """
    dense = group[(group["precision"] == reference) & (group["status"] == "ok") & group["tpot_ms"].notna()]
    base = dense[dense["verdict"] == "reference"]
    rivals = [] if dense.empty or row["precision"] == reference else [dense.loc[dense["tpot_ms"].idxmin()]]
    rivals += [one for _, one in base.iterrows() if all(one.name != other.name for other in [row, *rivals])]
    told = []
    for rival in rivals:
        gain = f"{number(rival['tpot_ms'] / row['tpot_ms'])} x the decode speed of {name(rival)}"
        ratio = row["memory_gib"] / rival["memory_gib"]
        told.append(gain if math.isnan(ratio) else f"{gain} at {number(ratio)} x its memory")
        if not told[1:] and pd.notna(row["e2e_ms"]) and pd.notna(rival["e2e_ms"]):
            told[0] += f" (end to end {number(row['e2e_ms'])} ms against {number(rival['e2e_ms'])} ms)"
    return f"; {', '.join(told)}" if told else ""


def _nothing_fits(row: pd.Series, measured: pd.DataFrame, asked: list[Limit]) -> str:
    never = []
    for limit in asked:
        misses = measured.apply(limit.miss, axis=1)
        if (misses > 0).all():
            best = measured.loc[misses.idxmin()]
            never.append(
                f"{limit.label} of {limit.asked()} is out of reach of all (nearest {name(best)}: {limit.told(best)})"
            )
    blame = "; ".join(never) if never else "each limit is met by some configuration, but no one meets them all"
    told = ", ".join(limit.told(row) for limit in asked)
    return f"No configuration meets the limits: {blame}. {name(row)} comes nearest: {told}."
