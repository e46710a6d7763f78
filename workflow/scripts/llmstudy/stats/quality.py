"""Quality of a precision from per-token values: perplexity, the difference from the reference, normalizations.

Inputs are arrays over the same tokens in text order, ``document`` int (tokens,); NLL in nats, float32 or float64.
Intervals are by block bootstrap over documents.
"""

from __future__ import annotations

import math

import numpy as np

from llmstudy.stats.bootstrap import bootstrap_mean, document_blocks
from llmstudy.stats.estimate import CONFIDENCE, Estimate, exponential


def perplexity(nll: np.ndarray, document: np.ndarray) -> Estimate:
    """Return token PPL = exp(mean NLL) of one model. Its interval, over other documents of the same kind, is wide; two
    such intervals must not be compared by eye: ``paired_difference`` is for that."""
    return bootstrap_mean(nll, document_blocks(document)).exp()


def paired_difference(reference_nll: np.ndarray, nll: np.ndarray, document: np.ndarray) -> Estimate:
    """Return the mean NLL of a candidate minus that of its reference, nats per token: the logarithm of the PPL ratio.

    The difference is taken per token in float64 before it is resampled, so that the large variation between documents
    cancels. An NLL that is not finite makes it NaN. Raise ValueError if the shapes differ.
    """
    reference_nll, nll = np.asarray(reference_nll, dtype=np.float64), np.asarray(nll, dtype=np.float64)
    if reference_nll.shape != nll.shape:
        raise ValueError(f"reference has {reference_nll.shape} tokens, candidate {nll.shape}: not the same text")
    with np.errstate(invalid="ignore"):
        return bootstrap_mean(nll - reference_nll, document_blocks(document))


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


def normalizations(nll_sum: float, tokens: int, words: int, utf8_bytes: int) -> dict[str, float]:
    """Return a total NLL in every normalization, as lm-evaluation-harness defines them.

    With L the NLL in nats, ``ppl`` = exp(L / tokens), ``word_ppl`` = exp(L / words), ``byte_ppl`` = exp(L / bytes),
    ``bits_per_byte`` = L / (bytes ln 2).
    """
    counts = {"ppl": tokens, "word_ppl": words, "byte_ppl": utf8_bytes}
    perplexities = {name: exponential(nll_sum / count) for name, count in counts.items()}
    return perplexities | {"bits_per_byte": nll_sum / (utf8_bytes * math.log(2))}
