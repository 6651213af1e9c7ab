"""A server's outside: health, reflection, draining, addresses."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from chassis.channels import open_channel
from chassis.errors import FailedPrecondition
from chassis.server import Server
from chassis.settings import ServiceSettings
from tandem.v1 import gateway_pb2, gateway_pb2_grpc

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
REQUEST = gateway_pb2.GatewayGenerateRequest()


async def health_of(run: Any, name: str) -> Any:
    stub: Any = health_pb2_grpc.HealthStub(run.channel)
    return (await stub.Check(health_pb2.HealthCheckRequest(service=name))).status


class Slow:
    """A Generate that streams until it is told to end, and tells when it is over."""

    def __init__(self) -> None:
        self.end = end = asyncio.Event()
        self.freed = freed = asyncio.Event()

        async def generate(_servicer: Any, request: Any, context: Any) -> AsyncIterator[Any]:
            try:
                yield gateway_pb2.GatewayGenerateResponse(delta=gateway_pb2.TextDelta(text="first"))
                await end.wait()
                yield gateway_pb2.GatewayGenerateResponse(delta=gateway_pb2.TextDelta(text="last"))
            finally:
                freed.set()

        self.handlers = {"Generate": generate}


async def test_health_is_told_of_process_service_and_model(serve: Any) -> None:
    run = await serve()
    await run.server.health.set("tandem.v1.VisionService/tiny-v1.0.0", serving=False)
    assert await health_of(run, "") == SERVING
    assert await health_of(run, "tandem.v1.Gateway") == SERVING
    assert await health_of(run, "tandem.v1.VisionService/tiny-v1.0.0") == NOT_SERVING
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await health_of(run, "tandem.v1.Nothing")
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


async def test_a_watcher_hears_of_changes(serve: Any) -> None:
    run = await serve()
    stub: Any = health_pb2_grpc.HealthStub(run.channel)
    watch = stub.Watch(health_pb2.HealthCheckRequest(service="tandem.v1.Gateway"))
    assert (await watch.read()).status == SERVING
    await run.server.health.set("tandem.v1.Gateway", serving=False)
    assert (await watch.read()).status == NOT_SERVING
    watch.cancel()


async def test_reflection_lists_every_service_and_describes_it(serve: Any) -> None:
    run = await serve()
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(run.channel)
    ask = reflection_pb2.ServerReflectionRequest
    call = stub.ServerReflectionInfo(
        iter([ask(list_services=""), ask(file_containing_symbol="tandem.v1.VisionService")])
    )
    listing, described = [answer async for answer in call]
    assert {service.name for service in listing.list_services_response.service} == {
        "tandem.v1.Gateway",
        "tandem.v1.LanguageService",
        "tandem.v1.VisionService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    assert described.file_descriptor_response.file_descriptor_proto


async def test_draining_lets_a_running_stream_end_and_refuses_new_calls(serve: Any) -> None:
    slow = Slow()
    run = await serve(gateway=slow.handlers)
    stub: Any = health_pb2_grpc.HealthStub(run.channel)
    watch = stub.Watch(health_pb2.HealthCheckRequest(service="tandem.v1.Gateway"))
    assert (await watch.read()).status == SERVING
    call = run.gateway.Generate(REQUEST)
    assert (await call.read()).delta.text == "first"

    stopping = asyncio.create_task(run.server.stop(drain_s=20))
    assert (await watch.read()).status == NOT_SERVING  # balancers look elsewhere first
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await run.gateway.CountTokens(gateway_pb2.CountTokensRequest(), timeout=20)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert not stopping.done()

    slow.end.set()
    started = time.perf_counter()
    assert (await call.read()).delta.text == "last"
    assert await call.code() == grpc.StatusCode.OK
    await stopping
    assert time.perf_counter() - started < 10  # an open health watch does not hold the process


async def test_what_outlives_the_drain_is_cancelled_and_freed_before_stop_returns(serve: Any) -> None:
    """The service closes its models right after; a handler may not still use them then."""
    slow = Slow()
    run = await serve(gateway=slow.handlers)
    call = run.gateway.Generate(REQUEST)
    await call.read()
    started = time.perf_counter()
    await run.server.stop(drain_s=0.3)
    assert 0.25 < time.perf_counter() - started < 10
    assert slow.freed.is_set()
    with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
        await call.read()


async def test_a_drain_can_be_cut_short(serve: Any) -> None:
    slow, at_once = Slow(), asyncio.Event()
    run = await serve(gateway=slow.handlers)
    call = run.gateway.Generate(REQUEST)
    await call.read()
    stopping = asyncio.create_task(run.server.stop(drain_s=60, at_once=at_once))
    await asyncio.sleep(0.1)
    assert not stopping.done()
    at_once.set()
    await asyncio.wait_for(stopping, 20)
    assert slow.freed.is_set()


async def test_an_answer_that_is_just_being_sent_is_not_lost_to_the_stop(serve: Any) -> None:
    """The handler has returned, but its 2 MB are still on their way through a slow reader."""

    async def large(self: Any, request: Any, context: Any) -> Any:
        return gateway_pb2.GatewayListModelsResponse(
            releases=[gateway_pb2.ReleaseInfo(release=gateway_pb2.Release(vision_tag="x" * 2_000_000))]
        )

    run = await serve(gateway={"ListModels": large})
    calls = [run.gateway.ListModels(gateway_pb2.GatewayListModelsRequest()) for _ in range(4)]
    for call in calls:
        await call.wait_for_connection()
    stopping = asyncio.create_task(run.server.stop(drain_s=20))
    for call in calls:
        assert len((await call).releases[0].release.vision_tag) == 2_000_000
    await stopping


async def test_a_taken_port_is_an_error_that_names_it(serve: Any) -> None:
    """Not a second server that silently takes half of the first one's calls."""
    run = await serve()
    second = Server(ServiceSettings(listen=f"127.0.0.1:{run.server.port}"))
    with pytest.raises(FailedPrecondition, match=str(run.server.port)) as caught:
        await second.start()
    assert caught.value.reason == "CANNOT_LISTEN"


async def test_ipv6_addresses_are_served(serve: Any) -> None:
    run = await serve(settings=ServiceSettings(listen="[::1]:0"))
    async with open_channel(f"[::1]:{run.server.port}") as channel:
        stub: Any = gateway_pb2_grpc.GatewayStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ListModels(gateway_pb2.GatewayListModelsRequest())
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


async def test_tls_files_that_are_no_pair_are_refused_at_start(certificates: Any) -> None:
    """Left to itself, gRPC would start and fail at every handshake."""
    settings = ServiceSettings(tls_cert=certificates.server[0], tls_key=certificates.client[1])
    with pytest.raises(FailedPrecondition) as caught:
        await Server(settings).start()
    assert caught.value.reason == "BAD_TLS"


async def test_one_connection_carries_more_calls_than_grpcs_own_limit(serve: Any) -> None:
    """A gateway sends all its calls of a stage over one; from the 101st on they would wait where nobody sees them."""
    inside, all_inside = 0, asyncio.Event()

    async def meet(self: object, request: object, context: object) -> gateway_pb2.CountTokensResponse:
        nonlocal inside
        inside += 1
        if inside == 300:
            all_inside.set()
        await all_inside.wait()
        return gateway_pb2.CountTokensResponse()

    running = await serve(gateway={"CountTokens": meet})
    calls = [running.gateway.CountTokens(gateway_pb2.CountTokensRequest(), timeout=30) for _ in range(300)]
    await asyncio.gather(*calls)
