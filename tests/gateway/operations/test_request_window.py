"""Sums and quantiles of the requests of the last minutes."""

import pytest

from gateway.answer import Report
from gateway.operations import RequestWindow
from tandem.v1 import gateway_pb2, sampling_pb2

HIT, MISS = gateway_pb2.CACHE_LEVEL_GATEWAY, gateway_pb2.CACHE_LEVEL_MISS


class Clock:
    """A clock that a test sets."""

    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def window(clock: Clock) -> RequestWindow:
    return RequestWindow(60, clock=clock)


def report(first_token_s: float = 0, *levels: gateway_pb2.CacheLevel.ValueType) -> Report:
    """Return a report of 11 tokens in one second.

    A time of 0 means that there was no token.
    """
    made = Report(started_at_s=100, images=[gateway_pb2.ImageReport(cache_level=level) for level in levels])
    if first_token_s:
        made.first_token_at_s, made.last_token_at_s = 100 + first_token_s, 101 + first_token_s
        made.num_later_tokens = 10
    return made


def test_an_empty_window_has_no_times(window: RequestWindow) -> None:
    summary = window.summary("a")
    assert (summary.answered, summary.failed, summary.cancelled) == (0, 0, 0)
    assert not summary.first_token.HasField("p50_s")
    assert not summary.inter_token.HasField("p95_s")


def test_quantiles_are_of_the_times_of_one_release(window: RequestWindow) -> None:
    for tenths in range(1, 21):
        window.add("a", "answered", report(tenths / 10), None)
    window.add("b", "answered", report(50), None)
    first_token = window.summary("a").first_token
    assert first_token.p50_s == pytest.approx(1.0)
    assert first_token.p95_s == pytest.approx(1.9)
    assert window.summary("a").inter_token.p50_s == pytest.approx(0.1)
    assert window.summary("b").first_token.p50_s == pytest.approx(50)


def test_a_request_without_a_token_counts_but_has_no_time(window: RequestWindow) -> None:
    window.add("a", "failed", report(), None)
    window.add("a", "cancelled", report(0.5), None)
    summary = window.summary("a")
    assert (summary.answered, summary.failed, summary.cancelled) == (0, 1, 1)
    assert summary.first_token.p95_s == pytest.approx(0.5)


def test_images_are_counted_by_the_level_that_had_them(window: RequestWindow) -> None:
    unknown = gateway_pb2.CACHE_LEVEL_UNSPECIFIED  # the request ended before its image was found
    window.add("a", "answered", report(0.1, HIT, MISS), None)
    window.add("a", "cancelled", report(0, HIT, unknown), None)
    assert {one.level: one.images for one in window.summary("a").images} == {HIT: 2, MISS: 1}


def test_tokens_of_complete_answers_add_up(window: RequestWindow) -> None:
    usage = sampling_pb2.Usage(prompt_tokens=40, cached_prompt_tokens=32, completion_tokens=7)
    window.add("a", "answered", report(0.1), usage)
    window.add("a", "answered", report(0.1), usage)
    window.add("a", "cancelled", report(0.1), None)
    summary = window.summary("a")
    assert (summary.prompt_tokens, summary.cached_prompt_tokens, summary.completion_tokens) == (80, 64, 14)


def test_requests_leave_the_window(window: RequestWindow, clock: Clock) -> None:
    window.add("a", "answered", report(0.1), None)
    clock.now_s += 60
    assert window.summary("a").answered == 1
    clock.now_s += 0.1
    assert window.summary("a").answered == 0


def test_the_number_of_requests_is_bounded(window: RequestWindow) -> None:
    for _ in range(5000):
        window.add("a", "answered", report(0.1), None)
    assert window.summary("a").answered == 4096
