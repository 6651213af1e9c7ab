"""The test of means: valid at every look, and able to decide."""

import math
import random
from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.rollout.policy.means import (
    Values,
    length_bucket,
    length_increase,
    mean_length,
    mean_logprob,
    p_mean_above,
    p_mean_below,
    surprise_bucket,
    values_of,
)

values = st.lists(st.tuples(st.integers(1, 63).map(lambda number: number / 64), st.integers(1, 9)), max_size=5)


def bernoulli(ones: int, zeros: int) -> Values:
    """Return values near 1 and 0."""
    return [(0.999, ones), (0.001, zeros)]


@pytest.mark.parametrize("increase", [0.0, 0.1])
def test_it_errs_at_most_as_often_over_all_looks(increase: float) -> None:
    """Follow every path, and stop at the first rejection.

    Values of only 0.001 and 0.999 have the largest variance.
    """
    level, stable_rate = 0.05, 0.3
    canary_rate = stable_rate + increase / 0.998
    for test in (p_mean_above, p_mean_below):
        alive, rejected = {(0, 0): 1.0}, 0.0
        for number in range(1, 19):
            following: defaultdict[tuple[int, int], float] = defaultdict(float)
            for (stable, canary), chance in alive.items():
                for one, of_stable in ((1, stable_rate), (0, 1 - stable_rate)):
                    for other, of_canary in ((1, canary_rate), (0, 1 - canary_rate)):
                        following[stable + one, canary + other] += chance * of_stable * of_canary
            alive = {}
            for (stable, canary), chance in following.items():
                found = test(bernoulli(stable, number - stable), bernoulli(canary, number - canary), increase)
                if found <= level:
                    rejected += chance
                else:
                    alive[stable, canary] = chance
        assert rejected <= level


@settings(max_examples=30, deadline=None)
@given(values, values, st.sampled_from([0.0, 0.03, 0.2, -0.1]))
def test_p_values_are_valid_for_every_mean_of_stable_and_never_speak_for_both_sides(
    stable: Values, canary: Values, increase: float
) -> None:
    above, below = p_mean_above(stable, canary, increase), p_mean_below(stable, canary, increase)
    assert 0 <= above <= 1
    assert max(above, below) > 0.1
    complements = [(1 - value, count) for value, count in stable]
    for number in range(1, 100):  # whatever stable's true mean is
        mean = number / 100
        if 0 < mean + increase < 1:
            product = _capital(canary, mean + increase) * _capital(complements, 1 - mean)
            assert above >= min(1.0, 1 / product) * (1 - 1e-5)


def test_values_at_their_limits_can_ruin_one_bet_but_not_all() -> None:
    """One value of 0 takes a whole capital at stake."""
    never: Values = [(0.0, 80)]
    often: Values = [(1.0, 20), (0.0, 60)]
    assert p_mean_above(never, often, 0.05) < 1e-3
    assert p_mean_above([(1.0, 1), *never], often, 0.05) < 0.02
    assert p_mean_above([], [], 0.05) == p_mean_below([], [], 0.05) == 1
    assert p_mean_below(never, [(0.0, 200)], 0.05) < 1e-2


def _capital(values: Values, mean: float) -> float:
    """Return the capital after a bet on each value."""
    shares = [(number / 12) ** 2 for number in range(1, 13)]
    capitals = [1 / 15] * 11 + [4 / 15]
    for value, count in values:
        for _ in range(int(count)):
            capitals = [one * (1 + share / mean * (value - mean)) for one, share in zip(capitals, shares, strict=True)]
    return sum(capitals)


def lengths(median: float, number: int, seed: int) -> Values:
    """Return log-normal lengths."""
    drawn = random.Random(seed)
    return values_of(
        "length", Counter(length_bucket(round(drawn.lognormvariate(math.log(median), 0.7))) for _ in range(number))
    )


def test_long_answers_are_found_and_equal_ones_shown() -> None:
    bound = length_increase(1.5)
    stable, equal, longer = lengths(40, 3000, 1), lengths(40, 1000, 2), lengths(100, 200, 3)
    assert p_mean_above(stable, longer, bound) < 1e-6
    assert p_mean_above(stable, equal, bound) > 0.5
    assert p_mean_below(stable, equal, bound) < 1e-6
    assert p_mean_below(stable, longer, bound) > 0.5


def test_equal_releases_are_rarely_told_apart_at_a_bound_of_nothing() -> None:
    """Every look counts."""
    rejections = 0
    for seed in range(40):
        drawn = random.Random(seed)
        stable, canary = Counter[int](), Counter[int]()
        for _ in range(20):
            stable.update(surprise_bucket(-drawn.expovariate(4)) for _ in range(40))
            canary.update(surprise_bucket(-drawn.expovariate(4)) for _ in range(10))
            if p_mean_above(values_of("surprise", stable), values_of("surprise", canary), 0.0) <= 0.05:
                rejections += 1
                break
    assert rejections <= 2


def test_no_answers_are_no_evidence() -> None:
    some = lengths(40, 100, 1)
    assert p_mean_above([], [], 0.1) == p_mean_above(some, [], 0.1) == p_mean_above([], some, 0.99) == 1


@pytest.mark.parametrize("number", [1, 2, 37, 500, 8000])
def test_means_are_those_of_the_answers_to_a_bucket(number: int) -> None:
    assert mean_length({length_bucket(number): 5}) == pytest.approx(number, rel=0.08)
    assert mean_length({}) is None


@pytest.mark.parametrize("logprob", [-0.01, -0.2, -1.0, -3.9])
def test_mean_log_probabilities_are_those_of_the_answers_to_a_bucket(logprob: float) -> None:
    assert mean_logprob({surprise_bucket(logprob): 5}) == pytest.approx(logprob, rel=0.2)
    assert mean_logprob({}) is None


def test_extreme_answers_are_cut_off() -> None:
    assert length_bucket(0) == 0
    assert length_bucket(10**9) == 63
    assert surprise_bucket(0.0) == surprise_bucket(1e-7) == 0
    assert surprise_bucket(-math.inf) == surprise_bucket(math.nan) == surprise_bucket(-5.0) == 63
