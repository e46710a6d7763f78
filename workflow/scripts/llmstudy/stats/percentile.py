"""Percentiles, only where the sample supports them."""

import math

import numpy as np

BEYOND = 10  # observations that must lie beyond a percentile before it is more than a name for an extreme


def is_supported(size: int, q: float) -> bool:
    """Whether 10 of `size` observations lie beyond the `q`-th percentile (0 < q < 100), on its shorter side."""
    # 1e-9: 10 000 x 0.1 % is 9.999… in floating point
    return size * min(q, 100 - q) / 100 >= BEYOND - 1e-9


def percentile_if_supported(sample: np.ndarray, q: float) -> float:
    """The `q`-th percentile (0 < q < 100) of `sample`, or NaN if fewer than 10 observations lie beyond it.

    "Beyond" is the shorter side: the median needs 20 observations, the 90th percentile 100, the 99.9th 10 000. Linear
    interpolation between order statistics.
    """
    if not 0 < q < 100:
        raise ValueError(f"percentile must lie between 0 and 100, not {q}")
    sample = np.asarray(sample, dtype=np.float64)
    return float(np.percentile(sample, q)) if is_supported(sample.size, q) else math.nan
