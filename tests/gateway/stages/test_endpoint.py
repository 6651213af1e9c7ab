"""An endpoint's load, and the failures that eject a model."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs

from chassis.errors import Internal, InvalidArgument, PermissionDenied, TandemError
from gateway.stages.endpoint import Endpoint
from tandem.v1 import model_pb2
from tests.gateway.halves import TAG


def make_endpoint(clock: Callable[[], float] = lambda: 0.0) -> Endpoint[Any]:
    return Endpoint("vision", "127.0.0.1:1", grpc.aio.insecure_channel("127.0.0.1:1"), object(), clock)


def fail(endpoint: Endpoint[Any], error: TandemError, tag: str = TAG) -> None:
    with pytest.raises(TandemError), endpoint.track_call(tag):
        raise error


async def test_repeated_failures_eject_a_model_for_longer_each_time() -> None:
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
    assert not endpoint.is_ejected(TAG)  # the success reset the ejection time


async def test_a_rejected_request_resets_the_failure_count() -> None:
    endpoint = make_endpoint()
    for _ in range(10):
        fail(endpoint, Internal("A bug."))
        fail(endpoint, Internal("A bug."))
        fail(endpoint, InvalidArgument("A bad image."))
    assert not endpoint.is_ejected(TAG)
    assert endpoint.num_in_flight == 0


async def test_a_failing_model_does_not_eject_other_models_of_the_endpoint() -> None:
    """A broken canary may run beside the stable model."""
    endpoint = make_endpoint()
    for _ in range(3):
        fail(endpoint, Internal("A bug."), "canary-v1.1.0")
        with endpoint.track_call(TAG):
            pass
    assert endpoint.is_ejected("canary-v1.1.0")
    assert not endpoint.is_ejected(TAG)


async def test_a_server_that_refuses_the_gateway_is_logged_once() -> None:
    """A wrong name would look like a dead server."""
    endpoint = make_endpoint()

    async def refuse(*_: Any, **__: Any) -> None:
        raise PermissionDenied("No.", reason="NOT_A_CLIENT")

    endpoint.stub = SimpleNamespace(ListModels=refuse)
    with capture_logs() as logs:
        await endpoint.refresh()
        await endpoint.refresh()
    [line] = logs
    assert (line["event"], line["log_level"], line["reason"]) == ("stage refuses this gateway", "error", "NOT_A_CLIENT")
    assert not endpoint.is_responsive


async def test_the_load_has_the_calls_of_other_gateways() -> None:
    """Else many gateways would overload a replica they prefer."""
    endpoint = make_endpoint()
    reported = {"one-v1.0.0": (5, 2), "other-v1.0.0": (1, 0)}

    async def list_models(*_: Any, **__: Any) -> model_pb2.ListModelsResponse:
        loads = {tag: model_pb2.EngineLoad(running=run, waiting=wait) for tag, (run, wait) in reported.items()}
        return model_pb2.ListModelsResponse(
            models=[
                model_pb2.ModelInfo(tag=tag, language=model_pb2.LanguageModelInfo(load=load))
                for tag, load in loads.items()
            ]
        )

    endpoint.stub = SimpleNamespace(ListModels=list_models)
    with endpoint.track_call(TAG), endpoint.track_call(TAG):
        await endpoint.refresh()
        assert endpoint.load == 8  # two of them are its own
        with endpoint.track_call(TAG):
            assert endpoint.load == 9
    assert endpoint.load == 6
    reported = {TAG: (0, 0)}
    with endpoint.track_call(TAG):
        await endpoint.refresh()
        assert endpoint.load == 1  # it has not reached the engine yet


async def test_a_call_that_ends_during_a_refresh_is_no_one_elses() -> None:
    endpoint = make_endpoint()
    call = endpoint.track_call(TAG)
    call.__enter__()

    async def list_models(*_: Any, **__: Any) -> model_pb2.ListModelsResponse:
        call.__exit__(None, None, None)
        load = model_pb2.LanguageModelInfo(load=model_pb2.EngineLoad(running=1))
        return model_pb2.ListModelsResponse(models=[model_pb2.ModelInfo(tag=TAG, language=load)])

    endpoint.stub = SimpleNamespace(ListModels=list_models)
    await endpoint.refresh()
    assert endpoint.load == 0


async def test_an_endpoint_that_is_gone_has_no_calls_of_others() -> None:
    endpoint = make_endpoint()
    load = model_pb2.EngineLoad(running=5)

    async def list_models(*_: Any, **__: Any) -> model_pb2.ListModelsResponse:
        info = model_pb2.ModelInfo(tag=TAG, language=model_pb2.LanguageModelInfo(load=load))
        return model_pb2.ListModelsResponse(models=[info])

    async def fail_to_list(*_: Any, **__: Any) -> None:
        raise Internal("A bug.")

    endpoint.stub = SimpleNamespace(ListModels=list_models)
    await endpoint.refresh()
    assert endpoint.load == 5
    endpoint.stub = SimpleNamespace(ListModels=fail_to_list)
    await endpoint.refresh()
    assert endpoint.load == 0
