"""The base of all modules here: a value with its interval, Student's t, percentiles, many comparisons."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from scipy.special import stdtr, stdtrit

CONFIDENCE = 0.95
BEYOND = 10  # observations that must lie beyond a percentile before it is more than a name for an extreme


@dataclass(frozen=True)
class Estimate:
    """A value with the ends of its 95 % interval and its standard error in the same unit, NaN where the sample supports
    none, and the two-sided p-value against 0, after ``exp`` against 1: only a difference or a ratio has a use for it.
    """

    value: float
    low: float
    high: float
    se: float
    p: float = math.nan

    def exp(self) -> Self:
        """Return the estimate on the ratio scale: ends exponentiated, the standard error by the delta method."""
        value = exponential(self.value)
        return type(self)(value, exponential(self.low), exponential(self.high), value * self.se, self.p)


def without_interval(value: float) -> Estimate:
    """Return an estimate whose sample supports no interval."""
    return Estimate(value, math.nan, math.nan, math.nan)


def exponential(x: float) -> float:
    """Return exp(x), infinite instead of an error: a broken model can have any loss."""
    with np.errstate(over="ignore"):
        return float(np.exp(x))


def student_p(t: float, degrees: float) -> float:
    """Return P(|T| > |t|) of Student's t; NaN for a NaN statistic."""
    return 2 * float(stdtr(degrees, -abs(t)))


def critical_value(degrees: float, confidence: float = CONFIDENCE) -> float:
    """Return the t with P(|T| ≤ t) = ``confidence``: 12.706 for 95 % and one degree of freedom, 1.960 in the limit."""
    return float(stdtrit(degrees, (1 + confidence) / 2))


def is_supported(size: int, q: float) -> bool:
    """Return whether 10 of ``size`` observations lie beyond the ``q``-th percentile (0 < q < 100), on its shorter
    side: the median needs 20 observations, the 90th percentile 100, the 99.9th 10 000."""
    # 1e-9: 10 000 × 0.1 % is 9.999… in floating point
    return size * min(q, 100 - q) / 100 >= BEYOND - 1e-9


def percentile(sample: np.ndarray, q: float) -> float:
    """Return the ``q``-th percentile by linear interpolation, NaN where the sample does not support it."""
    sample = np.asarray(sample, dtype=np.float64)
    return float(np.percentile(sample, q)) if is_supported(sample.size, q) else math.nan


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Return Holm's step-down adjusted p-values (Scandinavian Journal of Statistics 6, 1979), float64, same order.

    Rejecting where the adjusted value is below 0.05 keeps the chance of any false difference in the family at 5 %,
    however the comparisons depend on each other. NaN stays NaN and does not count towards the family.
    """
    p_values = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(p_values.shape, np.nan)
    known = np.flatnonzero(~np.isnan(p_values))
    order = known[np.argsort(p_values[known], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p_values[order] * factors))
    return adjusted
