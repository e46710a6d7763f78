"""Cross-overs on synthetic curves."""

import math

import numpy as np
import pandas as pd
import pytest
from llmstudy.stats.crossover import cross_over, cross_overs

GRID = [1, 2, 4, 8, 16, 32]


def power_laws(at, *, noise=0.0, repeats=1, rng=None, slope=0.4):
    """Reference x^0.5 and candidate x^(0.5 + slope), scaled to cross exactly at `at`; straight lines in log-log."""
    x = np.array(GRID, dtype=float)
    curves = [x**0.5, x ** (0.5 + slope) / at**slope]
    if rng is None:
        return [[[value] * repeats for value in curve] for curve in curves]
    return [[value * np.exp(noise * rng.standard_normal(repeats)) for value in curve] for curve in curves]


@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("at", [1.3, 5.0, 8.0, 27.0])
def test_the_crossing_of_two_power_laws_is_exact_and_without_noise_has_no_interval(at, repeats):
    found = cross_over(GRID, *power_laws(at, repeats=repeats))
    assert found.kind == "overtakes" and found.changes == 1
    assert found.x == pytest.approx(at)
    assert math.isnan(found.low) and math.isnan(found.high)


def test_the_mirror_image_falls_behind_at_the_same_point():
    reference, candidate = power_laws(5.0)
    found = cross_over(GRID, candidate, reference)
    assert found.kind == "falls behind" and found.x == pytest.approx(5.0)


def test_never_and_always():
    reference, candidate = power_laws(100.0)
    assert str(cross_over(GRID, reference, candidate)) == "behind throughout: none up to 32"
    assert str(cross_over(GRID, candidate, reference)) == "ahead throughout, from 1 to 32"
    assert cross_over(GRID, reference, reference).kind == "behind throughout"


def test_no_crossing_is_written_in_exponent_form():
    assert str(cross_over([512, 8192], [[512.0**2], [8192.0**2]], [[512.0 * 2048], [8192.0 * 2048]])) == (
        "falls behind at 2048"
    )
    assert str(cross_over([1, 4], [[1.0], [4.0]], [[1 / 2], [8.0]])) == "overtakes at 2"


def test_several_changes_are_told():
    found = cross_over([1, 2, 4], [[1], [1], [1]], [[0.5], [2.0], [0.5]])
    assert found.changes == 2 and "first of 2 changes" in str(found)


def test_the_interval_covers_the_crossing():
    rng = np.random.default_rng(1)
    covered = 0
    for simulation in range(300):
        curves = power_laws(6.0, noise=0.05, repeats=3, rng=rng)
        found = cross_over(GRID, *curves, resamples=1000, seed=simulation)
        covered += found.low <= 6.0 <= found.high
    assert 0.92 <= covered / 300 <= 0.98


def test_an_interval_that_leaves_the_grid_is_open():
    curves = power_laws(30.0, noise=0.15, repeats=3, rng=np.random.default_rng(2))
    found = cross_over(GRID, *curves)
    assert found.high == math.inf and "beyond 32" in str(found)
    curves = power_laws(1.1, noise=0.15, repeats=3, rng=np.random.default_rng(5))
    assert cross_over(GRID, *curves).low == 0


def test_a_grid_that_is_none_is_refused():
    with pytest.raises(ValueError, match="grid points"):
        cross_over([4, 2], [[1], [1]], [[1], [1]])
    with pytest.raises(ValueError, match="2 grid points, 1 reference"):
        cross_over([2, 4], [[1]], [[1], [1]])


def latency_rows():
    reference, candidate = power_laws(5.0)
    rows = []
    for precision, curve in (("bf16", reference), ("int8", candidate)):
        for batch, samples in zip(GRID, curve):
            for attention in ("sdpa", "generate"):
                identity = {"model": "m", "precision": precision, "attention": attention, "runtime": "generate"}
                workload = {"batch": batch, "prompt_tokens": 128, "new_tokens": 32}
                rows.append(identity | workload | {"status": "ok", "reason": "", "tokens_per_s": 100 * samples[0]})
    return pd.DataFrame(rows).assign(tpot_ms=lambda table: 1e3 * table["batch"] / table["tokens_per_s"])


def test_cross_overs_of_a_table():
    table = latency_rows()
    gone = (table["precision"] == "int8") & (table["attention"] == "eager") & (table["batch"] > 1)
    table.loc[gone, "status"] = "oom"  # one common point is no grid
    found = cross_overs(table, along="batch", differing="precision", reference={"m": "bf16"})
    assert found[["precision", "attention", "prompt_tokens", "kind"]].values.tolist() == [
        ["int8", "sdpa", 128, "overtakes"]
    ]
    assert found["x"].iloc[0] == pytest.approx(5.0)
    by_time = cross_overs(table, along="batch", differing="precision", reference={"m": "bf16"}, quantity="tpot_ms")
    assert by_time["x"].iloc[0] == pytest.approx(5.0)
    assert cross_overs(table, along="prompt_tokens", differing="attention", reference={"m": "eager"}).empty
