"""Numbers and names as sentences show them."""

import math
from collections.abc import Mapping


def number(value: float) -> str:
    """Three significant digits, thousands separated, never in exponent form above 0.0001."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if value == 0 or abs(value) >= 100:
        return f"{value:.0f}"
    if abs(value) < 1e-4:
        return f"{value:.1e}"
    return f"{value:.3g}"


def interval(low: float, high: float) -> str:
    """The interval in words, or why there is none."""
    return "no interval" if math.isnan(low) else f"95 % {number(low)} to {number(high)}"


def percent(ratio: float) -> str:
    """A ratio as a signed change: 1.021 is "+2.1 %"."""
    change = (ratio - 1) * 100
    if abs(change) >= 1000:
        return f"x {number(ratio)}"
    return f"{change:+.0f} %" if abs(change) >= 99.5 else f"{change:+.2g} %"


def name(row: Mapping) -> str:
    """A configuration: "int8-fused (sdpa-flash, graph)"."""
    return f"{row['precision']} ({row['attention']}, {row['runtime']})"
