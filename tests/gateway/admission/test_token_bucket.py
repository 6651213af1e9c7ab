"""Token bucket: exact amounts and waits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.admission.token_bucket import TokenBucket


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_a_full_bucket_grants_one_minutes_worth_and_then_refills() -> None:
    clock = Clock()
    bucket = TokenBucket(60, clock)
    assert [bucket.take(1) for _ in range(60)] == [0.0] * 60
    assert bucket.take(1) == pytest.approx(1)
    clock.now_s = 1
    assert bucket.take(1) == 0
    assert bucket.take(1) > 0


def test_the_returned_wait_is_long_enough() -> None:
    clock = Clock()
    bucket = TokenBucket(100, clock)
    bucket.charge(130)
    clock.now_s += bucket.take(5) + 1e-6
    assert bucket.take(5) == 0


def test_an_amount_above_the_capacity_is_granted_from_a_full_bucket_and_leaves_a_debt() -> None:
    """Otherwise a small tenant could never send a long prompt."""
    clock = Clock()
    bucket = TokenBucket(100, clock)
    assert bucket.take(250) == 0
    assert bucket.take(1) == pytest.approx(151 / 100 * 60)


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(1, 50)), max_size=50))
def test_the_total_never_exceeds_the_initial_fill_plus_refills(events: list[tuple[float, int]]) -> None:
    clock = Clock()
    bucket, taken = TokenBucket(50, clock), 0
    for pause_s, amount in events:
        clock.now_s += pause_s
        if bucket.take(amount) == 0:
            taken += amount
        assert taken <= 50 + clock.now_s * 50 / 60 + 1e-6
