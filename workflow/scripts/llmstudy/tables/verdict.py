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
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from llmstudy.stats.estimate import holm
from llmstudy.tables.columns import number, percent

SIGNIFICANCE = 0.05
PARETO = ["memory_gib", "tpot_ms", "ppl_ratio"]


class Finding(NamedTuple):
    """One quantity of one configuration: direction 1 better, −1 worse, 0 neither shown, None not compared; its clause
    of the reason; and whether the difference would matter and nothing says if it is real, or a quality is not known."""

    direction: int | None
    text: str
    open: bool = False


def judge(summary: pd.DataFrame, reference: str, smallest: Mapping[str, float]) -> pd.DataFrame:
    """Return the rows of summary.csv of one model, which end with ``quality_from``, with the columns of their verdict.

    ``verdict`` is ``reference``, ``better``, ``worse``, ``mixed``, ``not distinguishable``, ``undecided`` (a difference
    without an interval, or unknown quality), ``not measured`` (status is not ok) or ``not comparable`` (its reference
    was not measured); ``verdict_reason`` is a sentence with the numbers; ``pareto`` says whether no other measured
    configuration is at least as good in memory, TPOT and PPL ratio and better in one of them (point estimates;
    quantities that no configuration has are left out); ``speedup_p_holm`` and ``ppl_ratio_p_holm`` are adjusted
    p-values. ``smallest`` effects are in percent: ``tpot``, ``memory`` and ``ppl``.
    """
    judged = summary.reset_index(drop=True)
    ok, is_reference = judged["status"] == "ok", judged["precision"] == reference
    is_base = is_reference & (judged["runtime"] == "generate")
    judged["speedup_p"] = judged["speedup_p"].where(ok & ~is_base)
    judged["ppl_ratio_p"] = judged["ppl_ratio_p"].where(ok & ~is_reference)
    judged["speedup_p_holm"] = holm(judged["speedup_p"])
    once = judged.dropna(subset="ppl_ratio_p").drop_duplicates("precision").set_index("precision")["ppl_ratio_p"]
    adjusted = judged["precision"].map(dict(zip(once.index, holm(once)))).astype(float)
    judged["ppl_ratio_p_holm"] = adjusted.where(judged["ppl_ratio_p"].notna())
    judged["pareto"] = _pareto(judged, is_reference)
    bases = {row["attention"]: row for _, row in judged[is_base & ok].iterrows()}
    verdicts = [
        _verdict(row, bases.get(row["attention"]), is_reference[index], smallest) for index, row in judged.iterrows()
    ]
    judged[["verdict", "verdict_reason"]] = pd.DataFrame(verdicts, index=judged.index)
    return judged


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
    reason = "; ".join([finding.text for finding in findings] + ([row["reason"]] if row["reason"] else []))
    directions = {finding.direction for finding in findings}
    if directions == {None}:
        return "not comparable", reason
    if {1, -1} <= directions:
        return "mixed", reason
    if any(finding.open for finding in findings):
        return "undecided", reason
    return "better" if 1 in directions else "worse" if -1 in directions else "not distinguishable", reason


def _decide(log_gain: float, p: float, smallest_percent: float, words: tuple[str, str], name: str) -> Finding:
    """Return the finding on a quantity with ``words`` for better and worse; a NaN ``p`` is that of no interval."""
    if abs(log_gain) > math.log1p(smallest_percent / 100):
        if p < SIGNIFICANCE:
            return Finding(1, words[0]) if log_gain > 0 else Finding(-1, words[1])
        if math.isnan(p):
            return Finding(0, f"{name} undecided", open=True)
    return Finding(0, f"{name} differs by too little to matter" if p < SIGNIFICANCE else f"{name} not distinguishable")


def _speed(row: pd.Series, base: pd.Series, smallest: float) -> Finding:
    if math.isnan(row["speedup"]):
        return Finding(None, "speed not compared")
    found = _decide(math.log(row["speedup"]), row["speedup_p_holm"], smallest, ("faster", "slower"), "speed")
    gain = f"{number(row['speedup'])} x ({span(row['speedup_low'], row['speedup_high'])})"
    times = f"TPOT {number(row['tpot_ms'])} ms against {number(base['tpot_ms'])} ms"
    return found._replace(text=f"{found.text}: {gain}, {times}")


def _memory(row: pd.Series, base: pd.Series, smallest: float) -> Finding:
    if math.isnan(row["memory_ratio"]):
        return Finding(None, "memory not compared")
    direction = _decide(-math.log(row["memory_ratio"]), 0.0, smallest, ("", ""), "").direction
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
    words = ("lower PPL", "higher PPL")
    found = _decide(-math.log(row["ppl_ratio"]), row["ppl_ratio_p_holm"], smallest, words, "PPL")
    ends = span(row["ppl_ratio_low"], row["ppl_ratio_high"], percent)
    clause = f"{found.text}: {percent(row['ppl_ratio'])} ({ends})"
    if not math.isnan(row["top1_agreement"]):
        clause += f", same first choice at {row['top1_agreement'] * 100:.1f} % of positions"
    return found._replace(text=clause)


def span(low: float, high: float, show: Callable[[float], str] = number) -> str:
    """Return "95 % 1.2 to 3.4", or "no interval"."""
    return "no interval" if math.isnan(low) else f"95 % {show(low)} to {show(high)}"


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
