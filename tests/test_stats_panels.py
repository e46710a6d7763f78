"""Comparisons within panels, against closed forms and published tables; ``test_decisions.py`` has their simulations."""

import math

import numpy as np
import pytest
from llmstudy.stats import panels
from scipy import stats

RNG = np.random.default_rng(7)


def blocks(logs: dict[str, list[float]], rounds: int = 3) -> list[dict]:
    """A block for each process, whose time of a configuration is the same in every round."""
    number = len(next(iter(logs.values())))
    return [{key: np.full(rounds, math.exp(values[one])) for key, values in logs.items()} for one in range(number)]


def compared(held, base="base", **family):
    return panels.compare(held, base, dict.fromkeys((key for one in held for key in one), "generate") | family)


@pytest.mark.parametrize(
    ("comparisons", "degrees", "published"),
    # Dunnett, Biometrics 20, 1964, table of two-sided 5 % points
    [
        (1, 10, 2.23),
        (2, 10, 2.57),
        (3, 10, 2.76),
        (5, 10, 2.99),
        (5, 20, 2.73),
        (9, 60, 2.77),
        (2, 5, 3.03),
        (9, 5, 3.97),
    ],
)
def test_simultaneous_ends_are_dunnetts(comparisons, degrees, published):
    assert panels.simultaneous(comparisons, degrees) == pytest.approx(published, abs=0.011)


def test_one_comparison_is_students():
    held = blocks({"base": [0, 0.1, -0.05, 0.02], "own": [-0.3, -0.25, -0.29, -0.31]})
    found = compared(held)["own"]
    gains = np.log([one["base"][0] / one["own"][0] for one in held])
    low, high = stats.t.interval(0.95, 3, gains.mean(), stats.sem(gains))
    assert (found.value, found.low, found.high) == pytest.approx(
        (math.exp(gains.mean()), math.exp(low), math.exp(high)), rel=1e-5
    )
    ends = stats.t.interval(0.90, 3, gains.mean(), stats.sem(gains))
    assert (found.bound_low, found.bound_high) == pytest.approx(tuple(np.exp(ends))) and found.processes == 4


def test_ratios_are_of_the_same_round():
    """Both slow down sixfold in the course of a process; a ratio of medians would hide the order of the rounds."""
    drift, own = np.array([1.0, 2, 3, 4, 5, 6]), np.array([2.0, 1, 2, 1, 2, 2])
    held = [{"base": drift, "own": drift * own} for _ in range(2)]
    assert compared(held)["own"].value == pytest.approx(0.5)
    held[0]["own"][0] = math.nan  # a call that failed
    assert compared(held)["own"].value == pytest.approx(0.5)


def test_spread_is_pooled_within_a_family_and_never_over_two():
    noise = {"base": [0.0] * 3, "a": [0.1, -0.1, 0.0], "b": [0.2, 0.0, -0.2], "steady": [0.001, -0.001, 0.0]}
    found = compared(blocks(noise), steady="graph")
    variance = (np.var(noise["a"], ddof=1) + np.var(noise["b"], ddof=1)) / 2
    degrees = 2 * 2 / (1 + 1 / 4)  # (P − 1) m / (1 + (m − 1) / 4)
    half = panels.simultaneous(3, degrees) * math.sqrt(variance / 3)
    for key in ("a", "b"):
        assert math.log(found[key].high / found[key].value) == pytest.approx(half)
    assert found["steady"].high < 1.01 < found["a"].high


def test_the_degrees_of_a_pooled_variance_are_those_of_correlated_ones():
    """The mean of m variances with a common base: twice its squared mean over its variance is its degrees."""
    processes, number = 4, 5
    gains = RNG.normal(size=(20000, processes, 1)) - RNG.normal(size=(20000, processes, number))
    pooled = gains.var(axis=1, ddof=1).mean(axis=1)
    assert 2 * pooled.mean() ** 2 / pooled.var() == pytest.approx((processes - 1) * number / 2, rel=0.05)


