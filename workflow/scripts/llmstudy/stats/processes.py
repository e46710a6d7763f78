"""Times between processes: one value per process, intervals on the log scale.

Tokens of one process share its memory layout, clocks and neighbors, so a process contributes one number (its median
TPOT, for example) and the interval comes from the spread between processes. Times are positive and their noise is
multiplicative, hence the log scale: the estimate is the geometric mean, the interval Student's t.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from llmstudy.stats.estimate import Estimate, critical_value, is_supported, student_p, without_interval

ROUNDING = 1e-12  # a smaller spread of logarithms is none: identical values, from a clock too coarse to differ


@dataclass(frozen=True)
class Noise:
    """Spread between processes that several configurations share: standard deviation of the logarithm, and its degrees
    of freedom."""

    sd: float
    degrees: int


@dataclass(frozen=True)
class Repeatability:
    """Relative differences between two processes that measure the same (0.02: 2 % slower) over all pairs; the 95th
    percentile is NaN where the sample does not support it."""

    pairs: int
    median: float
    p95: float
    largest: float


def pooled_noise(samples: Iterable[Sequence[float]]) -> Noise | None:
    """Return the noise of a machine from the repeats of all its configurations; None if nothing was repeated.

    Two or three repeats say little about their own spread (t = 12.7 with one degree of freedom), yet the noise comes
    from the machine more than from the configuration, so the variances of the logarithms are pooled as in a one-way
    analysis of variance.
    """
    logs = [sample for sample in map(_logs, samples) if sample.size > 1]
    degrees = sum(sample.size - 1 for sample in logs)
    if not degrees:
        return None
    return Noise(math.sqrt(sum(((sample - sample.mean()) ** 2).sum() for sample in logs) / degrees), degrees)


def process_interval(samples: Sequence[float], noise: Noise | None = None) -> Estimate:
    """Return the geometric mean over processes, one positive value each, with its 95 % t-interval; NaN is left out.

    ``noise`` replaces the spread of the sample where it is larger, with its degrees of freedom: slightly too wide where
    all are equally noisy, too narrow where this configuration is several times noisier. Without it a single process
    has no interval.
    """
    logs = _logs(samples)
    if not logs.size:
        return without_interval(math.nan)
    se, degrees = _error(logs, noise)
    return student_interval(float(logs.mean()), se, degrees).exp()


def ratio(
    over: Sequence[float], under: Sequence[float], over_noise: Noise | None = None, under_noise: Noise | None = None
) -> Estimate:
    """Return the ratio of two geometric means over processes, with a 95 % interval and the p-value against 1.

    Each side has the error and degrees of freedom that ``process_interval`` gives it with its noise. Where both share
    one noise its degrees of freedom count, else Welch's (Biometrika 34, 1947), rounded down to be conservative. For
    times, the speed-up of a candidate is ``ratio(reference_ms, candidate_ms)``.
    """
    top, bottom = _logs(over), _logs(under)
    if not top.size or not bottom.size:
        return without_interval(math.nan)
    difference = float(top.mean() - bottom.mean())
    (top_se, top_degrees), (bottom_se, bottom_degrees) = _error(top, over_noise), _error(bottom, under_noise)
    se = math.hypot(top_se, bottom_se)
    if (over_noise is not None and over_noise == under_noise) or not se >= ROUNDING:
        degrees = top_degrees
    else:
        degrees = math.floor(se**4 / (top_se**4 / top_degrees + bottom_se**4 / bottom_degrees) + 1e-9)
    return student_interval(difference, se, degrees).exp()


def student_interval(value: float, se: float, degrees: float) -> Estimate:
    """Return the 95 % t-interval of a value and its p-value against 0; no interval without a standard error."""
    if not se >= ROUNDING:
        return without_interval(value)
    half = critical_value(degrees) * se
    return Estimate(value, value - half, value + half, se, student_p(value / se, degrees))


def same_against_same(samples: Iterable[Sequence[float]]) -> Repeatability | None:
    """Return how far processes that measure the same differ (the A/A comparison of a machine); None without a pair.

    ``samples`` has a positive value per process of each configuration and workload, NaN for none. Every two are a pair,
    whose difference is the slower over the faster, minus 1. Pairs that share a process are not independent, so the 95th
    percentile needs enough disjoint ones.
    """
    logs = [np.sort(_logs(sample)) for sample in samples]
    gaps = [sample[after] - sample[:after] for sample in logs for after in range(1, sample.size)]
    if not gaps:
        return None
    differences = np.expm1(np.concatenate(gaps))
    supported = is_supported(sum(sample.size // 2 for sample in logs), 95)
    p95 = float(np.percentile(differences, 95)) if supported else math.nan
    return Repeatability(differences.size, float(np.median(differences)), p95, float(differences.max()))


def _error(logs: np.ndarray, noise: Noise | None) -> tuple[float, int]:
    """Return the standard error of the mean and its degrees of freedom; NaN for a single value without ``noise``."""
    sd = float(logs.std(ddof=1)) if logs.size > 1 else math.nan
    if noise is None:
        return sd / math.sqrt(logs.size), logs.size - 1
    return max(noise.sd, sd) / math.sqrt(logs.size), noise.degrees  # max() keeps its first where the second is NaN


def _logs(samples: Sequence[float]) -> np.ndarray:
    values = np.asarray(samples, dtype=np.float64)
    values = values[~np.isnan(values)]
    if (values <= 0).any():
        raise ValueError(f"times must be positive, not {values.min()}")
    return np.log(values)
