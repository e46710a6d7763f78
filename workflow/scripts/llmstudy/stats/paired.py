"""Perplexity of one model and the paired difference of two, with intervals over documents."""

from dataclasses import dataclass

import numpy as np

from llmstudy.stats.bootstrap import RESAMPLES, bootstrap_mean, document_blocks
from llmstudy.stats.estimate import Estimate


@dataclass(frozen=True)
class PairedQuality:
    """A candidate against its reference on the same tokens.

    `delta_nll`: mean NLL of the candidate minus that of the reference, nats per token. It is at the same time the
    logarithm of the PPL ratio, since PPL = exp(mean NLL). `ppl_ratio`: PPL of the candidate / PPL of the reference.
    `blocks`: what was resampled, for example "99 documents".
    """

    tokens: int
    delta_nll: Estimate
    ppl_ratio: Estimate
    blocks: str


def perplexity(nll: np.ndarray, document: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """Token PPL = exp(mean NLL) of one model, interval by block bootstrap over documents.

    `nll`: (tokens,) nats, float32 or float64. `document`: int (tokens,). The interval speaks of other documents of
    the same kind; it is wide, and two such intervals must not be compared by eye: use `compare_nll`, which is paired.
    """
    estimate = bootstrap_mean(nll, document_blocks(document), resamples=resamples, seed=seed)
    return Estimate(estimate.value, estimate.low, estimate.high, estimate.se).exp()


def compare_nll(
    reference: np.ndarray, candidate: np.ndarray, document: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0
) -> PairedQuality:
    """Paired comparison of per-token NLL.

    `reference`, `candidate`: (tokens,) nats, float32 or float64, the same tokens in the same order. `document`: int
    (tokens,). The difference is taken per token in float64 before it is resampled, so that the large variation
    between documents cancels. Raises ValueError if the shapes differ; a non-finite NLL makes every figure NaN.
    """
    reference, candidate = np.asarray(reference, dtype=np.float64), np.asarray(candidate, dtype=np.float64)
    if reference.shape != candidate.shape:
        raise ValueError(f"reference has {reference.shape} tokens, candidate {candidate.shape}: not the same text")
    blocks = document_blocks(document)
    with np.errstate(invalid="ignore"):
        difference = candidate - reference
    delta = bootstrap_mean(difference, blocks, resamples=resamples, seed=seed)
    return PairedQuality(reference.size, delta, delta.exp(), blocks.label)
