"""How far a candidate's next-token distribution lies from the reference's: KL divergence, Δp, agreement.

Inputs are per-token arrays over the same tokens for reference and candidate, `document` int (tokens,). Intervals are
by block bootstrap over documents.
"""

import math
from dataclasses import dataclass

import numpy as np

from llmstudy.stats.bootstrap import RESAMPLES, bootstrap_mean, document_blocks
from llmstudy.stats.estimate import CONFIDENCE, Estimate
from llmstudy.stats.percentile import percentile_if_supported


@dataclass(frozen=True)
class KlSummary:
    """KL(reference || candidate) in nats. A percentile that the sample does not support is NaN."""

    mean: Estimate
    median: float
    p90: float
    p99: float
    p99_9: float
    maximum: float


@dataclass(frozen=True)
class TrueTokenSummary:
    """Δp = p_candidate(true token) - p_reference(true token), in probability (-1 .. 1)."""

    mean: Estimate
    rms: float
    p1: float
    p5: float
    median: float
    p95: float
    p99: float


def summarise_kl(kl_nats: np.ndarray, document: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0) -> KlSummary:
    """Summary of per-token KL divergence, (tokens,) nats; rounding may have left values slightly below zero."""
    kl_nats = np.asarray(kl_nats, dtype=np.float64)
    return KlSummary(
        mean=bootstrap_mean(kl_nats, document_blocks(document), resamples=resamples, seed=seed),
        median=percentile_if_supported(kl_nats, 50),
        p90=percentile_if_supported(kl_nats, 90),
        p99=percentile_if_supported(kl_nats, 99),
        p99_9=percentile_if_supported(kl_nats, 99.9),
        maximum=float(kl_nats.max()),
    )


def summarise_true_token(
    reference_nll: np.ndarray,
    candidate_nll: np.ndarray,
    document: np.ndarray,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> TrueTokenSummary:
    """Summary of Δp of the true token from the NLL of both models, (tokens,) nats: p = exp(-NLL)."""
    delta = np.exp(-np.asarray(candidate_nll, dtype=np.float64)) - np.exp(-np.asarray(reference_nll, dtype=np.float64))
    return TrueTokenSummary(
        mean=bootstrap_mean(delta, document_blocks(document), resamples=resamples, seed=seed),
        rms=math.sqrt(float(np.mean(delta**2))),
        p1=percentile_if_supported(delta, 1),
        p5=percentile_if_supported(delta, 5),
        median=percentile_if_supported(delta, 50),
        p95=percentile_if_supported(delta, 95),
        p99=percentile_if_supported(delta, 99),
    )


def agreement(same: np.ndarray, document: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """Share of positions at which both models rank the same token first; `same`: bool (tokens,).

    Where all positions agree (or none does) no resample can differ, so the open end is the exact binomial bound
    (Clopper and Pearson, Biometrika 26, 1934): 0.025^(1/tokens), with tokens taken as independent.
    """
    share = bootstrap_mean(same, document_blocks(document), resamples=resamples, seed=seed)
    bound = ((1 - CONFIDENCE) / 2) ** (1 / len(same))
    if share.value == 1:
        return Estimate(1.0, bound, 1.0, math.nan)
    if share.value == 0:
        return Estimate(0.0, 0.0, 1 - bound, math.nan)
    return Estimate(share.value, share.low, share.high, share.se)
