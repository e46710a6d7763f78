"""Where one configuration overtakes another along a grid of batch sizes or context lengths."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from llmstudy.stats.bootstrap import RESAMPLES
from llmstudy.stats.estimate import critical_value
from llmstudy.stats.processes import ROUNDING


@dataclass(frozen=True)
class CrossOver:
    """The first change of leader along the grid.

    Attributes:
        kind: ``overtakes`` (behind at first, ahead from ``x`` on), ``falls behind`` (ahead up to ``x``), ``ahead
            throughout`` or ``behind throughout``.
        x: Where, in the unit of the grid; NaN where the leader never changes.
        low: Lower end of the 95 % interval: 0 outside the grid, NaN without repeats.
        high: Upper end: infinite outside the grid, NaN without repeats.
        changes: All changes of leader on the grid; more than one means that ``x`` alone does not describe them.
    """

    kind: str
    x: float
    low: float
    high: float
    changes: int


def cross_over(
    x: Sequence[float],
    reference: Sequence[Sequence[float]],
    candidate: Sequence[Sequence[float]],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> CrossOver:
    """Return the x at which the candidate's rate crosses the reference's, linear in log x and log rate.

    The interval is a bootstrap over repeats: the residuals of log rate about the mean of their point, scaled by
    sqrt(n / (n−1)) for the degree of freedom that the mean took (Davison and Hinkley, Bootstrap Methods and their
    Application, 1997, section 6.2), are pooled over the points of one series, redrawn, and the crossing is looked for
    again; percentiles are widened to those of Student's t with the degrees of freedom of the smaller pool. A resample
    without this crossing puts it outside the grid, on the side where it must then be.

    Args:
        x: (points,) at least two, positive and rising.
        reference: For each point the rates of its processes, positive; for times their inverses.
        candidate: Likewise, in the same unit; numbers of repeats may differ. A ratio of exactly 1 counts as behind.
        resamples: Number of draws.
        seed: Of the draws.

    Raises:
        ValueError: Fewer than two points, unequal lengths or an unsorted grid.
    """
    grid = np.asarray(x, dtype=np.float64)
    if len(grid) < 2 or (np.diff(grid) <= 0).any() or grid[0] <= 0:
        raise ValueError(f"a cross-over needs at least two positive, rising grid points, not {list(x)}")
    if not len(grid) == len(reference) == len(candidate):
        raise ValueError(f"{len(grid)} grid points, {len(reference)} reference and {len(candidate)} candidate samples")
    sides = [[np.log(np.asarray(sample, dtype=np.float64)) for sample in side] for side in (candidate, reference)]
    means = [np.array([sample.mean() for sample in side]) for side in sides]
    lead = means[0] - means[1]
    ahead = lead > 0
    changes = int((ahead[1:] != ahead[:-1]).sum())
    if not changes:
        kind = "ahead throughout" if ahead[0] else "behind throughout"
        return CrossOver(kind, math.nan, math.nan, math.nan, 0)
    upward = not ahead[0]
    estimate = float(_crossings(np.log(grid), lead[None], upward)[0])
    low, high = math.nan, math.nan
    noise = [_mean_noise(side, resamples, np.random.default_rng((seed, number))) for number, side in enumerate(sides)]
    if all(drawn is not None for drawn in noise):
        crossings = np.sort(_crossings(np.log(grid), lead + noise[0] - noise[1], upward))
        degrees = min(sum(len(sample) - 1 for sample in side) for side in sides)
        # order statistics, not interpolation: ends may be infinite
        tail = int(NormalDist().cdf(-critical_value(degrees)) * resamples)
        low, high = float(crossings[tail]), float(crossings[-tail - 1])
    return CrossOver("overtakes" if upward else "falls behind", estimate, low, high, changes)


def _mean_noise(side: list[np.ndarray], resamples: int, rng: np.random.Generator) -> np.ndarray | None:
    """Return bootstrap noise of the mean at each point, (resamples, points); None if no repeat differs from another."""
    repeated = (sample for sample in side if len(sample) > 1)
    scaled = [(sample - sample.mean()) * math.sqrt(len(sample) / (len(sample) - 1)) for sample in repeated]
    pool = np.concatenate(scaled) if scaled else np.zeros(1)
    if np.abs(pool).max() < ROUNDING:
        return None
    return np.stack([rng.choice(pool, (resamples, len(sample))).mean(axis=1) for sample in side], axis=1)


def _crossings(log_x: np.ndarray, lead: np.ndarray, upward: bool) -> np.ndarray:
    """Return the first crossing of zero in the wanted direction per row of ``lead`` (rows, points), as x: 0 for a row
    that is on the far side from the first point on, infinity for a row that never gets there."""
    beyond = lead > 0 if upward else lead <= 0
    first = beyond.argmax(axis=1)
    inside = np.maximum(first, 1)
    rows = np.arange(len(lead))
    left, right = lead[rows, inside - 1], lead[rows, inside]
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.clip(left / (left - right), 0.0, 1.0)
    crossings = np.exp(log_x[inside - 1] + share * (log_x[inside] - log_x[inside - 1]))
    crossings[beyond[:, 0]] = 0.0
    crossings[~beyond.any(axis=1)] = math.inf
    return crossings
