"""Shares of documents answered correctly: one interval, the paired change of two, and the exact test of its flips.

The unit is the document, answered right or wrong by both sides. Only the flips, documents that one side alone answers
correctly, tell the two apart; equal accuracies can hide many of them.
"""

import math

from llmstudy.stats.estimate import Estimate, Z


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson, Journal of the American Statistical Association 22, 1927); NaN for no trials.

    Stays within 0 and 1, and has a width also where all or none succeed.
    """
    if not trials:
        return math.nan, math.nan
    share = successes / trials
    middle = (share + Z**2 / (2 * trials)) / (1 + Z**2 / trials)
    half = Z / (1 + Z**2 / trials) * math.sqrt(share * (1 - share) / trials + Z**2 / (4 * trials**2))
    # At the ends the formula gives 0 and 1 but for rounding.
    return (middle - half if successes else 0.0), (middle + half if successes < trials else 1.0)


def paired_change(both: int, lost: int, gained: int, neither: int) -> Estimate:
    """Candidate's accuracy minus the reference's on the same documents, its interval, and the exact McNemar p.

    `both` answered correctly by both sides, `lost` by the reference alone, `gained` by the candidate alone. The
    interval joins the two Wilson intervals under the correlation of the sides, which is lowered for small samples
    (Newcombe, Statistics in Medicine 17, 1998, pages 2635 to 2650, method 10); it is asymmetric, so `se` is NaN. The
    test is exact and the interval is not: near the limit they can disagree, and the test decides. NaN for no documents.
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
    return Estimate(new - old, low, high, math.nan, mcnemar_exact(lost, gained))


def _correlation(both: int, lost: int, gained: int, neither: int) -> float:
    """Phi of the 2 x 2 table; a positive one with Newcombe's continuity correction; 0 where a side is constant."""
    margins = (both + lost) * (gained + neither) * (both + gained) * (lost + neither)
    if not margins:
        return 0.0
    excess = both * neither - lost * gained
    if excess > 0:
        excess = max(0.0, excess - (both + lost + gained + neither) / 2)
    return excess / math.sqrt(margins)


def mcnemar_exact(lost: int, gained: int) -> float:
    """Two-sided exact p-value that flips go both ways equally often (McNemar, Psychometrika 12, 1947): a sign test.

    Twice the smaller tail of a binomial of `lost + gained` trials with probability 1/2, at most 1; in whole numbers,
    so that it is exact for any number of flips.
    """
    flips, fewer = lost + gained, min(lost, gained)
    term = tail = 1  # binomial coefficient flips over 0
    for taken in range(fewer):
        term = term * (flips - taken) // (taken + 1)
        tail += term
    return min(1.0, 2 * tail / 2**flips)
