"""The circuit breaker, on a clock of the test's own."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.images.breaker import CircuitBreaker


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def open_breaker(clock: Clock) -> CircuitBreaker:
    breaker = CircuitBreaker(max_failures=3, pause_s=5, clock=clock)
    for _ in range(3):
        breaker.record_failure()
    return breaker


def test_failures_in_a_row_open_it_and_others_do_not() -> None:
    breaker = CircuitBreaker(max_failures=3, pause_s=5, clock=Clock())
    for _ in range(5):
        breaker.record_failure()
        breaker.record_failure()
        breaker.record_success()
    assert (breaker.is_open, breaker.allow()) == (False, True)
    for _ in range(3):
        breaker.record_failure()
    assert (breaker.is_open, breaker.allow()) == (True, False)


def test_after_a_pause_one_may_try_and_the_others_wait_for_what_becomes_of_it() -> None:
    clock = Clock()
    breaker = open_breaker(clock)
    clock.now += 5
    assert [breaker.allow() for _ in range(4)] == [True, False, False, False]
    breaker.record_success()
    assert [breaker.allow() for _ in range(4)] == [True] * 4


def test_a_try_that_fails_costs_another_pause() -> None:
    clock = Clock()
    breaker = open_breaker(clock)
    clock.now += 5
    assert breaker.allow()
    breaker.record_failure()
    clock.now += 4.9
    assert not breaker.allow()
    clock.now += 0.1
    assert breaker.allow()


def test_a_try_nobody_speaks_of_again_does_not_keep_it_open_for_ever() -> None:
    """Its caller left; that says nothing about the other side."""
    clock = Clock()
    breaker = open_breaker(clock)
    clock.now += 5
    assert breaker.allow()
    clock.now += 5
    assert breaker.allow()


@given(st.lists(st.sampled_from(["fail", "succeed", "wait", "ask"]), max_size=60))
def test_while_open_tries_are_a_pause_apart_and_while_closed_all_may(steps: list[str]) -> None:
    clock, num_failures, last = Clock(), 0, 0.0
    breaker = CircuitBreaker(max_failures=3, pause_s=5, clock=clock)
    for step in steps:
        if step == "fail":
            breaker.record_failure()
            num_failures += 1
            last = clock.now if num_failures == 3 else last
        elif step == "succeed":
            breaker.record_success()
            num_failures = 0
        elif step == "wait":
            clock.now += 2
        else:
            expected = num_failures < 3 or clock.now >= last + 5
            assert breaker.allow() == expected
            last = clock.now if expected else last
        assert breaker.is_open == (num_failures >= 3)
