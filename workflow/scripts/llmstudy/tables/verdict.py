"""Each configuration against the reference of its model: better, worse, mixed or not distinguishable, and why.

A difference counts if both hold:

1. it is real: its p-value, adjusted by Holm's method over all configurations of the same model and the same
   quantity, is below 0.05. For speed that is the t-test between processes, for quality the paired test of the PPL
   ratio over documents. Memory is one figure without a sampling error; there only the second condition applies.
2. it matters: it is larger than the smallest effect worth caring about (`verdict.smallest_effect_percent`).

The families are kept apart by quantity because each answers a question of its own ("which of these is faster?"); within
a family the chance of one false difference is at most 5 %. Quality is measured once per precision, so its family counts
precisions, speed's counts configurations. Without an interval (nothing was repeated, the text was too short) a
difference is neither real nor unreal: one that would matter leaves the verdict undecided, and so does a quality that
was not measured.
Top-1 agreement is told in the reason but decides nothing: it measures difference, not loss.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from llmstudy.errors import StudyError
from llmstudy.stats.multiplicity import holm
from llmstudy.tables.columns import CONFIGURATION, text
from llmstudy.tables.phrases import interval, number, percent

SIGNIFICANCE = 0.05
REQUIRED = ["study", "weights", *CONFIGURATION, "status"]
NUMBERS = [
    "e2e_ms",
    "tpot_ms",
    "tpot_low_ms",
    "tpot_high_ms",
    "tpot_degrees",
    "memory_gib",
    "speedup",
    "speedup_low",
    "speedup_high",
    "speedup_p",
    "memory_ratio",
    "ppl_ratio",
    "ppl_ratio_low",
    "ppl_ratio_high",
    "ppl_ratio_p",
    "kl_nats",
    "top1_agreement",
]
PARETO = ["memory_gib", "tpot_ms", "ppl_ratio"]


@dataclass(frozen=True)
class Finding:
    """One quantity of one configuration: 1 better, -1 worse, 0 neither shown, None not compared.

    `open`: the difference would matter and nothing says whether it is real, or a quality is not known.
    """

    direction: int | None
    text: str
    open: bool = False


def judge(summary: pd.DataFrame, reference: Mapping[str, str], smallest: Mapping[str, float]) -> pd.DataFrame:
    """Add verdict columns to `summary.csv`.

    `summary`: as of `summarise`; a missing column of numbers counts as not measured, a missing identity column raises
    StudyError. `reference`: reference precision per model. `smallest`: smallest effect in percent for the keys `tpot`,
    `memory` and `ppl`. Returns a copy with

    - `verdict`: `reference`, `better`, `worse`, `mixed`, `not distinguishable`, `undecided` (a difference without an
      interval, or unknown quality), `not measured` (status is not ok) or `not comparable` (its reference was not
      measured);
    - `verdict_reason`: one sentence with the numbers;
    - `pareto`: bool, no other measured configuration of the model is at least as good in memory, TPOT and PPL ratio and
      better in one of them (point estimates; quantities that no configuration of the model has are left out);
    - `speedup_p_holm`, `ppl_ratio_p_holm`: adjusted p-values.
    """
    judged = complete(summary)
    is_reference = judged["precision"] == judged["model"].map(dict(reference))
    is_base = is_reference & (judged["runtime"] == "generate")
    judged.loc[(judged["status"] != "ok") | is_base, "speedup_p"] = math.nan
    judged.loc[(judged["status"] != "ok") | is_reference, "ppl_ratio_p"] = math.nan
    judged[["speedup_p_holm", "ppl_ratio_p_holm"]] = math.nan
    judged["pareto"] = False
    for _, rows in judged.groupby(["study", "model"]):
        judged.loc[rows.index, "speedup_p_holm"] = holm(rows["speedup_p"].to_numpy())
        judged.loc[rows.index, "ppl_ratio_p_holm"] = _holm_over_precisions(rows)
        judged.loc[rows.index, "pareto"] = _pareto(rows, is_reference[rows.index])
    verdicts = [
        _verdict(row, _base(row, judged[is_base]), own, smallest)
        for (_, row), own in zip(judged.iterrows(), is_reference)
    ]
    judged[["verdict", "verdict_reason"]] = pd.DataFrame(verdicts, index=judged.index, columns=["verdict", "reason"])
    return judged


def _holm_over_precisions(rows: pd.DataFrame) -> np.ndarray:
    """Adjusted p-values of PPL: every precision counts once, however many configurations carry its figure."""
    once = rows.dropna(subset="ppl_ratio_p").drop_duplicates("precision").set_index("precision")["ppl_ratio_p"]
    adjusted = pd.Series(holm(once.to_numpy()), once.index)
    return rows["precision"].map(adjusted).where(rows["ppl_ratio_p"].notna()).to_numpy(dtype=float)


def complete(summary: pd.DataFrame) -> pd.DataFrame:
    """A copy with every column that a verdict reads; raises StudyError if one of the identity columns is missing."""
    missing = [column for column in REQUIRED if column not in summary]
    if missing:
        raise StudyError(f"summary.csv: column {missing[0]} is missing; it needs {', '.join(REQUIRED)}")
    columns = list(dict.fromkeys([*summary.columns, "reason", *NUMBERS]))
    table = summary.reset_index(drop=True).reindex(columns=columns)
    table[NUMBERS] = table[NUMBERS].astype(float)
    table["reason"] = text(table["reason"])
    return table


def _base(row: pd.Series, bases: pd.DataFrame) -> pd.Series | None:
    same = (bases["status"] == "ok") & (bases["study"] == row["study"])
    same &= (bases["model"] == row["model"]) & (bases["attention"] == row["attention"])
    return bases[same].iloc[0] if same.any() else None


def _verdict(
    row: pd.Series, base: pd.Series | None, is_reference: bool, smallest: Mapping[str, float]
) -> tuple[str, str]:
    if row["status"] != "ok":
        return "not measured", f"{row['status']}: {row['reason']}" if row["reason"] else str(row["status"])
    if base is None:
        return "not comparable", f"the reference with {row['attention']} attention under runtime eager was not measured"
    if row.name == base.name:
        return "reference", "the others are compared with this configuration"
    findings = [_speed(row, base, smallest["tpot"]), _memory(row, base, smallest["memory"])]
    findings.append(_quality(row, is_reference, smallest["ppl"]))
    told = [finding.text for finding in findings] + ([row["reason"]] if row["reason"] else [])
    return _word(findings), "; ".join(told)


def _word(findings: Sequence[Finding]) -> str:
    found = {finding.direction for finding in findings}
    if found == {None}:
        return "not comparable"
    if {1, -1} <= found:
        return "mixed"
    if any(finding.open for finding in findings):
        return "undecided"
    return "better" if 1 in found else "worse" if -1 in found else "not distinguishable"


def _counts(log_gain: float, p: float, smallest_percent: float) -> int:
    if not (p < SIGNIFICANCE and _matters(log_gain, smallest_percent)):
        return 0
    return 1 if log_gain > 0 else -1


def _matters(log_gain: float, smallest_percent: float) -> bool:
    return abs(log_gain) > math.log1p(smallest_percent / 100)


def _is_open(log_gain: float, p: float, smallest_percent: float) -> bool:
    """Whether a difference would matter and has no interval that says if it is real."""
    return math.isnan(p) and _matters(log_gain, smallest_percent)


def _neither(quantity: str, p: float, is_open: bool) -> str:
    if is_open:
        return f"{quantity} undecided"
    return f"{quantity} differs by too little to matter" if p < SIGNIFICANCE else f"{quantity} not distinguishable"


def _speed(row: pd.Series, base: pd.Series, smallest: float) -> Finding:
    if math.isnan(row["speedup"]):
        return Finding(None, "speed not compared")
    log_gain = math.log(row["speedup"])
    direction = _counts(log_gain, row["speedup_p_holm"], smallest)
    undecided = _is_open(log_gain, row["speedup_p_holm"], smallest)
    word = {1: "faster", -1: "slower", 0: _neither("speed", row["speedup_p_holm"], undecided)}[direction]
    return Finding(
        direction,
        f"{word}: {number(row['speedup'])} x ({interval(row['speedup_low'], row['speedup_high'])}), "
        f"TPOT {number(row['tpot_ms'])} ms against {number(base['tpot_ms'])} ms",
        undecided,
    )


def _memory(row: pd.Series, base: pd.Series, smallest: float) -> Finding:
    if math.isnan(row["memory_ratio"]):
        return Finding(None, "memory not compared")
    direction = _counts(-math.log(row["memory_ratio"]), 0.0, smallest)
    word = {1: "less memory", -1: "more memory", 0: "memory the same"}[direction]
    return Finding(
        direction,
        f"{word}: {number(row['memory_ratio'])} x, {number(row['memory_gib'])} GiB against "
        f"{number(base['memory_gib'])} GiB",
    )


def _quality(row: pd.Series, is_reference: bool, smallest: float) -> Finding:
    if row["weights"] == "synthetic":
        return Finding(None, "no quality: random weights")
    if is_reference:
        return Finding(None, "quality not compared: the reference's own precision")
    if math.isnan(row["ppl_ratio"]):
        return Finding(None, "quality not compared", open=True)
    log_gain = -math.log(row["ppl_ratio"])
    direction = _counts(log_gain, row["ppl_ratio_p_holm"], smallest)
    undecided = _is_open(log_gain, row["ppl_ratio_p_holm"], smallest)
    word = {1: "lower PPL", -1: "higher PPL", 0: _neither("PPL", row["ppl_ratio_p_holm"], undecided)}[direction]
    low, high = row["ppl_ratio_low"], row["ppl_ratio_high"]
    span = "no interval" if math.isnan(low) else f"95 % {percent(low)} to {percent(high)}"
    told = f"{word}: {percent(row['ppl_ratio'])} ({span})"
    if not math.isnan(row["top1_agreement"]):
        told += f", same first choice at {row['top1_agreement'] * 100:.1f} % of positions"
    return Finding(direction, told, undecided)


def _pareto(rows: pd.DataFrame, is_reference: pd.Series) -> np.ndarray:
    costs = rows[PARETO].copy()
    costs.loc[is_reference & costs["ppl_ratio"].isna(), "ppl_ratio"] = 1.0
    ok = rows["status"] == "ok"
    others = costs[ok & ~is_reference] if (ok & ~is_reference).any() else costs[ok]
    costs = costs[others.columns[others.notna().any()]].to_numpy()
    able = ok.to_numpy() & ~np.isnan(costs).any(axis=1)
    no_worse = (costs[:, None] <= costs[None, :]).all(axis=2)
    better = (costs[:, None] < costs[None, :]).any(axis=2)
    dominated = (no_worse & better & able[:, None]).any(axis=0)
    return able & ~dominated & (costs.shape[1] > 0)
