"""Spans without tracing, and traceparent headers of callers."""

import time

import pytest

from chassis import tracing
from chassis.tracing import NO_SPAN, span, traceparent


def test_without_tracing_a_span_is_one_shared_object_and_costs_almost_nothing() -> None:
    assert span("a") is span("b", "server", {"x": 1}, [("traceparent", "00-0-0-01")]) is NO_SPAN
    assert traceparent() is None
    started = time.process_time()
    for _ in range(10_000):
        with span("a") as step:
            step.set_attributes({"x": 1})
    assert time.process_time() - started < 0.2


@pytest.mark.parametrize("header", ["", "nonsense", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "ff-1-2-3"])
def test_a_malformed_header_starts_a_new_trace(header: str) -> None:
    with tracing.tracing("test", "http://127.0.0.1:1", 1.0):
        with span("a", "server", metadata=[("traceparent", header)]):
            inside = traceparent()
        assert inside is not None
        assert inside.split("-")[1] != "0" * 32
    assert traceparent() is None


def test_sampling_applies_to_new_traces_and_callers_decide_about_theirs() -> None:
    with tracing.tracing("test", "http://127.0.0.1:1", 0.0):
        with span("a"):
            header = traceparent()
            assert header is not None
            assert int(header[-2:], 16) & 1 == 0  # the flag 'sampled'
        with span("a", "server", metadata=[("traceparent", f"00-{'1' * 32}-{'2' * 16}-01")]):
            header = traceparent()
            assert header is not None
            assert int(header[-2:], 16) & 1 == 1
