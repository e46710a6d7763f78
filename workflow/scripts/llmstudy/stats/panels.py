"""Configurations compared within panels: ratios of times of the same round, intervals over processes, what to take.

A process gives one value for each pair, the median over its rounds of log (base time ÷ own time). The estimate is the
mean over the P processes. The spread of these values about their means is pooled over the configurations of one family,
those that share a runtime. All values of a process contain the base's noise, so with equal noise they correlate by 1/2,
their sample variances by 1/4, and the mean of m such variances has the variance of one with

    (P − 1) m / (1 + (m − 1) / 4)

degrees of freedom (Satterthwaite, Biometrics Bulletin 2, 1946). The interval of each comparison is simultaneous over
all comparisons with one base (Dunnett, Journal of the American Statistical Association 50, 1955).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.optimize import brentq
from scipy.special import gammaincinv, ndtr
from scipy.stats import nct

from llmstudy.stats.estimate import CONFIDENCE, critical_value

Key = Hashable
Block = Mapping[Key, np.ndarray]  # one process and group: the times of each configuration, one a round
SAVING = 0.05  # share of the device's memory that is worth a slower configuration


@dataclass(frozen=True)
class Comparison:
    """A configuration against a base, on the ratio scale: above 1 it is faster.

    Attributes:
        value: base time ÷ own time.
        low, high: the 95 % interval, simultaneous over all comparisons with that base; NaN below two processes.
        bound_low, bound_high: the 90 % interval of this comparison alone, two one-sided tests at 5 %.
        processes: that hold both; of the side with fewer where none holds both.
    """

    value: float
    low: float
    high: float
    bound_low: float
    bound_high: float
    processes: int


@dataclass(frozen=True)
class Choice:
    """The configuration that is taken, the fastest by estimate, and those that are neither shown to be slower than the
    taken one nor shown to be as fast, the fastest first."""

    taken: Key
    fastest: Key
    unsettled: tuple[Key, ...]


def compare(blocks: Sequence[Block], base: Key, family: Mapping[Key, Hashable]) -> dict[Key, Comparison]:
    """Return the comparison of every other configuration with a base.

    Configurations that no block holds together with the base (measured in processes of their own) are compared
    between processes instead: the geometric means, with the spread of the logarithms pooled over a family.

    Args:
        blocks: positive times, NaN for a call that failed; the arrays of one block have a value for each round.
        base: what the others are compared with.
        family: key → what shares its spread.
    """
    keys = [key for key in dict.fromkeys(key for block in blocks for key in block) if key != base]
    paired = {key: logs for key in keys if (logs := _paired(blocks, base, key)).size}
    alone = {key: _single(blocks, key) for key in [*keys, base]}
    found = {}
    for key in keys:
        if key in paired:
            found[key] = _within(paired, key, family, len(keys))
        elif alone[base].size:
            found[key] = _between(alone, base, key, family, len(keys))
    return found


def _paired(blocks: Sequence[Block], base: Key, key: Key) -> np.ndarray:
    """Return log (base ÷ own) of each process that holds both, the median over its rounds."""
    return np.array([float(np.nanmedian(np.log(one[base] / one[key]))) for one in blocks if key in one and base in one])


def _single(blocks: Sequence[Block], key: Key) -> np.ndarray:
    """Return the logarithm of the median time of each process."""
    return np.array([float(np.nanmedian(np.log(one[key]))) for one in blocks if key in one])


def _within(paired: Mapping[Key, np.ndarray], key: Key, family: Mapping[Key, Hashable], number: int) -> Comparison:
    logs = [values for other, values in paired.items() if family[other] == family[key] and len(values) > 1]
    value, processes = float(paired[key].mean()), len(paired[key])
    if processes < 2:
        return _comparison(value, math.nan, math.nan, number, processes)
    freedom = sum(len(values) - 1 for values in logs)
    variance = sum(((values - values.mean()) ** 2).sum() for values in logs) / freedom
    degrees = freedom / (1 + (len(logs) - 1) / 4)
    return _comparison(value, math.sqrt(variance / processes), degrees, number, processes)


def _between(
    alone: Mapping[Key, np.ndarray], base: Key, key: Key, family: Mapping[Key, Hashable], number: int
) -> Comparison:
    value, processes = float(alone[base].mean() - alone[key].mean()), min(len(alone[base]), len(alone[key]))
    variances, freedoms = [], []
    for side in (base, key):
        logs = [values for other, values in alone.items() if family[other] == family[side] and len(values) > 1]
        freedoms.append(sum(len(values) - 1 for values in logs))
        total = sum(((values - values.mean()) ** 2).sum() for values in logs)
        variances.append(total / freedoms[-1] / len(alone[side]) if freedoms[-1] else math.nan)
    return _comparison(value, math.sqrt(sum(variances)), min(freedoms), number, processes)


def _comparison(value: float, se: float, degrees: float, number: int, processes: int) -> Comparison:
    if math.isnan(se):
        return Comparison(math.exp(value), math.nan, math.nan, math.nan, math.nan, processes)
    half, bound = simultaneous(number, degrees) * se, critical_value(degrees, 2 * CONFIDENCE - 1) * se
    ends = (value, value - half, value + half, value - bound, value + bound)
    return Comparison(*map(math.exp, ends), processes)


@cache
def simultaneous(comparisons: int, degrees: float) -> float:
    """Return the c with P(all |Tᵢ| ≤ c) = 95 % for comparisons with one base, whose correlation is 1/2 (Dunnett 1955).

    Given the base's noise z and the ratio s of the estimated to the true spread, the comparisons are independent:
    P = E [Φ(z + √2 c s) − Φ(z − √2 c s)]^m, integrated by Gauss quadrature.
    """
    z, of_z = np.polynomial.hermite_e.hermegauss(64)
    u, of_u = np.polynomial.legendre.leggauss(64)
    s = np.sqrt(2 * gammaincinv(degrees / 2, (u + 1) / 2) / degrees)

    def beyond(c: float) -> float:
        t = math.sqrt(2) * c * s[:, None]
        return (of_u / 2) @ ((ndtr(z + t) - ndtr(z - t)) ** comparisons) @ (of_z / of_z.sum()) - CONFIDENCE

    return float(brentq(beyond, 0.5, 1e4))


def verdict(comparison: Comparison, margin: float) -> str:
    """Return ``same``, ``faster``, ``slower`` or ``not enough data``.

    ``same``: two one-sided tests put the ratio within 1 / (1 + margin) and 1 + margin (Schuirmann, Journal of
    Pharmacokinetics and Biopharmaceutics 15, 1987); a difference that small does not matter, however certain.
    """
    if 1 / (1 + margin) < comparison.bound_low and comparison.bound_high < 1 + margin:
        return "same"
    return "faster" if comparison.low > 1 else "slower" if comparison.high < 1 else "not enough data"


def power(sd: float, processes: int, degrees: float, comparisons: int, ratio: float) -> float:
    """Return the share of studies in which the simultaneous interval shows which way a true ratio differs from 1.

    ``sd`` is the true spread between processes of the logarithm of the ratio. Non-central t.
    """
    shift, limit = abs(math.log(ratio)) * math.sqrt(processes) / sd, simultaneous(comparisons, degrees)
    return float(nct.sf(limit, degrees, shift))  # the other tail, below 2.5 %, is no finding


def choose(
    blocks: Sequence[Block],
    candidates: Sequence[Key],
    family: Mapping[Key, Hashable],
    memory_gib: Mapping[Key, float],
    device_gib: float,
    margin: float,
) -> Choice:
    """Return what to take of the candidates: the fastest by estimate, unless another is shown to be within the margin
    of it (one-sided, 95 %) and saves at least 5 % of the device's memory; of several such the one with least memory."""
    held = [{key: block[key] for key in candidates if key in block} for block in blocks]
    first = candidates[0]
    gains = {first: 1.0} | {key: one.value for key, one in compare(held, first, family).items()}
    fastest = max(gains, key=gains.get)
    against = compare(held, fastest, family)
    near = [
        key
        for key, one in against.items()
        if one.bound_low > 1 / (1 + margin) and memory_gib[fastest] - memory_gib[key] >= SAVING * device_gib
    ]
    taken = min(near, key=memory_gib.get) if near else fastest
    others = compare(held, taken, family) if near else against
    unsettled = [key for key, one in others.items() if verdict(one, margin) in ("not enough data", "faster")]
    return Choice(taken, fastest, tuple(sorted(unsettled, key=lambda key: -others[key].value)))
