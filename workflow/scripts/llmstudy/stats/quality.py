"""Quality of a precision from per-token values, with intervals by block bootstrap over documents.

Inputs are arrays over the same tokens in text order, ``document`` int (tokens,); NLL in nats, float32 or float64.

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

from llmstudy.stats.estimate import CONFIDENCE, Estimate, critical_value, exponential, student_p, without_interval

RESAMPLES = 4000
MINIMUM_BLOCKS = 8
LONGEST_BLOCK = 256  # tokens; dependence between tokens of running text has mostly died out by then
SHORTEST_BLOCK = 16
CHUNK = 512  # resamples drawn at once: bounds memory to 512 × blocks


@dataclass(frozen=True)
class Blocks:
    """The block of each token, int64 (tokens,); tokens per block, float64 (blocks,); and what a block is, in words."""

    index: np.ndarray
    counts: np.ndarray
    label: str


def document_blocks(document: np.ndarray) -> Blocks:
    """Return the blocks of a text from the document id of each token, int (tokens,) in text order.

    With fewer than 8 documents each one is cut into runs of consecutive tokens, at most 256 long and short enough for
    at least 8 runs; a text too short for runs of 16 tokens becomes one block, which supports no interval.
    """
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


def bootstrap_mean(values: np.ndarray, blocks: Blocks) -> Estimate:
    """Return the mean per token with its block-bootstrap interval; ``p`` is that of Student's t with blocks − 1 degrees
    of freedom against a mean of zero.

    ``values`` (tokens,), of any real or bool dtype, are summed in float64; one that is not finite makes the whole
    estimate NaN. Differences of two models draw the same blocks for both.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.shape != blocks.index.shape:
        raise ValueError(f"{values.shape} values for {blocks.index.shape} tokens")
    number = len(blocks.counts)
    sums = np.bincount(blocks.index, weights=values, minlength=number)
    mean = float(sums.sum() / blocks.counts.sum())
    if number < 2 or not math.isfinite(mean):
        return without_interval(mean if math.isfinite(mean) else math.nan)
    rng, means = np.random.default_rng(0), []
    for start in range(0, RESAMPLES, CHUNK):
        drawn = rng.multinomial(number, np.full(number, 1 / number), size=min(CHUNK, RESAMPLES - start)).astype(float)
        means.append((drawn @ sums) / (drawn @ blocks.counts))
    means = np.concatenate(means)
    inflation = math.sqrt(number / (number - 1))
    tail = NormalDist().cdf(-inflation * critical_value(number - 1))
    low, high = np.quantile(means, [tail, 1 - tail])
    se = float(means.std(ddof=1)) * inflation
    p = student_p(mean / se, number - 1) if se else float(mean == 0)
    return Estimate(mean, float(low), float(high), se, p)


def perplexity(nll: np.ndarray, document: np.ndarray) -> Estimate:
    """Return token PPL = exp(mean NLL) of one model. Its interval, over other documents of the same kind, is wide; two
    such intervals must not be compared by eye: ``paired_difference`` is for that."""
    return bootstrap_mean(nll, document_blocks(document)).exp()


def paired_difference(reference_nll: np.ndarray, nll: np.ndarray, document: np.ndarray) -> Estimate:
    """Return the mean NLL of a candidate minus that of its reference, nats per token: the logarithm of the PPL ratio.

    The difference is taken per token in float64 before it is resampled, so that the large variation between documents
    cancels. An NLL that is not finite makes it NaN. Raise ValueError if the shapes differ: not the same text.
    """
    with np.errstate(invalid="ignore"):
        difference = np.asarray(nll, dtype=np.float64) - np.asarray(reference_nll, dtype=np.float64)
    return bootstrap_mean(difference, document_blocks(document))


def agreement(same: np.ndarray, document: np.ndarray) -> Estimate:
    """Return the share of positions at which both models rank the same token first; ``same``: 0 or 1 (tokens,).

    Where all positions agree (or none does) no resample can differ, so the open end is the exact binomial bound
    (Clopper and Pearson, Biometrika 26, 1934): 0.025^(1 / tokens), with tokens taken as independent.
    """
    share = bootstrap_mean(same, document_blocks(document))
    bound = ((1 - CONFIDENCE) / 2) ** (1 / len(same))
    if share.value == 1:
        return Estimate(1.0, bound, 1.0, math.nan)
    return Estimate(0.0, 0.0, 1 - bound, math.nan) if share.value == 0 else share


def normalizations(nll_sum: float, tokens: int, words: float, utf8_bytes: float) -> dict[str, float]:
    """Return a total NLL in every normalization, as lm-evaluation-harness defines them; NaN for a count that is NaN.

    With L the NLL in nats, ``ppl`` = exp(L / tokens), ``word_ppl`` = exp(L / words), ``byte_ppl`` = exp(L / bytes),
    ``bits_per_byte`` = L / (bytes ln 2).
    """
    counts = {"ppl": tokens, "word_ppl": words, "byte_ppl": utf8_bytes}
    perplexities = {name: exponential(nll_sum / count) for name, count in counts.items()}
    return perplexities | {"bits_per_byte": nll_sum / (utf8_bytes * math.log(2))}
