"""Adjustment for many comparisons."""

import numpy as np


def holm(p_values: np.ndarray) -> np.ndarray:
    """Holm's step-down adjusted p-values (Scandinavian Journal of Statistics 6, 1979), float64, same order.

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
