"""Channels against real servers."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from chassis.channels import ChannelTls, open_channel
from chassis.errors import FailedPrecondition, Unavailable
from chassis.grpc_errors import from_rpc_error
from chassis.metrics import RPC_IN_FLIGHT
from chassis.request_id import bound_request_id, current_request_id
from chassis.settings import ServiceSettings
from tandem.v1 import gateway_pb2, gateway_pb2_grpc, language_pb2, vision_pb2

COUNT = gateway_pb2.CountTokensRequest()


async def test_all_four_rpc_kinds_send_the_current_request_id(serve: Any) -> None:
    seen = []

    async def one(self: Any, request: Any, context: Any) -> Any:
        seen.append(current_request_id())
        return gateway_pb2.CountTokensResponse()

    async def down(self: Any, request: Any, context: Any) -> AsyncIterator[Any]:
        seen.append(current_request_id())
        yield gateway_pb2.GatewayGenerateResponse()

    async def up(self: Any, requests: Any, context: Any) -> Any:
        seen.append(current_request_id())
        return gateway_pb2.PutImageResponse()

    async def both(self: Any, requests: Any, context: Any) -> AsyncIterator[Any]:
        seen.append(current_request_id())
        yield language_pb2.GenerateResponse()

    run = await serve(gateway={"CountTokens": one, "Generate": down, "PutImage": up}, language={"Generate": both})
    with bound_request_id("story-7"):
        await run.gateway.CountTokens(COUNT, metadata=(("x-other", "kept"),))
        [_ async for _ in run.gateway.Generate(gateway_pb2.GatewayGenerateRequest())]
        await run.gateway.PutImage(iter([]))
        [_ async for _ in run.language.Generate(iter([]))]
    assert seen == ["story-7"] * 4


async def test_a_call_is_retried_while_the_server_is_unavailable(serve: Any) -> None:
    attempts = []

    async def late(self: Any, request: Any, context: Any) -> Any:
        attempts.append(current_request_id())
        if len(attempts) < 3:
            raise Unavailable("Not yet.", reason="MODEL_LOADING", retry_after_s=1)
        return gateway_pb2.CountTokensResponse(prompt_tokens=5)

    run = await serve(gateway={"CountTokens": late})
    with bound_request_id("same"):
        assert (await run.gateway.CountTokens(COUNT)).prompt_tokens == 5
    assert attempts == ["same"] * 3


async def test_a_request_with_an_image_is_retried(serve: Any) -> None:
    """By default, gRPC does not retry requests above 256 KiB."""
    sizes = []

    async def late(self: Any, request: Any, context: Any) -> Any:
        sizes.append(len(request.image))
        if len(sizes) < 2:
            raise Unavailable("Not yet.")
        yield vision_pb2.EncodeResponse()

    run = await serve(vision={"Encode": late})
    assert len([message async for message in run.vision.Encode(vision_pb2.EncodeRequest(image=bytes(3_000_000)))]) == 1
    assert sizes == [3_000_000] * 2


async def test_other_errors_are_not_retried(serve: Any) -> None:
    attempts = []

    async def refuse(self: Any, request: Any, context: Any) -> Any:
        attempts.append(1)
        raise FailedPrecondition("No.", reason="NO")

    run = await serve(gateway={"CountTokens": refuse})
    with pytest.raises(grpc.aio.AioRpcError):
        await run.gateway.CountTokens(COUNT)
    assert len(attempts) == 1


async def test_a_started_stream_is_never_retried(serve: Any) -> None:
    """The user already sees its first tokens."""
    attempts = []

    async def break_off(self: Any, request: Any, context: Any) -> AsyncIterator[Any]:
        attempts.append(1)
        yield gateway_pb2.GatewayGenerateResponse()
        raise Unavailable("Gone.")

    run = await serve(gateway={"Generate": break_off})
    with pytest.raises(grpc.aio.AioRpcError):
        [_ async for _ in run.gateway.Generate(gateway_pb2.GatewayGenerateRequest())]
    assert len(attempts) == 1


async def test_a_missing_server_is_unavailable_within_seconds_and_the_error_hides_its_address() -> None:
    async with open_channel("127.0.0.1:1") as channel:
        started = time.perf_counter()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await gateway_pb2_grpc.GatewayStub(channel).CountTokens(COUNT)
    error = from_rpc_error(caught.value)
    assert isinstance(error, Unavailable)
    assert "127.0.0.1" not in error.message
    assert time.perf_counter() - started < 10


async def test_cancelling_the_task_that_reads_a_stream_cancels_the_call(serve: Any) -> None:
    """A gateway forwards a client's cancellation this way."""
    freed, began = asyncio.Event(), asyncio.Event()

    async def silent(self: Any, request: Any, context: Any) -> AsyncIterator[Any]:
        try:
            yield gateway_pb2.GatewayGenerateResponse()
            await asyncio.sleep(60)
        finally:
            freed.set()

    run = await serve(gateway={"Generate": silent})

    async def read() -> None:
        async for _ in run.gateway.Generate(gateway_pb2.GatewayGenerateRequest()):
            began.set()

    reading = asyncio.create_task(read())
    await asyncio.wait_for(began.wait(), 30)
    reading.cancel()
    await asyncio.wait_for(freed.wait(), 30)


