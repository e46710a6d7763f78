"""The point where one configuration overtakes another along a grid of batch sizes or context lengths."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from llmstudy.stats.estimate import critical_value
from llmstudy.stats.processes import ROUNDING
from llmstudy.stats.quality import RESAMPLES


@dataclass(frozen=True)
class CrossOver:
    """The first change of leader along the grid, and the number of changes: more than one means that ``x`` alone does
    not describe them.

    ``kind`` is ``overtakes`` (behind at first, ahead from ``x`` on), ``falls behind`` (ahead up to ``x``), ``ahead
    throughout`` or ``behind throughout``; ``x`` is in the unit of the grid, NaN where the leader never changes. The
    ends of its 95 % interval are NaN without repeats, 0 and infinite where they lie outside the grid.
    """

    kind: str
    x: float = math.nan
    low: float = math.nan
    high: float = math.nan
    changes: int = 0


def cross_over(
    x: Sequence[float], reference: Sequence[Sequence[float]], candidate: Sequence[Sequence[float]]
) -> CrossOver:
    """Return the x at which the candidate's rate crosses the reference's, linear in log x and log rate.

    At each of the two or more positive, rising grid points both have the positive rates of their processes, in one unit
    and in any number; for times their inverses. A ratio of exactly 1 counts as behind.

    The interval is a bootstrap over repeats: the residuals of log rate about the mean of their point, scaled by
    sqrt(n / (n−1)) for the degree of freedom that the mean took (Davison and Hinkley, Bootstrap Methods and their
    Application, 1997, section 6.2), are pooled over the points of one series, redrawn, and the crossing is looked for
    again; percentiles are widened to those of Student's t with the degrees of freedom of the smaller pool. A resample
    without this crossing puts it outside the grid, on the side where it must then be.
    """
    log_x = np.log(np.asarray(x, dtype=np.float64))
    sides = [[np.log(np.asarray(sample, dtype=np.float64)) for sample in side] for side in (candidate, reference)]
    lead = np.subtract(*([sample.mean() for sample in side] for side in sides))
    ahead = lead > 0
    changes = int((ahead[1:] != ahead[:-1]).sum())
    if not changes:
        return CrossOver("ahead throughout" if ahead[0] else "behind throughout")
    upward = not ahead[0]
    low, high = math.nan, math.nan
    noise = [_mean_noise(side, np.random.default_rng((0, number))) for number, side in enumerate(sides)]
    if all(drawn is not None for drawn in noise):
        crossings = np.sort(_crossings(log_x, lead + noise[0] - noise[1], upward))
        degrees = min(sum(len(sample) - 1 for sample in side) for side in sides)
        # order statistics, not interpolation: ends may be infinite
        tail = int(NormalDist().cdf(-critical_value(degrees)) * RESAMPLES)
        low, high = float(crossings[tail]), float(crossings[-tail - 1])
    crossing = float(_crossings(log_x, lead[None], upward)[0])
    return CrossOver("overtakes" if upward else "falls behind", crossing, low, high, changes)


def _mean_noise(side: list[np.ndarray], rng: np.random.Generator) -> np.ndarray | None:
    """Return bootstrap noise of the mean at each point, (resamples, points); None if no repeat differs from another."""
    repeated = (sample for sample in side if len(sample) > 1)
    scaled = [(sample - sample.mean()) * math.sqrt(len(sample) / (len(sample) - 1)) for sample in repeated]
    pool = np.concatenate(scaled) if scaled else np.zeros(1)
    if np.abs(pool).max() < ROUNDING:
        return None
    return np.stack([rng.choice(pool, (RESAMPLES, len(sample))).mean(axis=1) for sample in side], axis=1)


def _crossings(log_x: np.ndarray, lead: np.ndarray, upward: bool) -> np.ndarray:
    """Return the first crossing of zero in the wanted direction per row of ``lead`` (rows, points), as x: 0 for a row
    that is on the far side from the first point on, infinity for a row that never gets there."""
    beyond = lead > 0 if upward else lead <= 0
    inside = np.maximum(beyond.argmax(axis=1), 1)
    rows = np.arange(len(lead))
    left, right = lead[rows, inside - 1], lead[rows, inside]
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.clip(left / (left - right), 0.0, 1.0)
    crossings = np.exp(log_x[inside - 1] + share * (log_x[inside] - log_x[inside - 1]))
    crossings[beyond[:, 0]] = 0.0
    crossings[~beyond.any(axis=1)] = math.inf
    return crossings
