"""Clients that watch the health and read nothing hold up nobody."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import chassis.health
from chassis.channels import open_channel
from chassis.health import NOT_SERVING, SERVING
from chassis.server import Server
from chassis.settings import ServiceSettings
from tests.chassis.example_process import Process
from tests.hostile.http2_client import SilentReader

WATCH = "/grpc.health.v1.Health/Watch"
NAME = "tandem.v1.Gateway"
REQUEST = health_pb2.HealthCheckRequest(service=NAME)


@asynccontextmanager
async def watched_server(**settings: Any) -> AsyncIterator[tuple[Server, Any]]:
    """Yield a server, and the stub of an honest client."""
    server = Server(ServiceSettings(**settings))
    server.announce(NAME)
    await server.start()
    try:
        async with open_channel(f"127.0.0.1:{server.port}") as channel:
            yield server, health_pb2_grpc.HealthStub(channel)
    finally:
        await server.stop(0)


async def until(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    async with asyncio.timeout(timeout_s):
        while True:
            if condition():
                return
            await asyncio.sleep(0.02)


async def silent_watches(reader: SilentReader, number: int) -> list[int]:
    """Begin watches whose first response is waiting to be sent."""
    streams = [await reader.call(WATCH, REQUEST) for _ in range(number)]
    await until(lambda: reader.answered >= set(streams))
    return streams


async def test_a_status_changes_while_clients_read_nothing() -> None:
    """A lock during their writes would stop loads and shutdown."""
    async with watched_server() as (server, health), SilentReader(server.port) as reader:
        await silent_watches(reader, 20)
        watch = health.Watch(REQUEST)
        assert (await watch.read()).status == SERVING
        for serving in (False, True):
            server.health.set(NAME, serving)
            async with asyncio.timeout(60):
                assert (await watch.read()).status == (SERVING if serving else NOT_SERVING)
                assert (await health.Check(REQUEST)).status == (SERVING if serving else NOT_SERVING)
        watch.cancel()


async def test_watches_of_one_host_are_bounded_and_free_their_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chassis.health, "MAX_WATCHES_PER_HOST", 3)
    async with watched_server() as (server, health):
        async with SilentReader(server.port) as reader:
            await silent_watches(reader, 6)
            await until(lambda: len(reader.statuses) >= 3)
            assert list(reader.statuses.values()) == 3 * [str(grpc.StatusCode.RESOURCE_EXHAUSTED.value[0])]
            assert (await health.Check(REQUEST)).status == SERVING
        await until_admitted(health)


async def test_a_client_that_reads_nothing_loses_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its connection stays open."""
    monkeypatch.setattr(chassis.health, "MAX_WATCHES_PER_HOST", 3)
    async with watched_server(stall_timeout_s=0.1) as (server, health), SilentReader(server.port) as reader:
        await silent_watches(reader, 3)
        await until_admitted(health)


async def until_admitted(health: Any) -> None:
    """Wait until an honest watch is admitted."""
    async with asyncio.timeout(60):
        while True:
            watch = health.Watch(REQUEST)
            try:
                status = (await watch.read()).status
            except grpc.aio.AioRpcError as error:
                if error.code() != grpc.StatusCode.RESOURCE_EXHAUSTED:
                    raise
                await asyncio.sleep(0.05)
            else:
                assert status == SERVING
                watch.cancel()
                return


@pytest.mark.parametrize("num_signals", [1, 2])
async def test_a_process_ends_while_clients_read_nothing(num_signals: int) -> None:
    with Process("--listen", "127.0.0.1:0", "--drain-s", "1") as process:
        ready = process.wait_for("ready")
        async with SilentReader(ready["port"]) as reader:
            await silent_watches(reader, 20)
            process.popen.send_signal(signal.SIGTERM)
            process.wait_for("stopping")
            if num_signals == 2:
                process.popen.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(process.end) == 0
        assert not [event for event in process.events() if "in time" in event]  # no step met its limit
