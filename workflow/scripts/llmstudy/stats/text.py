"""Differences between generated texts, as token ids."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def first_divergence(reference: Sequence[int], candidate: Sequence[int]) -> int | None:
    """Return the position (from 0) of the first token that differs; None if the sequences are identical. If one is the
    beginning of the other, the position is the length of the shorter one."""
    for position, (left, right) in enumerate(zip(reference, candidate)):
        if left != right:
            return position
    return None if len(reference) == len(candidate) else min(len(reference), len(candidate))


def agreement_curve(divergences: Sequence[int | None], tokens: int) -> np.ndarray:
    """Return the share of prompts whose text is identical to the reference after k tokens, for k = 0 … ``tokens``.

    Args:
        divergences: ``first_divergence`` of each prompt, at least one.
        tokens: Length of the texts.

    Returns:
        float64 (tokens + 1,), starting at 1 and never rising.
    """
    positions = np.array([tokens if position is None else position for position in divergences])
    return (positions[None, :] >= np.arange(tokens + 1)[:, None]).mean(axis=1)


def median_divergence(divergences: Sequence[int | None]) -> float:
    """Return the median position of the first difference, identical texts counting as beyond every position.

    NaN if half of them or more are identical: the median is then not reached, as in survival analysis. The median of
    the others alone would fall when a precision comes nearer to the reference and only its worst prompts still differ.
    """
    median = float(np.median([math.inf if position is None else position for position in divergences]))
    return median if math.isfinite(median) else math.nan


def distinct_n(tokens: Sequence[int], n: int) -> float:
    """Return distinct n-grams ÷ all n-grams of a text (Li et al., NAACL 2016); NaN if it is shorter than n tokens.
    1 − distinct-4 is the repetition rate seq-rep-4 of Welleck et al., ICLR 2020."""
    grams = [tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1)]
    return len(set(grams)) / len(grams) if grams else math.nan