async def test_channels_connect_under_tls_and_mutual_tls(serve: Any, certificates: Any) -> None:
    async def count(self: Any, request: Any, context: Any) -> Any:
        return gateway_pb2.CountTokensResponse(prompt_tokens=1)

    cert, key = certificates.server
    plain_tls = ServiceSettings(tls_cert=cert, tls_key=key)
    mutual = ServiceSettings(tls_cert=cert, tls_key=key, tls_client_ca=certificates.ca)
    client = ChannelTls(ca=certificates.ca, cert=certificates.client[0], key=certificates.client[1])
    for settings, tls in ((plain_tls, ChannelTls(ca=certificates.ca)), (mutual, client)):
        run = await serve(gateway={"CountTokens": count}, settings=settings, tls=tls)
        assert (await run.gateway.CountTokens(COUNT)).prompt_tokens == 1


@pytest.mark.parametrize(
    "client", ["plain text", "no certificate", "another authority's certificate", "another server authority"]
)
async def test_mutual_tls_refuses_unknown_clients(serve: Any, certificates: Any, client: str) -> None:
    cert, key = certificates.server
    settings = ServiceSettings(tls_cert=cert, tls_key=key, tls_client_ca=certificates.ca)
    tls = {
        "plain text": None,
        "no certificate": ChannelTls(ca=certificates.ca),
        "another authority's certificate": ChannelTls(
            ca=certificates.ca, cert=certificates.stranger[0], key=certificates.stranger[1]
        ),
        "another server authority": ChannelTls(
            ca=certificates.other_ca, cert=certificates.client[0], key=certificates.client[1]
        ),
    }[client]
    run = await serve(settings=settings, tls=tls)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await run.gateway.CountTokens(COUNT, timeout=60)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


def test_invalid_tls_files_are_refused_when_the_channel_opens(certificates: Any) -> None:
    cert, key = certificates.client
    for tls in (
        ChannelTls(cert=cert),
        ChannelTls(cert=cert, key=certificates.stranger[1]),
        ChannelTls(cert=key, key=cert),
        ChannelTls(ca=key),
        ChannelTls(ca=cert.parent / "nowhere.pem"),
    ):
        with pytest.raises(FailedPrecondition) as caught:
            tls.credentials()
        assert caught.value.reason == "BAD_TLS"
        assert str(cert.parent) not in caught.value.message


async def test_a_client_leaves_a_server_that_drains(serve: Any) -> None:
    async def count(self: Any, request: Any, context: Any) -> Any:
        await asyncio.sleep(0.02)
        return gateway_pb2.CountTokensResponse(prompt_tokens=5)

    first, second = await serve(gateway={"CountTokens": count}), await serve(gateway={"CountTokens": count})
    target = f"ipv4:127.0.0.1:{first.server.port},127.0.0.1:{second.server.port}"
    draining = False
    async with open_channel(target, watch_health=True) as channel:
        stub: Any = gateway_pb2_grpc.GatewayStub(channel)

        async def ask_until_stopped() -> None:
            while not draining or not stopping.done():
                await stub.CountTokens(COUNT)

        stopping = asyncio.create_task(asyncio.sleep(0))
        asking = [asyncio.create_task(ask_until_stopped()) for _ in range(8)]
        await asyncio.sleep(0.2)
        stopping = asyncio.create_task(first.server.stop(5))
        draining = True
        await stopping
        await asyncio.gather(*asking)  # no call failed
        assert (await stub.CountTokens(COUNT)).prompt_tokens == 5


async def test_a_watch_of_health_is_not_in_flight(serve: Any) -> None:
    async def count(self: Any, request: Any, context: Any) -> Any:
        return gateway_pb2.CountTokensResponse(prompt_tokens=5)

    server = await serve(gateway={"CountTokens": count})
    async with open_channel(f"127.0.0.1:{server.server.port}", watch_health=True) as channel:
        stub: Any = gateway_pb2_grpc.GatewayStub(channel)
        assert (await stub.CountTokens(COUNT)).prompt_tokens == 5
        in_flight = {
            sample.labels["method"]: sample.value for metric in RPC_IN_FLIGHT.collect() for sample in metric.samples
        }
        assert not any(in_flight.values()), in_flight


async def test_a_client_that_watches_health_waits_for_a_successor(serve: Any) -> None:
    """A busy machine takes a second or two."""

    async def count_tokens(_servicer: Any, request: Any, context: Any) -> Any:
        return gateway_pb2.CountTokensResponse()

    handlers = {"CountTokens": count_tokens}
    old = await serve(gateway=handlers)
    address = f"127.0.0.1:{old.server.port}"
    async with open_channel(address, watch_health=True) as channel:
        stub: Any = gateway_pb2_grpc.GatewayStub(channel)
        await stub.CountTokens(gateway_pb2.CountTokensRequest())
        await old.server.stop(0)
        asking = stub.CountTokens(gateway_pb2.CountTokensRequest())
        await asyncio.sleep(1.5)
        await serve(gateway=handlers, settings=ServiceSettings(listen=address))
        assert await asking.code() == grpc.StatusCode.OK
