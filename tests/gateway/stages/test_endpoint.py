"""How an endpoint's failures count against it."""

from collections.abc import Callable
from typing import Any

import grpc
import pytest

from chassis.errors import Internal, InvalidArgument, TandemError
from gateway.stages.endpoint import Endpoint
from tests.gateway.halves import TAG


def make_endpoint(clock: Callable[[], float] = lambda: 0.0) -> Endpoint[Any]:
    return Endpoint("vision", "127.0.0.1:1", grpc.aio.insecure_channel("127.0.0.1:1"), object(), clock)


def fail(endpoint: Endpoint[Any], error: TandemError, tag: str = TAG) -> None:
    with pytest.raises(TandemError), endpoint.track_call(tag):
        raise error


async def test_an_endpoint_that_keeps_failing_is_left_out_for_longer_each_time() -> None:
    now = 0.0
    endpoint = make_endpoint(lambda: now)
    for seconds in (1, 2, 4, 8, 16, 30, 30):
        for _ in range(3):
            assert not endpoint.is_ejected(TAG)
            fail(endpoint, Internal("A bug."))
        now += seconds - 0.01
        assert endpoint.is_ejected(TAG)
        now += 0.02
    with endpoint.track_call(TAG):
        pass
    for _ in range(3):
        fail(endpoint, Internal("A bug."))
    now += 1.01
    assert not endpoint.is_ejected(TAG)  # a success made it start over


async def test_what_is_the_requests_fault_does_not_count_against_an_endpoint() -> None:
    endpoint = make_endpoint()
    for _ in range(10):
        fail(endpoint, Internal("A bug."))
        fail(endpoint, Internal("A bug."))
        fail(endpoint, InvalidArgument("A bad image."))
    assert not endpoint.is_ejected(TAG)
    assert endpoint.num_in_flight == 0


async def test_a_model_that_keeps_failing_does_not_have_its_neighbours_left_out() -> None:
    """A broken canary and the stable model may share an endpoint, and successes of one tell nothing of the other."""
    endpoint = make_endpoint()
    for _ in range(3):
        fail(endpoint, Internal("A bug."), "canary-v1.1.0")
        with endpoint.track_call(TAG):
            pass
    assert endpoint.is_ejected("canary-v1.1.0")
    assert not endpoint.is_ejected(TAG)
