"""Speed-ups from panels: processes that call every configuration once a round.

A process gives one number per configuration: the median over rounds of the log ratio of the base's time to its own in
the same round. What slows a round slows both and cancels; a burst that hits one call is one value of the median.
Intervals come from the spread of these numbers between processes:

- **Spread** is pooled over the configurations of one family (a runtime), never over families: a captured graph repeats
  within 0.05 %, launches from Python within 20 %. By simulation, intervals from the spread of each configuration alone
  hold together in 89 % of studies of three processes, not in 95 %.
- **Degrees of freedom.** Numbers that share a base correlate, by 1/2 where all are equally noisy. A variance pooled
  over m of them has (P-1) (tr S)² / tr S² degrees in P processes, S their covariance (Box 1954): for correlations r
  (P-1) m / (1 + (m-1) r²). In the base's own family r is 1/2. Another may be quieter than the base: r nears 1 and
  pooling adds nothing, so there r is estimated, at least 1/2. Counted so, intervals of three processes hold together
  in 97 %. The exact distribution of the pooled variance gives 95 %, but 94 % where the base is twice as noisy.
- **Simultaneous** 95 % intervals: Dunnett's quantile (JASA 50, 1955). **Same**: two one-sided 5 % tests (Schuirmann
  1987), so the 90 % interval of that comparison alone.
- **Aside**: a second call of the reference adds its spread to the pool. It is a check of the study, not a claim of it:
  its interval is for it alone, and it makes no other wider.
- **Unpaired**: where no round holds both, each is compared with a third key measured beside both (the reference of
  two groups), else by its times alone (processes of one configuration). Variances add up, the fewer degrees count.

Times may have leading axes, (..., rounds), for many studies at once: a ``Comparison`` then holds arrays.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.special import gammaincinv, ndtr, stdtrit

from llmstudy.stats.estimate import CONFIDENCE

ONE_SIDED = 0.95  # of each of the two tests of sameness
CORRELATION = 0.5  # of two log ratios that share their base, all equally noisy
SAVING = 0.05  # of the device's memory lets a configuration stand before a faster one

Key = Hashable
Block = Mapping[Key, np.ndarray]


@dataclass(frozen=True)
class Comparison:
    """Ratio of the base's time to a configuration's own (above 1: faster), the ends of its simultaneous 95 % interval,
    those of its 90 % interval alone, and the processes that hold both (if none does: of the one that has fewer). Ends
    are NaN below two processes, as is ``error``, the standard error of the log ratio, which has ``degrees``."""

    value: float
    low: float
    high: float
    bound_low: float
    bound_high: float
    processes: int
    error: float = math.nan
    degrees: float = math.nan


class Choice(NamedTuple):
    """Candidate to take, and those shown neither slower than it nor the same."""

    taken: Key
    unsettled: tuple[Key, ...]


class _Effect(NamedTuple):
    """Mean log ratio of a configuration, its standard error (NaN: none), degrees of freedom, number of processes."""

    mean: np.ndarray
    error: np.ndarray
    degrees: np.ndarray
    processes: np.ndarray


def compare(
    blocks: Sequence[Block], base: Key, family: Mapping[Key, Hashable], aside: Collection[Key] = ()
) -> dict[Key, Comparison]:
    """Return the comparison of every other key of ``family`` with the base.

    Blocks are processes: positive times, one a round, NaN where a call failed or the round was another group's.
    ``family`` names, for every key and the base, what shares its spread; keys ``aside`` do not count as comparisons.
    """
    effects = _effects(blocks, [key for key in family if key != base], base, family)
    links = {key: _link(blocks, key, base, family) for key, its in effects.items() if not its.processes.any()}
    for link in dict.fromkeys(links.values()):
        keys = [key for key in links if links[key] == link]
        found = _effects(blocks, [base, *keys], link, family)
        effects |= {key: _difference(found[key], found[base]) for key in keys}
    counted = {key: np.isfinite(effect.error).astype(int) for key, effect in effects.items()}
    comparisons = sum(count for key, count in counted.items() if key not in aside)
    return {key: _comparison(effect, counted[key] if key in aside else comparisons) for key, effect in effects.items()}


def verdict(comparison: Comparison, margin: float) -> str:
    """Return "same" (shown to differ by less than ``margin``: 0.1 is 10 %), "faster", "slower" or "not enough data"."""
    if comparison.bound_low >= 1 / (1 + margin) and comparison.bound_high <= 1 + margin:
        return "same"
    if comparison.low > 1:
        return "faster"
    return "slower" if comparison.high < 1 else "not enough data"


def choose(
    blocks: Sequence[Block],
    candidates: Sequence[Key],
    family: Mapping[Key, Hashable],
    memory_gib: Mapping[Key, float],
    device_gib: float,
    margin: float,
    aside: Collection[Key] = (),
) -> Choice:
    """Return which candidate to take: the fastest by estimate, or one that saves memory and is shown to be as good.

    Shown: the one-sided 95 % bound of its slowdown is within ``margin``. It must save 5 % of the device's memory; of
    several, that with the least is taken. The estimate is the speed-up over the key that most blocks hold.
    """
    common = max(family, key=lambda key: sum(key in block for block in blocks))
    speedups = {key: its.value for key, its in compare(blocks, common, family).items()} | {common: 1.0}
    fastest = max(candidates, key=lambda key: np.nan_to_num(speedups[key], nan=-math.inf))
    slowdown = compare(blocks, fastest, family, aside)
    close = [key for key in candidates if key != fastest and slowdown[key].bound_low >= 1 / (1 + margin)]
    saving = [key for key in close if memory_gib[fastest] - memory_gib[key] >= SAVING * device_gib]
    taken = min(saving, key=memory_gib.__getitem__, default=fastest)
    verdicts = {key: verdict(its, margin) for key, its in compare(blocks, taken, family, aside).items()}
    unsettled = [key for key in candidates if key != taken and verdicts[key] not in ("slower", "same")]
    return Choice(taken, tuple(sorted(unsettled, key=lambda key: -speedups[key])))


def power(error: float, degrees: float, comparisons: int, ratio: float) -> float:
    """Return the share of studies whose simultaneous interval excludes 1 if the true speed-up is ``ratio``.

    ``error`` is the standard error of a log speed-up, ``degrees`` are its degrees of freedom. This is the noncentral t
    distribution, integrated here since scipy's is NaN for large shifts.
    """
    shift = math.log(ratio) / error
    scale, weights = _scales(degrees)
    beyond = dunnett(comparisons, degrees) * scale
    return float(weights @ (ndtr(shift - beyond) + ndtr(-shift - beyond)))


def pooled_degrees(free: float, comparisons: float, correlation: float = CORRELATION) -> float:
    """Return the degrees of freedom of a pooled variance; ``free`` sums processes - 1 over the comparisons."""
    return free / (1 + (comparisons - 1) * correlation**2)


@lru_cache(maxsize=4096)
def dunnett(comparisons: int, degrees: float) -> float:
    """Return the quantile within which all of ``comparisons`` t-values with correlation 1/2 lie in 95 %."""
    shared, shared_weights = np.polynomial.hermite_e.hermegauss(48)
    scale, weights = _scales(degrees)

    def excess(quantile: float) -> float:
        # t = (z + z_i) / sqrt(2) / scale: independent for a given z and scale
        reach = math.sqrt(2) * quantile * scale[:, np.newaxis]
        within = (ndtr(shared + reach) - ndtr(shared - reach)) ** comparisons
        return weights @ within @ shared_weights / shared_weights.sum() - CONFIDENCE

    return float(brentq(excess, 0.1, 1e4))


def _scales(degrees: float) -> tuple[np.ndarray, np.ndarray]:
    """Return nodes and weights of a mean over the ratio of an estimated standard deviation to the true one."""
    nodes, weights = np.polynomial.legendre.leggauss(128)
    return np.sqrt(2 * gammaincinv(degrees / 2, (nodes + 1) / 2) / degrees), weights / 2


_dunnetts = np.vectorize(lambda m, degrees: dunnett(int(m), float(degrees)) if degrees else np.nan, otypes=[float])


def _comparison(effect: _Effect, comparisons: np.ndarray) -> Comparison:
    tenths = np.floor(effect.degrees * 10 + 1e-6) / 10  # rounded down: few quantiles to find
    adjusted = _dunnetts(comparisons, np.where(np.isfinite(effect.error), tenths, 0)) * effect.error
    alone = stdtrit(effect.degrees, ONE_SIDED) * effect.error
    ends = (np.exp(effect.mean + half)[()] for half in (0, -adjusted, adjusted, -alone, alone))
    return Comparison(*ends, effect.processes[()], effect.error[()], effect.degrees)


def _effects(
    blocks: Sequence[Block], keys: Sequence[Key], origin: Key | None, family: Mapping[Key, Hashable]
) -> dict[Key, _Effect]:
    """Return the effects against ``origin``, or of times alone without one, with their spread pooled by family."""
    effects = {}
    for name in dict.fromkeys(family[key] for key in keys):
        members = [key for key in keys if family[key] == name]
        values = np.stack(np.broadcast_arrays(*(_process_values(blocks, key, origin) for key in members)), axis=-2)
        known = ~np.isnan(values)
        counts = known.sum(-1)
        means = np.where(known, values, 0).sum(-1) / np.where(counts, counts, np.nan)
        errors = np.where(known, values - means[..., np.newaxis], 0)
        squares = (errors**2).sum(-2)
        free = np.maximum(counts - 1, 0).sum(-1)
        correlation = 0.0 if origin is None else CORRELATION
        if origin is not None and name != family[origin]:
            pairs = ((known.sum(-2) - 1) * squares).sum(-1)
            shared = (errors.sum(-2) ** 2 - squares).sum(-1) / np.where(pairs > 0, pairs, np.inf)
            correlation = np.clip(shared, CORRELATION, 1)
        variance = (squares.sum(-1) / np.where(free, free, np.nan))[..., np.newaxis]
        error = np.sqrt(variance / np.where(counts > 1, counts, np.nan))
        degrees = pooled_degrees(free, (counts > 1).sum(-1), correlation)
        effects |= {
            key: _Effect(means[..., i], error[..., i], degrees, counts[..., i]) for i, key in enumerate(members)
        }
    return effects


def _difference(own: _Effect, base: _Effect) -> _Effect:
    fewer, degrees = np.minimum(own.processes, base.processes), np.minimum(own.degrees, base.degrees)
    return _Effect(own.mean - base.mean, np.hypot(own.error, base.error), degrees, fewer)


def _link(blocks: Sequence[Block], key: Key, base: Key, family: Mapping[Key, Hashable]) -> Key | None:
    """Return the key that most blocks hold of those measured beside both; None if there is none."""
    both = [one for one in family if all(any(_meet(block, one, end) for block in blocks) for end in (key, base))]
    return max(both, key=lambda other: sum(other in block for block in blocks), default=None)


def _meet(block: Block, one: Key, other: Key) -> bool:
    """Return whether a round of the block holds both."""
    return one in block and other in block and bool(np.isfinite(block[one] - block[other]).any())


def _process_values(blocks: Sequence[Block], key: Key, origin: Key | None) -> np.ndarray:
    """Return the median over rounds of log(time of ``origin`` / own), (..., blocks), NaN where a block lacks one."""
    values = [
        _median((0.0 if origin is None else _log(block[origin])) - _log(block[key]))
        if key in block and (origin is None or origin in block)
        else np.nan
        for block in blocks
    ]
    return np.stack(np.broadcast_arrays(*(values or [np.nan])), axis=-1)


def _log(times: np.ndarray) -> np.ndarray:
    times = np.asarray(times, dtype=np.float64)
    if (times <= 0).any():
        raise ValueError(f"times must be positive, not {np.nanmin(times)}")
    return np.log(times)


def _median(values: np.ndarray) -> np.ndarray:
    """Return the median over the last axis of what is not NaN; NaN if nothing is left."""
    ordered = np.sort(values, axis=-1)  # NaN last
    count = (~np.isnan(ordered)).sum(-1, keepdims=True)
    middle = [np.take_along_axis(ordered, index, axis=-1) for index in (np.maximum(count - 1, 0) // 2, count // 2)]
    return sum(middle)[..., 0] / 2
