"""Intervals between processes, Student's t, A/A, steady state and Holm's adjustment."""

import math

import numpy as np
import pandas as pd
import pytest
from llmstudy.measure.steady import SteadyState
from llmstudy.stats.multiplicity import holm
from llmstudy.stats.processes import Noise, pooled_noise, process_interval, ratio, same_against_same
from llmstudy.stats.student import critical_value, two_sided_p
from llmstudy.tables.speed import shared_noise


@pytest.mark.parametrize(
    ("degrees", "expected"), [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (9, 2.2622), (30, 2.0423)]
)
def test_critical_values_of_the_printed_tables(degrees, expected):
    assert critical_value(degrees) == pytest.approx(expected, abs=5e-5)
    assert two_sided_p(expected, degrees) == pytest.approx(0.05, abs=1e-5)


def test_student_tails_against_numerical_integration():
    """The density of t, (1 + t^2/n)^(-(n+1)/2) up to its norm, summed on a fine grid."""
    for degrees in (1, 2, 5, 8):
        angle = np.linspace(-math.pi / 2, math.pi / 2, 200_001)[1:-1]  # t = sqrt(n) tan(angle)
        mass = np.cos(angle) ** (degrees - 1)
        outside = np.abs(math.sqrt(degrees) * np.tan(angle)) > 1.7
        assert two_sided_p(1.7, degrees) == pytest.approx(mass[outside].sum() / mass.sum(), abs=1e-4)
    assert critical_value(100_000) == pytest.approx(1.95996, abs=1e-4)
    assert math.isnan(two_sided_p(math.nan, 3))


def test_process_interval_by_hand():
    """ln of 10, 20, 40: mean ln 20, standard deviation ln 2, t(2) = 4.303."""
    found = process_interval([10.0, 20.0, 40.0])
    assert found.value == pytest.approx(20.0)
    factor = 2 ** (4.302653 / math.sqrt(3))
    assert (found.low, found.high) == pytest.approx((20 / factor, 20 * factor))


@pytest.mark.parametrize("results", [[41.0], [41.0, math.nan], [41.0, 41.0, 41.0]])
def test_no_spread_is_no_interval(samples):
    found = process_interval(samples)
    assert found.value == pytest.approx(41.0)
    assert math.isnan(found.low) and math.isnan(found.high)


def test_empty_and_impossible_samples():
    assert math.isnan(process_interval([]).value)
    with pytest.raises(ValueError, match="positive"):
        process_interval([1.0, 0.0])


def test_process_interval_and_ratio_cover():
    rng = np.random.default_rng(1)
    covered = np.zeros(2)
    false_alarms = 0
    for _ in range(500):
        reference = 70 * np.exp(0.1 * rng.standard_normal(5))
        candidate = 40 * np.exp(0.03 * rng.standard_normal(4))
        speedup = ratio(reference, candidate)
        own = process_interval(reference)
        covered += [own.low <= 70 <= own.high, speedup.low <= 70 / 40 <= speedup.high]
        false_alarms += ratio(reference, reference[::-1] * np.exp(0.1 * rng.standard_normal(5))).p < 0.05
    assert (covered / 500 >= 0.92).all() and (covered / 500 <= 0.98).all()
    assert false_alarms / 500 <= 0.08


def test_ratio_of_swapped_sides_is_the_inverse():
    forth, back = ratio([70.0, 75.0, 72.0], [40.0, 42.0]), ratio([40.0, 42.0], [70.0, 75.0, 72.0])
    assert (forth.value, forth.low, forth.high) == pytest.approx((1 / back.value, 1 / back.high, 1 / back.low))
    assert forth.p == pytest.approx(back.p)


def test_ratio_p_value_agrees_with_its_interval():
    for gap in np.linspace(0.0, 0.6, 25):
        found = ratio(np.exp([0.1, 0.0, -0.1]), np.exp(np.array([0.15, 0.0, -0.2]) - gap))
        assert (found.p < 0.05) == (not found.low <= 1 <= found.high)


