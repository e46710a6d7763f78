"""Each configuration against the reference of its model: better, worse, mixed or not distinguishable, and why.

A difference counts if both hold:

1. it is real: its p-value, adjusted by Holm's method over all configurations of the same model and the same quantity,
   is below 0.05. For speed that is the t-test between processes, for quality the paired test of the PPL ratio over
   documents. Memory is one figure without a sampling error; there the second condition alone applies.
2. it matters: it is larger than the smallest effect of the config (``verdict.smallest_effect_percent``).

The families are kept apart by quantity because each answers a question of its own ("which of these is faster?"); within
a family the chance of one false difference is at most 5 %. Quality is measured once per precision, so its family counts
precisions, that of speed configurations. Without an interval (nothing was repeated, the text was too short) a
difference is neither real nor unreal: one that would matter makes the verdict undecided, and so does a quality that was
not measured. Top-1 agreement is mentioned in the reason but decides nothing: it measures difference, not loss.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from llmstudy.stats.estimate import holm
from llmstudy.tables.phrases import interval, number, percent

SIGNIFICANCE = 0.05
PARETO = ["memory_gib", "tpot_ms", "ppl_ratio"]


@dataclass(frozen=True)
class Finding:
    """One quantity of one configuration.

    Attributes:
        direction: 1 better, −1 worse, 0 neither shown, None not compared.
        text: Clause of the reason.
        open: Whether the difference would matter and nothing says if it is real, or a quality is not known.
    """

    direction: int | None
    text: str
    open: bool = False


def judge(summary: pd.DataFrame, reference: Mapping[str, str], smallest: Mapping[str, float]) -> pd.DataFrame:
    """Return the summary of one study with its verdicts.

    Added columns: ``verdict`` is ``reference``, ``better``, ``worse``, ``mixed``, ``not distinguishable``,
    ``undecided`` (a difference without an interval, or unknown quality), ``not measured`` (status is not ok) or ``not
    comparable`` (its reference was not measured); ``verdict_reason`` is a sentence with the numbers; ``pareto`` says
    whether no other measured configuration of the model is at least as good in memory, TPOT and PPL ratio and better in
    one of them (point estimates; quantities that no configuration of the model has are left out); ``speedup_p_holm``
    and ``ppl_ratio_p_holm`` are adjusted p-values.

    Args:
        summary: Columns of summary.csv up to ``quality_from``.
        reference: Reference precision per model.
        smallest: Smallest effect in percent: ``tpot``, ``memory`` and ``ppl``.
    """
    judged = summary.reset_index(drop=True)
    is_reference = judged["precision"] == judged["model"].map(dict(reference))
    is_base = is_reference & (judged["runtime"] == "generate")
    judged.loc[(judged["status"] != "ok") | is_base, "speedup_p"] = math.nan
    judged.loc[(judged["status"] != "ok") | is_reference, "ppl_ratio_p"] = math.nan
    judged[["speedup_p_holm", "ppl_ratio_p_holm"]] = math.nan
    judged["pareto"] = False
    for _, rows in judged.groupby("model"):
        judged.loc[rows.index, "speedup_p_holm"] = holm(rows["speedup_p"].to_numpy(dtype=float))
        judged.loc[rows.index, "ppl_ratio_p_holm"] = _holm_over_precisions(rows)
        judged.loc[rows.index, "pareto"] = _pareto(rows, is_reference[rows.index])
    verdicts = [
        _verdict(row, _base(row, judged[is_base]), of_reference, smallest)
        for (_, row), of_reference in zip(judged.iterrows(), is_reference)
    ]
    judged[["verdict", "verdict_reason"]] = pd.DataFrame(verdicts, index=judged.index)
    return judged


def _holm_over_precisions(rows: pd.DataFrame) -> np.ndarray:
    """Return adjusted p-values of PPL: every precision counts once, however many configurations carry its figure."""
    once = rows.dropna(subset="ppl_ratio_p").drop_duplicates("precision").set_index("precision")["ppl_ratio_p"]
    adjusted = pd.Series(holm(once.to_numpy(dtype=float)), once.index)
    return rows["precision"].map(adjusted).where(rows["ppl_ratio_p"].notna()).to_numpy(dtype=float)


def _base(row: pd.Series, bases: pd.DataFrame) -> pd.Series | None:
    same = (bases["status"] == "ok") & (bases["model"] == row["model"]) & (bases["attention"] == row["attention"])
    return bases[same].iloc[0] if same.any() else None


def _verdict(
    row: pd.Series, base: pd.Series | None, is_reference: bool, smallest: Mapping[str, float]
) -> tuple[str, str]:
    if row["status"] != "ok":
        return "not measured", f"{row['status']}: {row['reason']}" if row["reason"] else str(row["status"])
    if base is None:
        absent = f"the reference with {row['attention']} attention under runtime generate was not measured"
        return "not comparable", absent
    if row.name == base.name:
        return "reference", "the others are compared with this configuration"
    findings = [_speed(row, base, smallest["tpot"]), _memory(row, base, smallest["memory"])]
    findings.append(_quality(row, is_reference, smallest["ppl"]))
    clauses = [finding.text for finding in findings] + ([row["reason"]] if row["reason"] else [])
    return _word(findings), "; ".join(clauses)


def _word(findings: Sequence[Finding]) -> str:
    directions = {finding.direction for finding in findings}
    if directions == {None}:
        return "not comparable"
    if {1, -1} <= directions:
        return "mixed"
    if any(finding.open for finding in findings):
        return "undecided"
    return "better" if 1 in directions else "worse" if -1 in directions else "not distinguishable"


def _counts(log_gain: float, p: float, smallest_percent: float) -> int:
    if not (p < SIGNIFICANCE and _matters(log_gain, smallest_percent)):
        return 0
    return 1 if log_gain > 0 else -1


def _matters(log_gain: float, smallest_percent: float) -> bool:
    return abs(log_gain) > math.log1p(smallest_percent / 100)


def _is_open(log_gain: float, p: float, smallest_percent: float) -> bool:
    """Return whether a difference would matter and has no interval that says if it is real."""
    return math.isnan(p) and _matters(log_gain, smallest_percent)


def _neither(quantity: str, p: float, is_open: bool) -> str:
    if is_open:
        return f"{quantity} undecided"
    return f"{quantity} differs by too little to matter" if p < SIGNIFICANCE else f"{quantity} not distinguishable"


def _speed(row: pd.Series, base: pd.Series, smallest: float) -> Finding:
    if math.isnan(row["speedup"]):
        return Finding(None, "speed not compared")
    log_gain, p = math.log(row["speedup"]), row["speedup_p_holm"]
    direction, undecided = _counts(log_gain, p, smallest), _is_open(log_gain, p, smallest)
    word = {1: "faster", -1: "slower", 0: _neither("speed", p, undecided)}[direction]
    gain = f"{number(row['speedup'])} x ({interval(row['speedup_low'], row['speedup_high'])})"
    times = f"TPOT {number(row['tpot_ms'])} ms against {number(base['tpot_ms'])} ms"
    return Finding(direction, f"{word}: {gain}, {times}", undecided)


def _memory(row: pd.Series, base: pd.Series, smallest: float) -> Finding:
    if math.isnan(row["memory_ratio"]):
        return Finding(None, "memory not compared")
    direction = _counts(-math.log(row["memory_ratio"]), 0.0, smallest)
    word = {1: "less memory", -1: "more memory", 0: "memory the same"}[direction]
    sizes = f"{number(row['memory_gib'])} GiB against {number(base['memory_gib'])} GiB"
    return Finding(direction, f"{word}: {number(row['memory_ratio'])} x, {sizes}")


def _quality(row: pd.Series, is_reference: bool, smallest: float) -> Finding:
    if row["weights"] == "synthetic":
        return Finding(None, "no quality: random weights")
    if is_reference:
        return Finding(None, "quality not compared: the reference's own precision")
    if math.isnan(row["ppl_ratio"]):
        return Finding(None, "quality not compared", open=True)
    log_gain, p = -math.log(row["ppl_ratio"]), row["ppl_ratio_p_holm"]
    direction, undecided = _counts(log_gain, p, smallest), _is_open(log_gain, p, smallest)
    word = {1: "lower PPL", -1: "higher PPL", 0: _neither("PPL", p, undecided)}[direction]
    low, high = row["ppl_ratio_low"], row["ppl_ratio_high"]
    span = "no interval" if math.isnan(low) else f"95 % {percent(low)} to {percent(high)}"
    clause = f"{word}: {percent(row['ppl_ratio'])} ({span})"
    if not math.isnan(row["top1_agreement"]):
        clause += f", same first choice at {row['top1_agreement'] * 100:.1f} % of positions"
    return Finding(direction, clause, undecided)


def _pareto(rows: pd.DataFrame, is_reference: pd.Series) -> np.ndarray:
    costs = rows[PARETO].astype(float)
    costs.loc[is_reference & costs["ppl_ratio"].isna(), "ppl_ratio"] = 1.0
    ok = rows["status"] == "ok"
    others = costs[ok & ~is_reference] if (ok & ~is_reference).any() else costs[ok]
    costs = costs[others.columns[others.notna().any()]].to_numpy()
    able = ok.to_numpy() & ~np.isnan(costs).any(axis=1)
    no_worse = (costs[:, None] <= costs[None, :]).all(axis=2)
    better = (costs[:, None] < costs[None, :]).any(axis=2)
    dominated = (no_worse & better & able[:, None]).any(axis=0)
    return able & ~dominated & (costs.shape[1] > 0)
