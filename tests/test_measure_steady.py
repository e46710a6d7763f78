"""When a measurement is steady."""

import math

import pytest
from llmstudy.measure.steady import SteadyState


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
