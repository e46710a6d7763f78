"""Numbers and names as sentences show them."""

import math
from collections.abc import Mapping


def number(x: float) -> str:
    """Three significant digits, without an exponent for sizes that people read as they are."""
    return f"{x:.0f}" if 100 <= abs(x) < 1e6 else f"{x:.3g}"


def interval(low: float, high: float) -> str:
    """The interval in words, or why there is none."""
    return "no interval" if math.isnan(low) else f"95 % {number(low)} to {number(high)}"


def percent(ratio: float) -> str:
    """A ratio as a signed change: 1.021 is "+2.1 %"."""
    return f"{(ratio - 1) * 100:+.2g} %" if abs(ratio - 1) < 10 else f"x {number(ratio)}"


def name(row: Mapping) -> str:
    """A configuration: "int8-fused (sdpa-flash, graph)"."""
    return f"{row['precision']} ({row['attention']}, {row['runtime']})"
