"""Shares of documents answered correctly: one interval, the paired change of two, and the exact test of its flips.

The unit is the document, answered right or wrong by both sides. Only the flips, documents that one side alone answers
correctly, tell the two apart; equal accuracies can hide many of them.
"""

from __future__ import annotations

import math

from scipy.stats import binomtest

from llmstudy.stats.estimate import CONFIDENCE, Estimate


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Return the 95 % interval of a share (Wilson, Journal of the American Statistical Association 22, 1927): within 0
    and 1, with a width also where all or none succeed. NaN for no trials."""
    if not trials:
        return math.nan, math.nan
    interval = binomtest(successes, trials).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def mcnemar(lost: int, gained: int) -> float:
    """Return the two-sided exact p-value that flips go both ways equally often (McNemar, Psychometrika 12, 1947)."""
    return float(binomtest(lost, lost + gained).pvalue) if lost + gained else 1.0


def paired_change(both: int, lost: int, gained: int, neither: int) -> Estimate:
    """Return the candidate's accuracy minus the reference's on the same documents, with the exact McNemar p.

    The interval joins the two Wilson intervals under the correlation of the sides, which is lowered for small samples
    (Newcombe, Statistics in Medicine 17, 1998, pages 2635 to 2650, method 10); it is asymmetric, so ``se`` is NaN. The
    test is exact and the interval is not: near the limit they can disagree, and the test decides.

    Args:
        both: Documents answered correctly by both sides.
        lost: By the reference alone.
        gained: By the candidate alone.
        neither: By none. No documents at all give NaN.
    """
    documents = both + lost + gained + neither
    if not documents:
        return Estimate(math.nan, math.nan, math.nan, math.nan)
    old, new = (both + lost) / documents, (both + gained) / documents
    (old_low, old_high), (new_low, new_high) = wilson(both + lost, documents), wilson(both + gained, documents)
    phi = _correlation(both, lost, gained, neither)
    down, up = new - new_low, old_high - old
    low = (new - old) - math.sqrt(down**2 - 2 * phi * down * up + up**2)
    up, down = new_high - new, old - old_low
    high = (new - old) + math.sqrt(up**2 - 2 * phi * up * down + down**2)
    return Estimate(new - old, low, high, math.nan, mcnemar(lost, gained))


def _correlation(both: int, lost: int, gained: int, neither: int) -> float:
    """Return phi of the 2 × 2 table, with Newcombe's continuity correction if positive; 0 where a side is constant."""
    margins = (both + lost) * (gained + neither) * (both + gained) * (lost + neither)
    if not margins:
        return 0.0
    excess = both * neither - lost * gained
    if excess > 0:
        excess = max(0.0, excess - (both + lost + gained + neither) / 2)
    return excess / math.sqrt(margins)
