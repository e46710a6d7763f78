"""Block bootstrap over documents: the interval of a mean per token.

Tokens of one document resemble each other, so an interval over tokens would be far too narrow. Whole documents are
drawn with replacement and the mean is the ratio estimator sum of sums ÷ sum of counts, which needs only one sum and one
count per document.

The plain percentile interval is too short for few blocks. The expanded percentile interval of Hesterberg, "What
Teachers Should Know about the Bootstrap" (The American Statistician 69, 2015) widens its levels to
Φ(−sqrt(n / (n−1)) t_{n−1}), and the standard error is scaled by sqrt(n / (n−1)).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from llmstudy.stats.estimate import Estimate, critical_value, student_p, without_interval

RESAMPLES = 4000
MINIMUM_BLOCKS = 8
LONGEST_BLOCK = 256  # tokens; dependence between tokens of running text has mostly died out by then
SHORTEST_BLOCK = 16
_CHUNK = 512  # resamples drawn at once: bounds memory to 512 × blocks


@dataclass(frozen=True)
class Blocks:
    """The block of each token.

    Attributes:
        index: int64 (tokens,), values 0 … n−1.
        counts: float64 (n,), tokens per block.
        label: What a block is and how many there are, to be shown beside the interval.
    """

    index: np.ndarray
    counts: np.ndarray
    label: str


def document_blocks(document: np.ndarray) -> Blocks:
    """Return the blocks of a text from the document id of each token, int (tokens,) in text order.

    With fewer than 8 documents each one is cut into runs of consecutive tokens, at most 256 long and short enough for
    at least 8 runs; a text too short for runs of 16 tokens becomes one block, which supports no interval.
    """
    document = np.asarray(document)
    if document.ndim != 1 or not document.size:
        raise ValueError(f"document ids must be a non-empty vector, not of shape {document.shape}")
    documents, index = np.unique(document, return_inverse=True)
    if len(documents) >= MINIMUM_BLOCKS:
        return Blocks(index, np.bincount(index).astype(float), f"{len(documents)} documents")
    length = min(LONGEST_BLOCK, document.size // (MINIMUM_BLOCKS + len(documents)))  # each rounds one run down
    if length < SHORTEST_BLOCK:
        return Blocks(np.zeros(document.size, dtype=np.int64), np.array([float(document.size)]), "1 block, no interval")
    runs = np.zeros(document.size, dtype=np.int64)
    used = 0
    for number in range(len(documents)):
        tokens = np.flatnonzero(index == number)
        pieces = max(1, len(tokens) // length)
        runs[tokens] = used + np.minimum(np.arange(len(tokens)) // length, pieces - 1)
        used += pieces
    return Blocks(runs, np.bincount(runs).astype(float), f"{used} runs of {length} tokens")


def bootstrap_mean(values: np.ndarray, blocks: Blocks, *, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """Return the mean per token with its block-bootstrap interval; ``p`` is against a mean of zero.

    Args:
        values: (tokens,), any real or bool dtype, summed in float64. Differences of two models draw the same blocks for
            both. Values that are not finite make the whole estimate NaN.
        blocks: Of the same tokens.
        resamples: Number of draws.
        seed: Of the draws.

    Returns:
        The estimate; its p is that of Student's t with blocks − 1 degrees of freedom.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.shape != blocks.index.shape:
        raise ValueError(f"{values.shape} values for {blocks.index.shape} tokens")
    number = len(blocks.counts)
    sums = np.bincount(blocks.index, weights=values, minlength=number)
    mean = float(sums.sum() / blocks.counts.sum())
    if not math.isfinite(mean):
        return without_interval(math.nan)
    if number < 2:
        return without_interval(mean)
    means = _resampled_means(sums, blocks.counts, resamples, seed)
    inflation = math.sqrt(number / (number - 1))
    tail = NormalDist().cdf(-inflation * critical_value(number - 1))
    low, high = np.quantile(means, [tail, 1 - tail])
    se = float(means.std(ddof=1)) * inflation
    p = student_p(mean / se, number - 1) if se else float(mean == 0)
    return Estimate(mean, float(low), float(high), se, p)


def _resampled_means(sums: np.ndarray, counts: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Return bootstrap replicates of sum(sums) / sum(counts), float64 (resamples,)."""
    rng = np.random.default_rng(seed)
    number = len(sums)
    equal = np.full(number, 1 / number)
    replicates = []
    for start in range(0, resamples, _CHUNK):
        drawn = rng.multinomial(number, equal, size=min(_CHUNK, resamples - start)).astype(np.float64)
        replicates.append((drawn @ sums) / (drawn @ counts))
    return np.concatenate(replicates)