def test_what_is_in_no_process_with_the_base_is_compared_between_processes():
    alone = [
        {"base": np.exp([0.0, 0.02])},
        {"base": np.exp([0.1, 0.1])},
        {"own": np.exp([-0.5])},
        {"own": np.exp([-0.6])},
    ]
    found = compared(alone)["own"]
    assert math.log(found.value) == pytest.approx((0.01 + 0.1) / 2 + 0.55)
    # both sides are of one family: its variance, and its degrees of freedom
    variance = ((0.1 - 0.01) ** 2 / 2 + 0.1**2 / 2) / 2
    half = panels.simultaneous(1, 2) * math.sqrt(variance / 2 + variance / 2)
    assert math.log(found.high / found.value) == pytest.approx(half) and found.processes == 2


def test_one_process_has_no_interval_and_decides_nothing():
    found = compared(blocks({"base": [0.0], "own": [-1.0]}))["own"]
    assert found.value == pytest.approx(math.e) and found.processes == 1
    assert all(math.isnan(end) for end in (found.low, found.high, found.bound_low, found.bound_high))
    assert panels.verdict(found, 0.1) == "not enough data"
    assert compared([{"own": np.ones(3)}]) == {}  # nothing to compare with


@pytest.mark.parametrize(
    ("low", "high", "bound_low", "bound_high", "word"),
    [
        (1.2, 1.6, 1.25, 1.5, "faster"),
        (0.6, 0.8, 0.62, 0.78, "slower"),
        (0.93, 1.08, 0.94, 1.07, "same"),
        (1.01, 1.08, 1.02, 1.07, "same"),  # certain, and too small to matter
        (1.01, 1.14, 1.02, 1.12, "faster"),
        (0.8, 1.3, 0.85, 1.2, "not enough data"),
        (0.9, 1.05, 0.905, 1.04, "not enough data"),  # 1 / 1.1 is 0.909
    ],
)
def test_verdicts(low, high, bound_low, bound_high, word):
    assert panels.verdict(panels.Comparison(1.0, low, high, bound_low, bound_high, 3), 0.1) == word


def chosen(held, memory, device=10.0):
    keys = list(memory)
    return panels.choose(held, keys, dict.fromkeys(keys, "graph"), memory, device, 0.1)


def test_the_fastest_is_taken_unless_one_shown_to_be_as_fast_saves_memory():
    noise = np.array([0.001, -0.001, 0.0])
    held = blocks({"fast": noise, "near": 0.03 - noise, "far": 0.3 + noise[::-1]})
    assert chosen(held, {"fast": 5.0, "near": 4.9, "far": 1.0}) == panels.Choice("fast", "fast", ())
    assert chosen(held, {"fast": 5.0, "near": 4.4, "far": 1.0}) == panels.Choice("near", "fast", ())
    # 0.6 GiB are nothing on a card of 80
    assert chosen(held, {"fast": 5.0, "near": 4.4, "far": 1.0}, device=80.0).taken == "fast"


def test_what_noise_hides_is_not_taken_for_its_memory():
    wild = np.array([0.4, -0.4, 0.0])
    held = blocks({"fast": wild, "slow": 0.3 - wild, "near": 0.05 + wild[::-1]})
    found = chosen(held, {"fast": 5.0, "slow": 1.0, "near": 2.0})
    assert found == panels.Choice("fast", "fast", ("near", "slow"))


def test_power_is_the_share_of_studies_that_find_a_ratio():
    sd, processes, number, studies = 0.1, 3, 5, 4000
    degrees = (processes - 1) * number / 2
    for ratio in (1.1, 1.2, 1.5):
        gains = math.log(ratio) + RNG.normal(0, sd / math.sqrt(2), (studies, processes, 1))
        gains = gains - RNG.normal(0, sd / math.sqrt(2), (studies, processes, number))
        se = np.sqrt(gains.var(axis=1, ddof=1).mean(axis=1) / processes)
        found = (gains[:, :, 0].mean(axis=1) / se > panels.simultaneous(number, degrees)).mean()
        assert panels.power(sd, processes, degrees, number, ratio) == pytest.approx(found, abs=0.03)
    assert panels.power(sd, processes, degrees, number, 1 / 1.2) == panels.power(sd, processes, degrees, number, 1.2)
