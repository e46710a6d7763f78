"""Times between processes: one value per process, intervals on the log scale.

Tokens of one process share its memory layout, clocks and neighbors, so a process contributes one number (its median
TPOT, for example) and the interval comes from the spread between processes. Times are positive and their noise is
multiplicative, hence the log scale: the estimate is the ratio of geometric means, the interval Student's t.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from llmstudy.stats.estimate import Estimate, critical_value, student_p, without_interval

ROUNDING = 1e-12  # a smaller spread of logarithms is none: identical values, from a clock too coarse to differ


def ratio(over: Sequence[float], under: Sequence[float]) -> Estimate:
    """Return the ratio of two geometric means over processes, with a 95 % interval and the p-value against 1.

    Each side has one positive value for each process; NaN is left out. Degrees of freedom are Welch's (Biometrika 34,
    1947), rounded down to be conservative. A side with a single process leaves no interval.
    """
    sides = _logs(over), _logs(under)
    if not all(logs.size for logs in sides):
        return without_interval(math.nan)
    difference = float(sides[0].mean() - sides[1].mean())
    variances = [float(logs.var(ddof=1)) / logs.size if logs.size > 1 else math.nan for logs in sides]
    se = math.sqrt(sum(variances))
    if not se >= ROUNDING:
        return without_interval(difference).exp()
    squares = sum(variance**2 / (logs.size - 1) for variance, logs in zip(variances, sides))
    return student_interval(difference, se, math.floor(se**4 / squares + 1e-9)).exp()


def student_interval(value: float, se: float, degrees: float) -> Estimate:
    """Return the 95 % t-interval of a value and its p-value against 0; no interval without a standard error."""
    if not se >= ROUNDING:
        return without_interval(value)
    half = critical_value(degrees) * se
    return Estimate(value, value - half, value + half, se, student_p(value / se, degrees))


def _logs(samples: Sequence[float]) -> np.ndarray:
    values = np.asarray(samples, dtype=np.float64)
    values = values[~np.isnan(values)]
    if (values <= 0).any():
        raise ValueError(f"times must be positive, not {values.min()}")
    return np.log(values)
