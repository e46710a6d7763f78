"""Differences between generated texts, as token ids."""

import math
from collections.abc import Sequence

import numpy as np


def first_divergence(reference: Sequence[int], candidate: Sequence[int]) -> int | None:
    """Position (from 0) of the first token that differs; None if the sequences are identical.

    If one is the beginning of the other, the position is the length of the shorter one.
    """
    for position, (left, right) in enumerate(zip(reference, candidate)):
        if left != right:
            return position
    return None if len(reference) == len(candidate) else min(len(reference), len(candidate))


def agreement_curve(divergences: Sequence[int | None], tokens: int) -> np.ndarray:
    """Share of prompts whose text is still identical to the reference after k tokens, for k = 0 .. `tokens`.

    `divergences`: one `first_divergence` per prompt (None: identical throughout). Returns float64 (tokens + 1,),
    starting at 1 and never rising.
    """
    if not divergences:
        raise ValueError("an agreement curve needs at least one prompt")
    positions = np.array([tokens if position is None else position for position in divergences])
    return (positions[None, :] >= np.arange(tokens + 1)[:, None]).mean(axis=1)


def exact_match(divergences: Sequence[int | None]) -> float:
    """Share of prompts whose whole text is identical to the reference."""
    if not divergences:
        raise ValueError("an exact-match share needs at least one prompt")
    return sum(position is None for position in divergences) / len(divergences)


def median_divergence(divergences: Sequence[int | None]) -> float:
    """Median position of the first difference over all prompts, those that never part lying beyond every position.

    NaN if half of them or more never part: the median is then not reached, as in survival analysis. The median of the
    others alone would fall when a precision comes nearer to the reference and only its worst prompts still part.
    """
    if not divergences:
        raise ValueError("a median divergence needs at least one prompt")
    median = float(np.median([math.inf if position is None else position for position in divergences]))
    return median if math.isfinite(median) else math.nan


def distinct_n(tokens: Sequence[int], n: int) -> float:
    """Distinct n-grams / all n-grams of one text (Li et al., NAACL 2016); NaN if it is shorter than n tokens."""
    grams = [tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1)]
    return len(set(grams)) / len(grams) if grams else float("nan")


def repetition_rate(tokens: Sequence[int], n: int = 4) -> float:
    """seq-rep-n = 1 - distinct-n (Welleck et al., ICLR 2020): 0 without a repeated n-gram, towards 1 in a loop."""
    return 1 - distinct_n(tokens, n)
