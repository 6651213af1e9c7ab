"""The circuit breaker, on a fake clock."""

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


def test_only_consecutive_failures_open_the_breaker() -> None:
    breaker = CircuitBreaker(max_failures=3, pause_s=5, clock=Clock())
    for _ in range(5):
        breaker.record_failure()
        breaker.record_failure()
        breaker.record_success()
    assert (breaker.is_open, breaker.allow()) == (False, True)
    for _ in range(3):
        breaker.record_failure()
    assert (breaker.is_open, breaker.allow()) == (True, False)


def test_after_a_pause_one_attempt_is_allowed_until_its_result_is_known() -> None:
    clock = Clock()
    breaker = open_breaker(clock)
    clock.now += 5
    assert [breaker.allow() for _ in range(4)] == [True, False, False, False]
    breaker.record_success()
    assert [breaker.allow() for _ in range(4)] == [True] * 4


def test_a_failed_attempt_starts_another_pause() -> None:
    clock = Clock()
    breaker = open_breaker(clock)
    clock.now += 5
    assert breaker.allow()
    breaker.record_failure()
    clock.now += 4.9
    assert not breaker.allow()
    clock.now += 0.1
    assert breaker.allow()


def test_an_abandoned_attempt_does_not_keep_the_breaker_open_forever() -> None:
    """Its caller was cancelled, which says nothing about the service."""
    clock = Clock()
    breaker = open_breaker(clock)
    clock.now += 5
    assert breaker.allow()
    clock.now += 5
    assert breaker.allow()


@given(st.lists(st.sampled_from(["fail", "succeed", "wait", "ask"]), max_size=60))
def test_attempts_are_a_pause_apart_while_open_and_unlimited_while_closed(steps: list[str]) -> None:
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