def test_equal_variances_give_the_pooled_degrees_of_freedom():
    """Two samples of n with equal variance: Welch's degrees of freedom are 2 (n - 1)."""
    logs = np.array([-0.1, 0.0, 0.1])
    found = ratio(2 * np.exp(logs), np.exp(logs))
    half = critical_value(4) * 0.1 * math.sqrt(2 / 3)
    assert (found.low, found.high) == pytest.approx((2 * math.exp(-half), 2 * math.exp(half)))


def test_a_ratio_with_one_repeat_has_no_interval_and_no_p():
    found = ratio([70.0, 75.0], [40.0])
    assert found.value == pytest.approx(math.sqrt(70 * 75) / 40)
    assert math.isnan(found.low) and math.isnan(found.p)
    assert math.isnan(ratio([], [40.0]).value)


def test_same_against_same_pools_the_pairs_of_all_configurations():
    """Two processes are one pair, three are three; the unit and the level of a configuration do not matter."""
    found = same_against_same([[50.0, 51.0], [800.0, 1000.0, 1100.0], [7.0], [3.0, math.nan]])
    expected = [0.02, 0.25, 0.1, 0.375]  # 51/50, 1000/800, 1100/1000, 1100/800
    assert (found.pairs, found.largest) == (4, pytest.approx(0.375))
    assert found.median == pytest.approx(np.median(expected))
    assert same_against_same([[51.0, 50.0]]).largest == pytest.approx(0.02)  # whichever came first
    assert same_against_same([[7.0], []]) is None and same_against_same([]) is None


def test_same_against_same_has_a_95th_percentile_only_with_200_disjoint_pairs():
    pairs = [[1.0, 1.0 + number / 1000] for number in range(200)]
    assert math.isnan(same_against_same(pairs[:-1]).p95)
    assert same_against_same(pairs).p95 == pytest.approx(np.percentile(np.arange(200) / 1000, 95))
    # 20 processes in one place make 190 pairs but only 10 that share none: 19 such places are too few
    assert math.isnan(same_against_same([np.linspace(1, 2, 20)] * 19).p95)


def test_steady_state_ends_with_the_first_calm_window():
    state = SteadyState(window=3, tolerance=0.05, maximum=10)
    answers = [state.add(duration) for duration in (200.0, 120.0, 101.0, 100.0, 99.0)]
    assert answers == [False, False, False, False, True]
    assert state.steady and state.spread == pytest.approx(0.02)


def test_steady_state_gives_up_and_says_so():
    state = SteadyState(window=3, tolerance=0.05, maximum=4)
    assert [state.add(duration) for duration in (1.0, 2.0, 1.0, 2.0)] == [False, False, False, True]
    assert not state.steady


def test_the_tolerance_is_exclusive_and_the_window_checked():
    state = SteadyState(window=2, tolerance=0.05, maximum=9)
    assert [state.add(duration) for duration in (97.5, 102.5)] == [False, False]
    assert SteadyState().spread == math.inf
    with pytest.raises(ValueError, match="window"):
        SteadyState(window=1)


def test_holm_by_hand():
    adjusted = holm(np.array([0.01, 0.04, math.nan, 0.03, 0.005]))
    np.testing.assert_allclose(adjusted, [0.03, 0.06, math.nan, 0.06, 0.02])
    assert holm(np.array([0.9, 0.8])).tolist() == [1.0, 1.0]


def test_pooled_noise_is_that_of_a_one_way_analysis_of_variance():
    """ln 1, ln 4 about their mean: 2 (ln 2)^2 with one degree; e^0, e^0.1, e^0.2: 0.02 with two."""
    found = pooled_noise([[1.0, 4.0], [1.0, math.exp(0.1), math.exp(0.2)], [7.0]])
    assert found.degrees == 3
    assert found.sd == pytest.approx(math.sqrt((2 * math.log(2) ** 2 + 0.02) / 3))
    assert pooled_noise([[1.0], [2.0, math.nan]]) is None


def test_pooling_makes_two_repeats_enough_where_they_alone_say_nothing():
    configurations = [[72.0, 79.0], [45.0, 48.0], [80.0, 83.0], [43.0, 45.0], [72.0, 70.0]]
    reference, candidate = configurations[:2]
    noise = pooled_noise(configurations)
    assert ratio(reference, candidate).low < 1 < ratio(reference, candidate, noise, noise).low
    assert not math.isnan(process_interval(reference, noise).low)


