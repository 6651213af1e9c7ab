"""Idle connections keep nobody out."""

import asyncio
import os
import resource
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import grpc
import pytest

from chassis.channels import open_channel
from chassis.server import Server
from chassis.settings import ServiceSettings
from tandem.v1 import gateway_pb2, gateway_pb2_grpc

READY = grpc.ChannelConnectivity.READY


class Echo(gateway_pb2_grpc.GatewayServicer):
    async def CountTokens(self, request: Any, context: Any) -> gateway_pb2.CountTokensResponse:  # noqa: N802
        return gateway_pb2.CountTokensResponse(prompt_tokens=7)


@asynccontextmanager
async def serving(**settings: Any) -> AsyncIterator[Server]:
    server = Server(ServiceSettings(**settings))
    gateway_pb2_grpc.add_GatewayServicer_to_server(Echo(), server.grpc)  # type: ignore[abstract]
    await server.start()
    yield server
    await server.stop(0)


async def call(server: Server) -> Any:
    async with open_channel(f"127.0.0.1:{server.port}") as channel:
        stub: Any = gateway_pb2_grpc.GatewayStub(channel)
        return (await stub.CountTokens(gateway_pb2.CountTokensRequest(), timeout=60)).prompt_tokens


async def ended(connection: socket.socket) -> None:
    """Wait for the server to end a connection."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(60):
        try:
            while await loop.sock_recv(connection, 65_536):
                pass
        except ConnectionResetError:
            pass


def connect(server: Server) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", server.port))
    connection.setblocking(False)
    return connection


async def test_connections_above_the_cap_are_ended_at_once_and_their_files_are_free() -> None:
    async with serving(max_connections=20) as server:
        with ExitStack() as stack:
            connections = [stack.enter_context(connect(server)) for _ in range(60)]
            endings = [asyncio.create_task(ended(connection)) for connection in connections]
            async with asyncio.timeout(60):
                while sum(ending.done() for ending in endings) < 40:  # noqa: ASYNC110  (no event to wait for)
                    await asyncio.sleep(0.02)
            for ending in endings:
                ending.cancel()
            await asyncio.gather(*endings, return_exceptions=True)
        assert await call(server) == 7


async def test_a_connection_that_says_nothing_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chassis.server._HANDSHAKE_S", 1)
    async with serving() as server:
        with connect(server) as connection:
            await ended(connection)


@pytest.mark.slow
async def test_a_connection_without_calls_is_ended_and_the_next_call_makes_another() -> None:
    async with serving(max_connection_idle_s=1) as server, open_channel(f"127.0.0.1:{server.port}") as channel:
        stub: Any = gateway_pb2_grpc.GatewayStub(channel)
        for _ in range(2):
            await stub.CountTokens(gateway_pb2.CountTokensRequest(), timeout=60)
            assert channel.get_state() == READY
            async with asyncio.timeout(60):
                while channel.get_state() == READY:  # noqa: ASYNC110  (no event to wait for)
                    await asyncio.sleep(0.05)


def test_the_cap_stays_below_the_limit_of_open_files() -> None:
    program = "from chassis.open_files import allow_connections; print(allow_connections(100_000))"

    def lower() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (512, 600))

    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, preexec_fn=lower, env=os.environ
    )
    assert 300 < int(ran.stdout) < 600
