"""Who goes on from a rung: laws that hold for any order of arrivals."""

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysweep.space.schedulers import Asha, Hyperband, Median, Promotion
from raysweep.study.rungs import Difference, Rungs

values = st.lists(st.floats(min_value=-1e6, max_value=1e6), min_size=1, max_size=40, unique=True)


@given(values, st.integers(2, 5))
def test_the_first_trial_goes_on_and_so_does_the_best_so_far(arrivals, eta):
    rungs = Rungs(Asha(eta=eta), 3)
    for trial, value in enumerate(arrivals):
        decision = rungs.decide(10, trial, value)
        seen = sorted(arrivals[: trial + 1])
        assert decision.peers == trial + 1
        assert decision.go_on == (value <= decision.cutoff)
        assert decision.go_on == (seen.index(value) < max(1, len(seen) // eta))


@given(values, st.integers(2, 5))
def test_rungs_do_not_see_each_other(arrivals, eta):
    both, alone = Rungs(Asha(eta=eta), 3), Rungs(Asha(eta=eta), 3)
    for trial, value in enumerate(arrivals):
        both.decide(20, trial, -value)
        assert both.decide(10, trial, value) == alone.decide(10, trial, value)


@given(values, st.integers(2, 5))
def test_values_from_a_journal_decide_like_new_ones(arrivals, eta):
    seen, remembered = Rungs(Asha(eta=eta), 3), Rungs(Asha(eta=eta), 3)
    for trial, value in enumerate(arrivals[:-1]):
        seen.decide(10, trial, value)
        remembered.record(10, trial, value)
    assert seen.decide(10, 99, arrivals[-1]) == remembered.decide(10, 99, arrivals[-1])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_is_none_is_no_pass(value):
    with pytest.raises(ValueError):
        Rungs(Asha(), 3).decide(10, 0, value)


def test_a_stop_says_why():
    rungs = Rungs(Asha(), 3)
    rungs.decide(10, 0, 1.0)
    reason = rungs.decide(10, 1, 2.0).reason
    assert "step 10" in reason and "2" in reason and "cutoff 1" in reason and "1 of 2" in reason


@given(values, st.integers(1, 6))
def test_the_median_stops_the_worse_half(arrivals, startup):
    rungs = Rungs(Median(startup_trials=startup), 3)
    for trial, value in enumerate(arrivals):
        seen = arrivals[: trial + 1]
        goes_on = rungs.decide(10, trial, value).go_on
        assert goes_on == (len(seen) <= startup or value <= statistics.median_high([*seen, -math.inf]))


@given(st.permutations(range(24)), st.integers(2, 4))
def test_promotion_goes_on_with_the_same_trials_whatever_their_order_once_all_have_come(order, eta):
    rungs = Rungs(Promotion(eta=eta), 3)
    for trial in order:
        rungs.wait(10, trial, float(trial))
    promoted = []
    while promising := rungs.promising():
        trial, decision = promising
        promoted.append(trial)
        assert decision.go_on and decision.peers == 24
        rungs.leave(10, trial)
    assert promoted == list(range(24 // eta))


@given(st.permutations(range(8)), st.integers(0, 7))
def test_a_trial_that_leaves_is_not_promoted_and_the_others_are(order, gone):
    rungs = Rungs(Promotion(eta=2), 3)
    for trial in order:
        rungs.wait(10, trial, float(trial))
    rungs.leave(10, gone)
    promoted = []
    while promising := rungs.promising():
        promoted.append(promising[0])
        rungs.leave(10, promising[0])
    assert promoted == [trial for trial in range(4) if trial != gone]


@given(st.permutations(range(12)))
def test_promotion_takes_the_deepest_rung_first(order):
    rungs = Rungs(Promotion(eta=2), 3)
    for trial in order:
        rungs.wait(10, trial, float(trial))
    rungs.wait(20, 3, 1.0)
    assert rungs.promising()[0] == 0  # one alone at a rung is not yet the best half
    assert rungs.promising(last=True)[0] == 3  # unless nobody else will come
    rungs.wait(20, 7, 2.0)
    assert rungs.promising()[0] == 3


@given(st.integers(2, 5), st.integers(1, 5))
def test_hyperband_gives_every_bracket_as_many_steps(eta, halvings):
    order = Hyperband(eta=eta).brackets(halvings)
    rungs = [eta**depth for depth in range(halvings + 1)]  # a geometric ladder, as the paper has it
    spent = []
    for bracket in range(halvings + 1):
        going, steps, before = float(order.count(bracket)), 0.0, 0
        for rung in rungs[bracket:]:
            steps, before, going = steps + going * (rung - before), rung, going / eta
        spent.append(steps)
    assert max(spent) <= 2.5 * min(spent)
    assert order[0] == 0 and {len(set(order))} == {halvings + 1}


def test_brackets_of_hyperband_skip_their_first_rungs_and_are_not_compared():
    rungs = Rungs(Hyperband(), 3)
    order = Hyperband().brackets(3)
    for bracket in range(4):
        trial = order.index(bracket)
        assert rungs.probed_rungs(trial, [5, 10, 20, 40]) == [5, 10, 20, 40][bracket:]
    first, other = order.index(0), order.index(1)
    assert rungs.decide(10, first, 1.0).go_on and rungs.decide(10, other, 2.0).go_on


@given(st.floats(0, 100), st.floats(0.01, 100))
def test_worse_at_a_level_is_so_many_errors_away(value, error):
    assert Difference(value, error).is_worse(0.95) == (value > 1.6448536269514722 * error)
    assert not Difference(math.nan, math.nan).is_worse(0.95)
