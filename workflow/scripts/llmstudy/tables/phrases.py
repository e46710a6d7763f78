"""Numbers and names as sentences show them."""

from __future__ import annotations

import math
from collections.abc import Mapping


def number(value: float) -> str:
    """Return three significant digits, thousands separated, without an exponent above 0.0001."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if value == 0 or abs(value) >= 100:
        return f"{value:.0f}"
    if abs(value) < 1e-4:
        return f"{value:.1e}"
    return f"{value:.3g}"


def interval(low: float, high: float) -> str:
    """Return "95 % 1.2 to 3.4", or "no interval"."""
    return "no interval" if math.isnan(low) else f"95 % {number(low)} to {number(high)}"


def percent(ratio: float) -> str:
    """Return a ratio as a signed change: "+2.1 %" for 1.021."""
    change = (ratio - 1) * 100
    if abs(change) >= 1000:
        return f"x {number(ratio)}"
    return f"{change:+.0f} %" if abs(change) >= 99.5 else f"{change:+.2g} %"


def name(row: Mapping) -> str:
    """Return the name of a configuration: "int8-fused (sdpa-flash, graph)"."""
    return f"{row['precision']} ({row['attention']}, {row['runtime']})"
