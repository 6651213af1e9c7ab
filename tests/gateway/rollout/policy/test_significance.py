"""The guard's formulas, compared with slow and obvious ones."""

import itertools
import math
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.rollout.policy.significance import (
    binomial_tail,
    p_above,
    p_rate_above,
    p_rate_below,
    rank_sum_z,
    upper_limit,
)


def summed(events: int, trials: int, rate: Fraction) -> float:
    """Return P(X >= events) as an exact sum."""
    return float(sum(math.comb(trials, k) * rate**k * (1 - rate) ** (trials - k) for k in range(events, trials + 1)))


@settings(deadline=None)
@given(
    st.integers(1, 60), st.integers(0, 60), st.fractions(Fraction(1, 1000), Fraction(999, 1000), max_denominator=1000)
)
def test_binomial_tails_are_the_exact_sums(trials: int, events: int, rate: Fraction) -> None:
    assert binomial_tail(events, trials, float(rate)) == pytest.approx(
        summed(events, trials, rate), rel=1e-9, abs=1e-300
    )


@pytest.mark.parametrize(("events", "trials", "rate"), [(10_200, 1_000_000, 0.01), (990_200, 1_000_000, 0.99)])
def test_binomial_tails_of_a_million_trials_match_the_normal_approximation(
    events: int, trials: int, rate: float
) -> None:
    z = (events - 0.5 - trials * rate) / math.sqrt(trials * rate * (1 - rate))
    assert binomial_tail(events, trials, rate) == pytest.approx(p_above(z), rel=0.05)


def test_no_event_in_n_trials_bounds_the_rate_by_the_rule_of_three() -> None:
    assert upper_limit(0, 300, 0.05) == pytest.approx(1 - 0.05 ** (1 / 300), rel=1e-9)
    assert upper_limit(300, 300, 0.05) == 1
    assert upper_limit(0, 0, 0.05) == pytest.approx(1)


@settings(deadline=None)
@given(st.integers(0, 5000), st.integers(0, 5000), st.floats(-12, -0.1))
def test_the_limit_of_a_rate_equals_that_of_a_bisection(events: int, others: int, log_level: float) -> None:
    trials, level = events + others, 10**log_level
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        chance_of_fewer = binomial_tail(others, trials, 1 - middle)
        low, high = (middle, high) if chance_of_fewer > level else (low, middle)
    assert upper_limit(events, trials, level) == pytest.approx(high, rel=1e-9)


@pytest.mark.parametrize(("stable_rate", "increase"), [(0.0, 0.1), (0.1, 0.1), (0.3, 0.05)])
def test_tests_of_rates_err_at_most_as_often_as_their_level(stable_rate: float, increase: float) -> None:
    """Sum all outcomes of a canary exactly at the bound."""
    level, stable_trials, canary_trials = 0.05, 60, 40
    canary_rate = stable_rate + increase
    above = below = 0.0
    for s, c in itertools.product(range(stable_trials + 1), range(canary_trials + 1)):
        chance = math.comb(stable_trials, s) * stable_rate**s * (1 - stable_rate) ** (stable_trials - s)
        chance *= math.comb(canary_trials, c) * canary_rate**c * (1 - canary_rate) ** (canary_trials - c)
        if chance > 1e-12:
            above += chance * (p_rate_above((s, stable_trials), (c, canary_trials), increase, level) <= level)
            below += chance * (p_rate_below((s, stable_trials), (c, canary_trials), increase, level) <= level)
    assert above <= level
    assert below <= level


values = st.lists(st.integers(0, 6), min_size=1, max_size=12)


@settings(deadline=None)
@given(st.lists(st.tuples(values, values), min_size=1, max_size=3))
def test_rank_sums_equal_a_comparison_of_every_pair(strata: list[tuple[list[int], list[int]]]) -> None:
    excess = variance = 0.0
    for stable, canary in strata:
        n, m, total = len(stable), len(canary), len(stable) + len(canary)
        pairs = sum((c > s) + (c == s) / 2 for s in stable for c in canary)
        ties = sum(t**3 - t for t in Counter(stable + canary).values())
        excess += (pairs - n * m / 2) / (total + 1)
        variance += n * m / 12 * (total + 1 - ties / (total * (total - 1))) / (total + 1) ** 2
    expected = excess / math.sqrt(variance) if variance > 1e-12 else 0.0
    counted = [(Counter(stable), Counter(canary)) for stable, canary in strata]
    assert rank_sum_z(counted) == pytest.approx(expected, abs=1e-9)


def test_rank_sums_without_pairs_are_zero() -> None:
    assert rank_sum_z([]) == rank_sum_z([({}, {1: 3})]) == rank_sum_z([({1: 5}, {1: 3})]) == 0.0


def test_the_normal_tail_matches_the_tables() -> None:
    assert [round(p_above(z), 4) for z in (0, 1.6449, 2.3263)] == [0.5, 0.05, 0.01]
