"""Latency between processes: one value per process, intervals on the log scale.

Tokens of one process share its memory layout, clocks and neighbours, so a process contributes one number (its median
TPOT, for example) and the interval comes from the spread between processes. Times are positive and their noise is
multiplicative, hence the log scale: the estimate is the geometric mean, the interval Student's t.
"""

import math
from collections.abc import Sequence

import numpy as np

from llmstudy.statistics.estimate import Estimate, without_interval
from llmstudy.statistics.student import critical_value, two_sided_p

ROUNDING = 1e-12  # a smaller spread of logarithms is no spread: identical values, from a clock too coarse to differ


def process_interval(samples: Sequence[float]) -> Estimate:
    """Geometric mean over processes with its 95 % t-interval; NaN ends with a single process.

    `samples`: one positive value per process, in any unit; missing values (NaN) are left out. An empty sample gives
    NaN.
    """
    logs = _logs(samples)
    if not logs.size:
        return without_interval(math.nan)
    mean = float(logs.mean())
    if logs.size == 1:
        return without_interval(math.exp(mean))
    se = float(logs.std(ddof=1)) / math.sqrt(logs.size)
    if se < ROUNDING:
        return without_interval(math.exp(mean))
    half = critical_value(logs.size - 1) * se
    return Estimate(mean, mean - half, mean + half, se).exp()


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> Estimate:
    """Ratio of two geometric means over processes, with a 95 % interval and the p-value against 1.

    Welch's unequal-variance interval (Biometrika 34, 1947) on the log scale, its degrees of freedom rounded down to be
    conservative. With a single process on either side the interval and p are NaN. For times, the speedup of
    a candidate is `ratio(reference_ms, candidate_ms)`; for rates it is `ratio(candidate, reference)`.
    """
    top, bottom = _logs(numerator), _logs(denominator)
    if not top.size or not bottom.size:
        return without_interval(math.nan)
    difference = float(top.mean() - bottom.mean())
    if min(top.size, bottom.size) < 2:
        return without_interval(math.exp(difference))
    errors = [float(logs.std(ddof=1)) / math.sqrt(logs.size) for logs in (top, bottom)]
    return welch(difference, errors, (top.size, bottom.size)).exp()


def welch(difference: float, errors: Sequence[float], sizes: Sequence[int]) -> Estimate:
    """Difference of two independent means from their standard errors and sample sizes, p-value against 0.

    Degrees of freedom by Welch and Satterthwaite, rounded down. Without a standard error on both sides: no interval.
    """
    se = math.hypot(*errors)
    if min(sizes) < 2 or not se >= ROUNDING:
        return without_interval(difference)
    weights = sum(error**4 / (size - 1) for error, size in zip(errors, sizes))
    degrees = max(1, math.floor(se**4 / weights + 1e-9))
    half = critical_value(degrees) * se
    return Estimate(difference, difference - half, difference + half, se, two_sided_p(difference / se, degrees))


def same_against_same(samples: Sequence[float]) -> Estimate:
    """A/A comparison: the ratio of a configuration to itself, its processes in run order split into every other one.

    Alternating halves share slow drift of the machine equally. The interval should contain 1 in 95 of 100 studies and
    its width is the smallest difference that this many processes can show. Needs four processes for an interval.
    """
    return ratio(list(samples)[0::2], list(samples)[1::2])


def _logs(samples: Sequence[float]) -> np.ndarray:
    values = np.asarray(samples, dtype=np.float64)
    values = values[~np.isnan(values)]
    if (values <= 0).any():
        raise ValueError(f"latencies must be positive, not {values.min()}")
    return np.log(values)
