"""The server: health, reflection, draining and addresses."""

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
from chassis.health import Health, serve_probes
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
    """A Generate handler that streams until `end` is set."""

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


async def test_health_covers_process_service_and_model(serve: Any) -> None:
    run = await serve()
    run.server.health.set("tandem.v1.VisionService/tiny-v1.0.0", serving=False)
    assert await health_of(run, "") == SERVING
    assert await health_of(run, "tandem.v1.Gateway") == SERVING
    assert await health_of(run, "tandem.v1.VisionService/tiny-v1.0.0") == NOT_SERVING
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await health_of(run, "tandem.v1.Nothing")
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


async def test_a_health_watch_reports_changes(serve: Any) -> None:
    run = await serve()
    stub: Any = health_pb2_grpc.HealthStub(run.channel)
    watch = stub.Watch(health_pb2.HealthCheckRequest(service="tandem.v1.Gateway"))
    assert (await watch.read()).status == SERVING
    run.server.health.set("tandem.v1.Gateway", serving=False)
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


async def test_reflection_v1_answers_like_v1alpha(serve: Any) -> None:
    """Newer tools ask v1 only."""
    run = await serve()
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="tandem.v1.Gateway"),
    ]
    answers = []
    for version in ("v1alpha", "v1"):
        method = run.channel.stream_stream(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )
        answers.append([answer async for answer in method(iter(requests))])
    assert answers[0] == answers[1]
    assert len(answers[1]) == 2


@pytest.mark.slow
async def test_a_client_without_calls_may_ping_every_ten_seconds(serve: Any) -> None:
    """Mobile clients keep idle connections alive this way.

    By default, gRPC ends such a connection after half a minute.
    """

    async def count(_servicer: Any, request: Any, context: Any) -> Any:
        return gateway_pb2.CountTokensResponse(prompt_tokens=5)

    run = await serve(gateway={"CountTokens": count})
    pings = [
        ("grpc.keepalive_time_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{run.server.port}", options=pings) as channel:
        await channel.channel_ready()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(channel.wait_for_state_change(grpc.ChannelConnectivity.READY), 50)
        assert channel.get_state() == grpc.ChannelConnectivity.READY


async def test_draining_finishes_a_stream_in_flight_and_refuses_new_rpcs(serve: Any) -> None:
    slow = Slow()
    run = await serve(gateway=slow.handlers)
    stub: Any = health_pb2_grpc.HealthStub(run.channel)
    watch = stub.Watch(health_pb2.HealthCheckRequest(service="tandem.v1.Gateway"))
    assert (await watch.read()).status == SERVING
    call = run.gateway.Generate(REQUEST)
    assert (await call.read()).delta.text == "first"

    stopping = asyncio.create_task(run.server.stop(drain_s=20))
    assert (await watch.read()).status == NOT_SERVING  # so that load balancers choose another replica
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await run.gateway.CountTokens(gateway_pb2.CountTokensRequest(), timeout=20)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert not stopping.done()

    slow.end.set()
    started = time.perf_counter()
    assert (await call.read()).delta.text == "last"
    assert await call.code() == grpc.StatusCode.OK
    await stopping
    assert time.perf_counter() - started < 10  # an open health watch does not delay the stop


async def test_after_the_drain_handlers_are_cancelled_before_stop_returns(serve: Any) -> None:
    """The service closes its models right after the stop."""
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


async def test_a_drain_can_be_interrupted(serve: Any) -> None:
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


async def test_a_response_in_flight_survives_the_stop(serve: Any) -> None:
    """The handler has returned, but gRPC is still sending."""

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


async def test_the_error_for_a_port_in_use_names_it(serve: Any) -> None:
    """A second server must not take half of the RPCs."""
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


async def test_mismatched_tls_files_are_refused_at_start(certificates: Any) -> None:
    """Without this check, gRPC would start and fail every handshake."""
    settings = ServiceSettings(tls_cert=certificates.server[0], tls_key=certificates.client[1])
    with pytest.raises(FailedPrecondition) as caught:
        await Server(settings).start()
    assert caught.value.reason == "BAD_TLS"


async def test_one_connection_takes_more_rpcs_than_grpcs_default(serve: Any) -> None:
    """By default, gRPC queues RPCs from the 101st on."""
    num_inside, all_inside = 0, asyncio.Event()

    async def meet(self: object, request: object, context: object) -> gateway_pb2.CountTokensResponse:
        nonlocal num_inside
        num_inside += 1
        if num_inside == 300:
            all_inside.set()
        await all_inside.wait()
        return gateway_pb2.CountTokensResponse()

    running = await serve(gateway={"CountTokens": meet})
    calls = [running.gateway.CountTokens(gateway_pb2.CountTokensRequest(), timeout=30) for _ in range(300)]
    await asyncio.gather(*calls)


async def test_probes_answer_health_alone_in_the_clear_beside_a_server_with_tls(certificates: Any) -> None:
    cert, key = certificates.server
    server = Server(ServiceSettings(tls_cert=cert, tls_key=key, tls_client_ca=certificates.ca))
    gateway_pb2_grpc.add_GatewayServicer_to_server(gateway_pb2_grpc.GatewayServicer(), server.grpc)  # type: ignore[abstract]
    server.announce("tandem.v1.Gateway")
    async with serve_probes(server.health, "127.0.0.1:0") as port, open_channel(f"127.0.0.1:{port}") as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        check = health_pb2.HealthCheckRequest
        assert (await health.Check(check(service=""))).status == NOT_SERVING
        await server.start()
        assert (await health.Check(check(service=""))).status == SERVING
        assert (await health.Check(check(service="tandem.v1.Gateway"))).status == SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await anext(aiter(gateway_pb2_grpc.GatewayStub(channel).Generate(REQUEST)))
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
        await server.stop(0)
        assert (await health.Check(check(service=""))).status == NOT_SERVING


async def test_probes_without_an_address_listen_nowhere() -> None:
    async with serve_probes(Health(), None) as port:
        assert port == -1


async def test_probes_on_a_port_in_use_explain_the_cause() -> None:
    async with serve_probes(Health(), "127.0.0.1:0") as port:
        with pytest.raises(FailedPrecondition, match="for probes: the port is in use") as caught:
            async with serve_probes(Health(), f"127.0.0.1:{port}"):
                pass
        assert caught.value.reason == "CANNOT_LISTEN"


@pytest.mark.parametrize("ours", [True, False])
async def test_an_old_connection_takes_no_new_call_and_its_stream_ends_undisturbed(serve: Any, ours: bool) -> None:
    """So clients that keep a connection find new replicas."""
    slow, peers = Slow(), []

    async def count_tokens(_servicer: Any, request: Any, context: Any) -> Any:
        peers.append(context.peer())
        return gateway_pb2.CountTokensResponse()

    handlers = {**slow.handlers, "CountTokens": count_tokens}
    run = await serve(gateway=handlers, settings=ServiceSettings(max_connection_age_s=1))
    target = f"localhost:{run.server.port}"
    async with open_channel(target) if ours else grpc.aio.insecure_channel(target) as channel:
        stub: Any = gateway_pb2_grpc.GatewayStub(channel)
        call = stub.Generate(REQUEST, wait_for_ready=True)
        assert (await call.read()).delta.text == "first"
        async with asyncio.timeout(20):
            while len(set(peers)) < 3:
                await stub.CountTokens(gateway_pb2.CountTokensRequest())
                await asyncio.sleep(0.02)
        slow.end.set()
        assert (await call.read()).delta.text == "last"
        assert await call.code() == grpc.StatusCode.OK
