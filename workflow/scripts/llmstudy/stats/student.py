"""Student's t distribution for whole degrees of freedom, in closed form.

Abramowitz and Stegun (1964), 26.7.3 and 26.7.4, give P(|T| <= t) as a finite sum, so that no further library is
needed.
"""

import math
from functools import lru_cache


def central_probability(t: float, degrees: int) -> float:
    """P(|T| <= |t|) for Student's t with `degrees` >= 1 degrees of freedom."""
    if degrees < 1:
        raise ValueError(f"degrees of freedom must be at least 1, not {degrees}")
    angle = math.atan2(abs(t), math.sqrt(degrees))
    cosine, sine = math.cos(angle), math.sin(angle)
    if degrees == 1:
        return 2 * angle / math.pi
    odd = degrees % 2
    term = cosine if odd else 1.0
    total = term
    for k in range(2 + odd, degrees, 2):
        term *= (k - 1) / k * cosine**2
        total += term
    probability = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return min(1.0, probability)


def two_sided_p(t: float, degrees: int) -> float:
    """P(|T| > |t|); NaN for a NaN statistic. Below about 1e-15 it is 0."""
    return math.nan if math.isnan(t) else max(0.0, 1 - central_probability(t, degrees))


@lru_cache(maxsize=1024)
def critical_value(degrees: int, confidence: float = 0.95) -> float:
    """The t with P(|T| <= t) = `confidence`: 12.706 for one degree of freedom at 95 %, 1.960 in the limit."""
    low, high = 0.0, 2.0
    while central_probability(high, degrees) < confidence:
        high *= 2
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if central_probability(middle, degrees) < confidence else (low, middle)
    return (low + high) / 2
