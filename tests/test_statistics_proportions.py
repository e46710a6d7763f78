"""Intervals and the exact test of shares, against published examples, closed forms and simulated coverage."""

import math
from itertools import product

import numpy as np
import pytest
from llmstudy.stats.proportions import mcnemar_exact, paired_change, wilson


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    # Newcombe, Statistics in Medicine 17 (1998), pages 857 to 872, table I, method 3
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_is_that_of_the_literature(successes, trials, low, high):
    assert wilson(successes, trials) == pytest.approx((low, high), abs=5e-5)
    assert wilson(trials - successes, trials) == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_wilson_ends_are_where_the_score_test_is_at_its_limit():
    low, high = wilson(7, 40)
    for end in (low, high):
        assert abs(7 / 40 - end) / math.sqrt(end * (1 - end) / 40) == pytest.approx(1.959964, abs=1e-5)
    assert np.isnan(wilson(0, 0)).all()


@pytest.mark.parametrize(
    ("table", "value", "low", "high", "p"),
    [
        # airway hyper-responsiveness before and after transplantation (Bentur et al. 2009), as in Fagerland, Lydersen
        # and Laake, Statistics in Medicine 33 (2014), pages 2850 to 2875: before is the reference, 1 and 8 of 21
        ((1, 1, 7, 12), 6 / 21, 0.026, 0.507, 0.0703),
        # Newcombe, Statistics in Medicine 17 (1998), pages 2635 to 2650: the sides never fail together
        ((36, 12, 2, 0), -0.2, -0.3404, -0.0569, 0.0129),
    ],
)
def test_a_paired_change_is_that_of_the_literature(table, value, low, high, p):
    found = paired_change(*table)
    assert (found.value, found.low, found.high, found.p) == pytest.approx((value, low, high, p), abs=5e-4)
    both, lost, gained, neither = table
    mirrored = paired_change(both, gained, lost, neither)
    assert (mirrored.low, mirrored.high) == pytest.approx((-found.high, -found.low))


def test_the_interval_of_a_paired_change_covers_the_truth_in_19_of_20_studies():
    rng = np.random.default_rng(5)
    shares = [0.55, 0.08, 0.04, 0.33]  # both, lost, gained, neither: the truth is -0.04
    found = [paired_change(*map(int, counts)) for counts in rng.multinomial(200, shares, size=2000)]
    covered = np.mean([one.low <= -0.04 <= one.high for one in found])
    assert 0.94 < covered < 0.97
    unpaired = math.sqrt(0.63 * 0.37 / 200 + 0.59 * 0.41 / 200) * 2 * 1.96
    assert np.mean([one.high - one.low for one in found]) < 0.55 * unpaired  # what pairing gains


def test_no_flips_and_no_documents():
    same = paired_change(30, 0, 0, 20)
    assert (same.value, same.p) == (0, 1) and same.low == pytest.approx(-same.high) and same.high > 0
    assert math.isnan(paired_change(0, 0, 0, 0).value)


def test_mcnemar_counts_every_way_in_which_the_flips_could_have_gone():
    """By enumeration: of the 2ⁿ equally likely patterns, those at least as lopsided as the one seen."""
    for lost, gained in product(range(6), range(6)):
        flips = lost + gained
        lopsided = sum(abs(2 * sum(pattern) - flips) >= abs(lost - gained) for pattern in product((0, 1), repeat=flips))
        assert mcnemar_exact(lost, gained) == pytest.approx(lopsided / 2**flips), (lost, gained)


def test_mcnemar_in_closed_form_and_for_many_flips():
    assert mcnemar_exact(0, 9) == 2 / 2**9  # all one way
    assert mcnemar_exact(1, 9) == 2 * (1 + 10) / 2**10
    assert mcnemar_exact(50, 50) == 1
    # 10 000 flips: the normal approximation with continuity correction
    assert mcnemar_exact(4900, 5100) == pytest.approx(math.erfc(199 / math.sqrt(10_000) / math.sqrt(2)), rel=2e-3)
