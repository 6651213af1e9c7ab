"""Spans without tracing, and traceparent headers of callers."""

import time

import pytest

from chassis import tracing
from chassis.network import peer_host
from chassis.tracing import NO_SPAN, parent_of, span, traceparent

HOST = "127.0.0.1"
SAMPLED = f"00-{'1' * 32}-{'2' * 16}-01"


def test_without_tracing_a_span_is_one_shared_object_and_costs_almost_nothing() -> None:
    assert span("a") is span("b", "server", {"x": 1}, "00-0-0-01") is NO_SPAN
    assert traceparent() is None
    started = time.process_time()
    for _ in range(10_000):
        with span("a") as step:
            step.set_attributes({"x": 1})
    assert time.process_time() - started < 0.2


@pytest.mark.parametrize("header", ["", "nonsense", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "ff-1-2-3"])
def test_a_malformed_header_starts_a_new_trace(header: str) -> None:
    with tracing.tracing("test", "http://127.0.0.1:1", 1.0):
        with span("a", "server", parent=parent_of([("traceparent", header)], HOST)):
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
        with span("a", "server", parent=parent_of([("traceparent", SAMPLED)], HOST)):
            header = traceparent()
            assert header is not None
            assert int(header[-2:], 16) & 1 == 1


@pytest.mark.parametrize("host", ["203.0.113.7", "::ffff:203.0.113.7", "2001:db8::1", "10.0.0.1", "no address"])
def test_a_caller_outside_the_trusted_networks_cannot_force_a_trace(host: str) -> None:
    """Recorded traces cost memory, and money at the collector."""
    with tracing.tracing("test", "http://127.0.0.1:1", 0.0):
        assert parent_of([("traceparent", SAMPLED)], host) is None
    with tracing.tracing("test", "http://127.0.0.1:1", 0.0, ["203.0.113.0/24", "2001:db8::/32"]):
        is_trusted = "203.0.113" in host or host == "2001:db8::1"
        assert parent_of([("traceparent", SAMPLED)], host) == (SAMPLED if is_trusted else None)


@pytest.mark.parametrize(
    ("peer", "host"),
    [
        ("ipv4:127.0.0.1:5000", "127.0.0.1"),
        ("ipv6:[::1]:5000", "::1"),
        ("ipv6:%5B::1%5D:5000", "::1"),
        ("unix:/run/tandem.sock", "unix:/run/tandem.sock"),
    ],
)
def test_the_host_of_a_peer_is_its_address_without_the_port(peer: str, host: str) -> None:
    assert peer_host(peer) == host
