"""The estimate that every comparison returns: a value with its 95 % interval."""

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Self

CONFIDENCE = 0.95
Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)  # 1.960


def exponential(x: float) -> float:
    """exp(x), infinite instead of an OverflowError: a broken model can have any loss."""
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf


@dataclass(frozen=True)
class Estimate:
    """A value, its 95 % interval, its standard error and the p-value against "no difference".

    `se` has the unit of `value`. Where the sample supports no interval `low`, `high` and `se` are NaN. `p` is NaN
    unless the value is a difference or a ratio.
    """

    value: float
    low: float
    high: float
    se: float
    p: float = math.nan

    def exp(self) -> Self:
        """The same estimate on the ratio scale: ends are exponentiated, the standard error by the delta method."""
        value = exponential(self.value)
        return type(self)(value, exponential(self.low), exponential(self.high), value * self.se, self.p)


def without_interval(value: float) -> Estimate:
    """An estimate whose sample supports no interval."""
    return Estimate(value, math.nan, math.nan, math.nan)


def log_error(low: float, high: float, critical: float = Z) -> float:
    """Standard error of the logarithm of a positive estimate, from its 95 % interval; NaN where there is none.

    `critical`: half width of the interval in standard errors, 1.96 unless a t-interval is known to lie behind it (the
    wider interval then gives a larger error: conservative).
    """
    return (math.log(high) - math.log(low)) / (2 * critical) if low > 0 else math.nan


def p_of_zero(difference: float, se: float) -> float:
    """Two-sided normal p-value of a difference with standard error `se`; without any spread 1 or 0."""
    if math.isnan(se):
        return math.nan
    if se == 0:
        return 1.0 if difference == 0 else 0.0
    return 2 * NormalDist().cdf(-abs(difference) / se)
