"""Texts and answers of a candidate beside those of its reference: token ids that differ, documents answered otherwise.

An answer is right or wrong on both sides. Only the flips, documents that one side alone answers correctly, tell the two
apart; equal accuracies can hide many of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import binomtest

from llmstudy.stats.estimate import CONFIDENCE, Estimate, without_interval


def first_divergence(reference: Sequence[int], candidate: Sequence[int]) -> int | None:
    """Return the position (from 0) of the first token that differs; None if the sequences are identical. If one is the
    beginning of the other, the position is the length of the shorter one."""
    same = None if len(reference) == len(candidate) else min(len(reference), len(candidate))
    return next((position for position, pair in enumerate(zip(reference, candidate)) if pair[0] != pair[1]), same)


def agreement_curve(divergences: Sequence[int | None], tokens: int) -> np.ndarray:
    """Return the share of prompts whose text is identical to the reference after k tokens, for k = 0 … ``tokens``, from
    the ``first_divergence`` of each; float64 (tokens + 1,), starting at 1 and never rising."""
    positions = np.array([tokens if position is None else position for position in divergences])
    return (positions[None, :] >= np.arange(tokens + 1)[:, None]).mean(axis=1)


def median_divergence(divergences: Sequence[int | None]) -> float:
    """Return the median position of the first difference, identical texts counting as beyond every position.

    NaN if half of them or more are identical: the median is then not reached, as in survival analysis. The median of
    the others alone would fall when a precision comes nearer to the reference and only its worst prompts still differ.
    """
    median = float(np.median([math.inf if position is None else position for position in divergences]))
    return median if math.isfinite(median) else math.nan


def distinct_n(tokens: Sequence[int], n: int) -> float:
    """Return distinct n-grams ÷ all n-grams of a text (Li et al., NAACL 2016); NaN if it is shorter than n tokens.
    1 − distinct-4 is the repetition rate seq-rep-4 of Welleck et al., ICLR 2020."""
    grams = [tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1)]
    return len(set(grams)) / len(grams) if grams else math.nan


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Return the 95 % interval of a share (Wilson, Journal of the American Statistical Association 22, 1927): within 0
    and 1, with a width also where all or none succeed."""
    interval = binomtest(successes, trials).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def paired_change(both: int, lost: int, gained: int, neither: int) -> Estimate:
    """Return the candidate's accuracy minus the reference's over the same documents, answered correctly by both sides,
    by the reference alone, by the candidate alone, by none; NaN for no documents.

    The interval joins the two Wilson intervals under the correlation phi of the sides, with a continuity correction if
    it is positive (Newcombe, Statistics in Medicine 17, 1998, pages 2635 to 2650, method 10); it is asymmetric, so
    ``se`` is NaN. The p-value is the exact one that flips go both ways equally often (McNemar, Psychometrika 12, 1947).
    Near the limit the two can disagree, and the test decides.
    """
    documents = both + lost + gained + neither
    if not documents:
        return without_interval(math.nan)
    old, new = (both + lost) / documents, (both + gained) / documents
    (old_low, old_high), (new_low, new_high) = wilson(both + lost, documents), wilson(both + gained, documents)
    margins = (both + lost) * (gained + neither) * (both + gained) * (lost + neither)
    excess = both * neither - lost * gained
    if excess > 0:
        excess = max(0.0, excess - documents / 2)
    phi = excess / math.sqrt(margins) if margins else 0.0  # 0 where a side is constant

    def half(candidate: float, reference: float) -> float:
        return math.sqrt(candidate**2 - 2 * phi * candidate * reference + reference**2)

    low, high = new - old - half(new - new_low, old_high - old), new - old + half(new_high - new, old - old_low)
    p = float(binomtest(lost, lost + gained).pvalue) if lost + gained else 1.0
    return Estimate(new - old, low, high, math.nan, p)
