"""Several processes behind one address, as clients and operators see them."""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from typing import Any

import grpc
import pytest

from tandem.v1 import gateway_pb2, gateway_pb2_grpc
from tests.chassis.example_process import Process

pytestmark = pytest.mark.slow


@pytest.fixture
def start() -> Iterator[Any]:
    with ExitStack() as processes:  # workers see the end of theirs, and end

        def begin(*flags: str, listen: str = "127.0.0.1:0") -> Process:
            program = ("-m", "tests.chassis.example_workers")
            return processes.enter_context(Process("--listen", listen, *flags, program=program))

        yield begin


class Caller:
    """A caller with many connections."""

    def __init__(self, port: int, stack: AsyncExitStack) -> None:
        self._port = port
        self._stack = stack

    async def stub(self) -> Any:
        """Return a stub on a new connection."""
        options = [("grpc.use_local_subchannel_pool", 1)]
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{self._port}", options=options)
        return gateway_pb2_grpc.GatewayStub(await self._stack.enter_async_context(channel))

    async def connect(self, num_workers: int, *, without: int = 0) -> dict[int, Any]:
        """Return stubs of so many workers by process id."""
        stubs: dict[int, Any] = {}
        async with asyncio.timeout(60):
            while len(stubs) < num_workers:
                stub = await self.stub()
                try:
                    pid = int((await stub.Generate(answer(1)).read()).delta.text)
                except grpc.RpcError:  # a worker's queue of connections ends with it
                    continue
                if pid != without:
                    stubs.setdefault(pid, stub)
        return stubs


@asynccontextmanager
async def calling(port: int) -> AsyncIterator[Caller]:
    async with AsyncExitStack() as stack:
        yield Caller(port, stack)


def answer(number: int | str) -> gateway_pb2.GatewayGenerateRequest:
    return gateway_pb2.GatewayGenerateRequest(routing_key=str(number))


async def rest_of(call: Any) -> int:
    """Return the number of messages that are left."""
    number = 0
    while await call.read():
        number += 1
    return number


async def test_a_killed_worker_fails_its_own_streams_and_comes_back(start: Any) -> None:
    process = start()
    ready = process.wait_for("ready")
    assert (ready["workers"], len(set(ready["metrics_ports"]))) == (2, 2)
    async with calling(ready["port"]) as caller:
        stubs = await caller.connect(2)
        killed, other = stubs
        calls = {pid: stub.Generate(answer(100)) for pid, stub in stubs.items()}
        for call in calls.values():
            await call.read()
        os.kill(killed, signal.SIGKILL)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await rest_of(calls[killed])
        assert raised.value.code() == grpc.StatusCode.UNAVAILABLE
        assert await rest_of(calls[other]) == 99
        ended = process.wait_for("worker ended, starting another")
        assert ended["exit_code"] == -signal.SIGKILL
        process.wait_for("worker ready")
        assert other in await caller.connect(2, without=killed)


async def test_sigterm_drains_all_workers(start: Any) -> None:
    process = start()
    async with calling(process.wait_for("ready")["port"]) as caller:
        calls = [stub.Generate(answer(100)) for stub in (await caller.connect(2)).values()]
        for call in calls:
            await call.read()
        process.popen.send_signal(signal.SIGTERM)
        assert [await rest_of(call) for call in calls] == [99, 99]
    assert process.end() == 0
    assert process.events().count("stopped") == 3  # two workers and the supervisor
    assert "worker ended, starting another" not in process.events()


async def test_a_second_sigterm_ends_the_streams_of_all_workers(start: Any) -> None:
    process = start()
    async with calling(process.wait_for("ready")["port"]) as caller:
        calls = [stub.Generate(answer(10_000)) for stub in (await caller.connect(2)).values()]
        for call in calls:
            await call.read()
        process.popen.send_signal(signal.SIGTERM)
        for _ in calls:
            process.wait_for("stopping")
        process.popen.send_signal(signal.SIGTERM)
        for call in calls:
            with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
                await rest_of(call)
    assert process.end() == 0


async def test_a_worker_whose_event_loop_hangs_is_killed_and_replaced(start: Any) -> None:
    process = start("--hang-s", "5")
    async with calling(process.wait_for("ready")["port"]) as caller:
        ((pid, stub),) = (await caller.connect(1)).items()
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.Generate(answer("hang")).read()
        assert process.wait_for("worker hangs, killing it")["pid"] == pid
        process.wait_for("worker ready")
        assert pid not in await caller.connect(2)


async def test_workers_end_if_their_supervisor_is_killed(start: Any) -> None:
    """Otherwise they would hold the port that its successor needs."""
    process = start()
    async with calling(process.wait_for("ready")["port"]) as caller:
        await caller.connect(2)
    process.popen.kill()
    process.end()  # returns when nobody holds the log any more
    assert process.events().count("stopped") == 2


def test_a_worker_that_cannot_start_ends_all(start: Any) -> None:
    process = start("--start", "refused")
    assert process.end() == 1
    assert {line["reason"] for line in process.lines if line["event"] == "cannot start"} == {
        "DOES_NOT_FIT",
        "WORKER_FAILED",
    }
    assert "ready" not in process.events()


def test_a_second_supervisor_does_not_take_half_of_the_connections(start: Any) -> None:
    port = start().wait_for("ready")["port"]
    second = start(listen=f"127.0.0.1:{port}")
    assert second.end() == 1
    assert second.lines[-1]["reason"] == "CANNOT_LISTEN"


def test_probes_share_an_address_that_must_be_free(start: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as blocking:
        process = start("--probe-listen", f"127.0.0.1:{blocking.getsockname()[1]}")
        assert process.end() == 1
        assert process.lines[-1]["reason"] == "CANNOT_LISTEN"


def test_sigterm_before_the_workers_are_ready_ends_them(start: Any) -> None:
    process = start("--start", "slowly")
    for _ in range(2):
        process.wait_for("loading")
    process.popen.send_signal(signal.SIGTERM)
    assert process.end() == 0
    assert process.events().count("stopped before it was ready") == 3
