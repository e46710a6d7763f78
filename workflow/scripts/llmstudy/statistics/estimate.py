"""The estimate that every comparison returns: a value with its 95 % interval."""

import math
from dataclasses import dataclass
from typing import Self

CONFIDENCE = 0.95


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

    def negated(self) -> Self:
        """The same estimate with its sign turned (on the log scale: the inverse ratio)."""
        return type(self)(-self.value, -self.high, -self.low, self.se, self.p)


def without_interval(value: float) -> Estimate:
    """An estimate whose sample supports no interval."""
    return Estimate(value, math.nan, math.nan, math.nan)
