"""Successive halving as a rule: laws that hold for any order of arrivals."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysweep.asha import Rungs

values = st.lists(st.floats(min_value=-1e6, max_value=1e6), min_size=1, max_size=40, unique=True)


@given(values, st.integers(2, 5))
def test_the_first_goes_on_and_so_does_whoever_is_best_so_far(arrivals, eta):
    rungs = Rungs(eta)
    for trial, value in enumerate(arrivals):
        decision = rungs.decide(10, trial, value)
        seen = sorted(arrivals[: trial + 1])
        assert decision.peers == trial + 1
        assert decision.go_on == (value <= decision.cutoff)
        assert decision.go_on == (seen.index(value) < max(1, len(seen) // eta))


@given(values, st.integers(2, 5))
def test_rungs_do_not_see_each_other(arrivals, eta):
    both, alone = Rungs(eta), Rungs(eta)
    for trial, value in enumerate(arrivals):
        both.decide(20, trial, -value)
        assert both.decide(10, trial, value) == alone.decide(10, trial, value)


@given(values, st.integers(2, 5))
def test_remembered_values_decide_like_seen_ones(arrivals, eta):
    seen, told = Rungs(eta), Rungs(eta)
    for trial, value in enumerate(arrivals[:-1]):
        seen.decide(10, trial, value)
        told.record(10, trial, value)
    assert seen.decide(10, 99, arrivals[-1]) == told.decide(10, 99, arrivals[-1])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_is_none_is_no_pass(value):
    with pytest.raises(ValueError):
        Rungs(2).decide(10, 0, value)


def test_a_stop_says_why():
    rungs = Rungs(2)
    rungs.decide(10, 0, 1.0)
    reason = rungs.decide(10, 1, 2.0).reason
    assert "step 10" in reason and "2" in reason and "cutoff 1" in reason and "1 of 2" in reason