def test_a_configuration_noisier_than_the_pool_keeps_its_own_spread():
    noise = pooled_noise([[50.0, 50.5]] * 9 + [[50.0, 80.0]])
    noisy, calm = process_interval([50.0, 80.0], noise), process_interval([50.0, 50.5], noise)
    assert math.log(noisy.high / noisy.low) > 2 * math.log(calm.high / calm.low)


@pytest.mark.parametrize(("factor", "least"), [(1.0, 0.93), (2.0, 0.87)])
def test_pooled_intervals_cover_also_where_one_configuration_is_noisier(factor, least):
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(400):
        spread = np.array([0.05, 0.05 * factor] + [0.05] * 8)
        samples = np.exp(spread[:, None] * rng.standard_normal((10, 2)))
        noise = pooled_noise(samples)
        found = ratio(samples[0], samples[1], noise, noise)
        covered += found.low <= 1 <= found.high
    assert least <= covered / 400


def test_a_single_process_takes_the_noise_of_the_others():
    """The pool of ln 1, ln 1.1 and ln 1, ln 0.9 has two degrees of freedom: t = 4.303, for one process and for 1/1."""
    noise = pooled_noise([[50.0, 55.0], [70.0, 63.0]])
    own, against = process_interval([72.0], noise), ratio([72.0], [36.0], noise, noise)
    assert (own.value, own.high / own.value) == pytest.approx((72.0, math.exp(4.302653 * noise.sd)))
    assert against.high / against.value == pytest.approx(math.exp(4.302653 * noise.sd * math.sqrt(2)))
    assert math.isnan(ratio([72.0], [36.0], noise).low), "noise of one side is not lent to the other"


def test_two_noises_give_welch_s_degrees_of_freedom():
    calm, wild = Noise(0.01, 5), Noise(0.1, 6)
    found = ratio([72.0, 72.0], [36.0], wild, calm)
    parts = (0.1**2 / 2, 0.01**2)
    degrees = sum(parts) ** 2 / (parts[0] ** 2 / 6 + parts[1] ** 2 / 5)
    assert 6 < degrees < 8
    half = critical_value(math.floor(degrees)) * math.sqrt(sum(parts))
    assert (found.low, found.high) == pytest.approx((2 * math.exp(-half), 2 * math.exp(half)))


def processes(model, runtime, precision, workloads, tpots, status="ok"):
    """A row for each workload and process; `tpots`: one TPOT per process, the same at each workload."""
    shared = {"study": "s", "model": model, "precision": precision, "attention": "sdpa", "runtime": runtime}
    return [
        shared | {"batch": batch, "prompt_tokens": 128, "new_tokens": 16, "status": status, "tpot_ms": tpot}
        for batch in workloads
        for tpot in tpots
    ]


def test_noise_is_shared_within_a_runtime_and_by_the_whole_study_where_a_model_has_none():
    rows = processes("small", "eager", "bf16", (1, 8), (50.0, 60.0)) + processes("small", "graph", "bf16", (1,), (4, 5))
    rows += processes("small", "eager", "nf4", (1,), (70.0, 70.0)) + processes("large", "eager", "bf16", (1,), (90.0,))
    rows += processes("large", "other", "bf16", (1,), (90.0, math.nan), "oom")
    found = shared_noise(pd.DataFrame(rows), "tpot_ms")
    one = math.log(60 / 50) ** 2 / 2
    place = {"model": "small", "runtime": "generate", "batch": 8, "prompt_tokens": 128, "new_tokens": 16}
    assert found.of(place) == Noise(pytest.approx(math.sqrt(one)), 1)
    assert found.of(place | {"batch": 1}) == Noise(pytest.approx(math.sqrt(one / 2)), 2)
    # bf16 at two workloads and nf4: three differences, but two processes more than configurations
    assert found.of(place | {"model": "large"}) == Noise(pytest.approx(math.sqrt(2 * one / 3)), 2)
    assert found.of(place | {"model": "large", "runtime": "graph"}).sd == pytest.approx(math.log(5 / 4) / math.sqrt(2))
    assert found.of(place | {"runtime": "other"}) is None
