"""The paired test: exact, monotonic, and right about its error."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.rollout.policy.paired import drop_interval, p_drop_above, p_drop_below

numbers = st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(0, 400))
bounds = st.floats(0.005, 0.5)


@pytest.mark.parametrize("bound", [0.02, 0.1])
@pytest.mark.parametrize("gain_rate", [0.0, 0.05, 0.3])
def test_it_errs_at_most_as_often_as_its_level(bound: float, gain_rate: float) -> None:
    """Sum all outcomes of a canary exactly at the bound."""
    total, level = 60, 0.05
    loss_rate = gain_rate + bound
    above = below = 0.0
    for lost in range(total + 1):
        for gained in range(total - lost + 1):
            equal = total - lost - gained
            ways = math.comb(total, lost) * math.comb(total - lost, gained)
            chance = ways * loss_rate**lost * gain_rate**gained * (1 - loss_rate - gain_rate) ** equal
            if chance > 1e-12:
                above += chance * (p_drop_above(lost, gained, total, bound) <= level)
                below += chance * (p_drop_below(lost, gained, total, bound) <= level)
    assert above <= level
    assert below <= level


def test_it_errs_at_most_as_often_over_all_looks() -> None:
    """Follow every path, and stop at the first rejection."""
    bound, level, loss_rate, gain_rate = 0.1, 0.05, 0.25, 0.15
    alive, rejected = {(0, 0): 1.0}, 0.0
    for total in range(1, 61):
        following: dict[tuple[int, int], float] = {}
        for (lost, gained), chance in alive.items():
            for step, rate in (((1, 0), loss_rate), ((0, 1), gain_rate), ((0, 0), 1 - loss_rate - gain_rate)):
                key = (lost + step[0], gained + step[1])
                following[key] = following.get(key, 0.0) + chance * rate
        alive = {}
        for (lost, gained), chance in following.items():
            if p_drop_above(lost, gained, total, bound) <= level:
                rejected += chance
            else:
                alive[lost, gained] = chance
    assert 0.005 < rejected <= level


@given(numbers, bounds)
def test_a_loss_more_speaks_for_a_drop_and_a_gain_more_against_it(counts: tuple[int, int, int], bound: float) -> None:
    lost, gained, equal = counts
    total = lost + gained + equal + 1
    slack = 1 + 1e-9
    assert p_drop_above(lost + 1, gained, total, bound) <= p_drop_above(lost, gained, total, bound) * slack
    assert p_drop_above(lost, gained, total, bound) <= p_drop_above(lost, gained + 1, total, bound) * slack
    assert p_drop_below(lost, gained, total, bound) <= p_drop_below(lost + 1, gained, total, bound) * slack
    assert p_drop_below(lost, gained + 1, total, bound) <= p_drop_below(lost, gained, total, bound) * slack


@given(numbers, bounds)
def test_p_values_are_probabilities_and_never_speak_for_both_sides(counts: tuple[int, int, int], bound: float) -> None:
    lost, gained, equal = counts
    above = p_drop_above(lost, gained, lost + gained + equal, bound)
    below = p_drop_below(lost, gained, lost + gained + equal, bound)
    assert 0 <= above <= 1
    assert 0 <= below <= 1
    assert max(above, below) > 0.1


@given(numbers)
def test_the_interval_has_the_observed_drop_and_mirrors_an_exchange_of_the_releases(
    counts: tuple[int, int, int],
) -> None:
    lost, gained, equal = counts
    total = lost + gained + equal
    low, high = drop_interval(lost, gained, total)
    assert -1 <= low <= high <= 1
    if total:
        assert low <= (lost - gained) / total <= high
    assert drop_interval(gained, lost, total) == pytest.approx((-high, -low))


def test_agreement_is_evidence_and_none_is_none() -> None:
    """McNemar's test says nothing about 400 equal pairs."""
    assert p_drop_below(0, 0, 400, 0.02) < 0.005
    assert p_drop_below(0, 0, 0, 0.02) == p_drop_above(0, 0, 0, 0.02) == 1
    assert p_drop_above(100, 3, 400, 0.02) < 1e-15
    assert drop_interval(0, 0, 400)[1] < 0.02
