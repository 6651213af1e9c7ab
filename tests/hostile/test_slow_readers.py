"""Clients that read nothing hold no place."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client import REGISTRY
from tokenizers import Tokenizer

from chassis import sending
from chassis.channels import open_channel
from chassis.server import Server
from chassis.settings import ServiceSettings
from checkpoint.tokenizer import byte_tokenizer
from tandem.v1 import gateway_pb2, gateway_pb2_grpc, operations_pb2
from tests.chassis.example_process import Process
from tests.gateway.scripted import World, ask, error_of, eventually, read, scripted_world
from tests.hostile.http2_client import SilentReader

GENERATE = "/tandem.v1.Gateway/Generate"
REQUEST = gateway_pb2.GatewayGenerateRequest()


class Endless(gateway_pb2_grpc.GatewayServicer):
    """Answers without an end, in large pieces."""

    def __init__(self) -> None:
        self.num_running = 0

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[gateway_pb2.GatewayGenerateResponse]:  # noqa: N802
        self.num_running += 1
        try:
            while True:
                yield gateway_pb2.GatewayGenerateResponse(delta=gateway_pb2.TextDelta(text="text " * 10_000))
        finally:
            self.num_running -= 1


@asynccontextmanager
async def serving(**settings: Any) -> AsyncIterator[tuple[Server, Endless]]:
    server, endless = Server(ServiceSettings(**settings)), Endless()  # type: ignore[abstract]
    gateway_pb2_grpc.add_GatewayServicer_to_server(endless, server.grpc)
    await server.start()
    yield server, endless
    await server.stop(0)


def num_stalled() -> float | None:
    return REGISTRY.get_sample_value("tandem_rpc_stalled")


async def test_a_stream_that_nobody_reads_ends_and_frees_all_but_its_status() -> None:
    async with serving(stall_timeout_s=0.2) as (server, endless):
        async with SilentReader(server.port) as reader:
            for _ in range(5):
                await reader.call(GENERATE, REQUEST)
            await eventually(lambda: num_stalled() == 5)
            assert endless.num_running == 0
            assert not reader.ended
        await eventually(lambda: num_stalled() == 0)  # with its connection


async def test_a_client_that_reads_again_gets_a_typed_error() -> None:
    async with serving(stall_timeout_s=0.2) as (server, endless), open_channel(f"127.0.0.1:{server.port}") as channel:
        stub: Any = gateway_pb2_grpc.GatewayStub(channel)
        call = stub.Generate(REQUEST)
        await eventually(lambda: num_stalled() == 1)
        assert endless.num_running == 0
        error = await error_of(read_all(call))
        assert (error.code.name, error.reason) == ("CANCELLED", "CLIENT_STALLED")
        await eventually(lambda: num_stalled() == 0)


async def test_a_client_with_many_stalled_streams_may_begin_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "MAX_STALLED_PER_CALLER", 3)
    async with serving(stall_timeout_s=0.2) as (server, _):
        async with SilentReader(server.port) as reader:
            for _ in range(3):
                await reader.call(GENERATE, REQUEST)
            await eventually(lambda: num_stalled() == 3)
            stream = await reader.call(GENERATE, REQUEST)
            await eventually(lambda: stream in reader.statuses)
            assert reader.statuses[stream] == str(grpc.StatusCode.RESOURCE_EXHAUSTED.value[0])
        await eventually(lambda: num_stalled() == 0)
        async with SilentReader(server.port) as reader:
            stream = await reader.call(GENERATE, REQUEST)
            await eventually(lambda: stream in reader.answered)
            assert stream not in reader.statuses


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return byte_tokenizer()


@pytest.fixture
async def world(store: Path, tokenizer: Tokenizer) -> AsyncIterator[World]:
    async with scripted_world(store, tokenizer, stall_timeout_s=0.5, max_running=1, max_waiting=0) as world:
        yield world


async def test_an_answer_that_nobody_reads_leaves_its_place_to_others(world: World) -> None:
    world.say("long " * 20_000)
    async with SilentReader(int(world.address.rpartition(":")[2])) as reader:
        await reader.call(GENERATE, ask("What is it?"))
        await eventually(lambda: num_stalled() == 1)
        world.say("Yes.")
        assert (await read(world.stub.Generate(ask("What is it?")))).text == "Yes."


async def test_watches_of_operators_end_too(world: World) -> None:
    async with SilentReader(int(world.address.rpartition(":")[2])) as reader:
        for method, request in (
            ("/tandem.v1.Operations/Watch", operations_pb2.OperationsWatchRequest(interval_s=0.2)),
            ("/grpc.health.v1.Health/Watch", REQUEST),
        ):
            await reader.call(method, request)
        await eventually(lambda: num_stalled() == 2)


async def test_a_process_with_stalled_streams_ends() -> None:
    with Process("--listen", "127.0.0.1:0", "--drain-s", "1", "--stall-timeout-s", "0.2") as process:
        ready = process.wait_for("ready")
        async with SilentReader(ready["port"]) as reader:
            for _ in range(20):
                await reader.call(GENERATE, gateway_pb2.GatewayGenerateRequest(routing_key="1000000"))
            await asyncio.to_thread(process.wait_for, "freed")
            process.popen.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(process.end) == 0
        assert not [event for event in process.events() if "in time" in event]  # no step met its limit


async def read_all(call: Any) -> None:
    [_ async for _ in call]
