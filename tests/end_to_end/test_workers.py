"""A gateway of two worker processes, with real stages and a Redis."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from chassis.grpc_errors import from_rpc_error
from tandem.v1 import gateway_pb2, gateway_pb2_grpc, sampling_pb2
from tests.end_to_end.cluster import Cluster, image
from tests.gateway.redis_server import RedisServer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

# The kernel gives each connection to either worker: all go to one of them once in 32,768 runs.
NUM_CONNECTIONS = 16


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="module")
def cluster(store: Path, redis: RedisServer) -> Iterator[Cluster]:
    flags = ["--workers", "2", "--shared-cache-url", redis.url, "--rollout-redis", redis.url]
    with Cluster(store, gateway_flags=flags) as cluster:
        yield cluster


def workers(cluster: Cluster) -> list[int]:
    """Return the process ids of the gateway's workers."""
    pid = cluster.pid("gateway-0")
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@asynccontextmanager
async def connections(cluster: Cluster) -> AsyncIterator[list[Any]]:
    """Yield stubs, each on a connection of its own."""
    async with AsyncExitStack() as stack:
        options = [("grpc.use_local_subchannel_pool", 1)]
        channels = [
            await stack.enter_async_context(grpc.aio.insecure_channel(cluster.address("gateway-0"), options=options))
            for _ in range(NUM_CONNECTIONS)
        ]
        yield [gateway_pb2_grpc.GatewayStub(channel) for channel in channels]


def question(max_tokens: int, **given: bytes) -> gateway_pb2.GatewayGenerateRequest:
    parts = [gateway_pb2.Part(text="What is this?")]
    if given:
        parts.insert(0, gateway_pb2.Part(image=gateway_pb2.Image(**given)))
    message = gateway_pb2.Message(role=gateway_pb2.ROLE_USER, parts=parts)
    sampling = sampling_pb2.SamplingOptions(max_tokens=max_tokens, ignore_eos=True)
    return gateway_pb2.GatewayGenerateRequest(messages=[message], sampling=sampling)


async def reason_of(call: Any) -> str | None:
    """Return the reason of a call's error, if any."""
    try:
        while await call.read():
            pass
    except grpc.RpcError as error:
        return from_rpc_error(error).reason or error.code().name
    return None


async def test_a_killed_worker_fails_its_own_answers_and_comes_back(cluster: Cluster) -> None:
    before = workers(cluster)
    assert len(before) == 2
    async with connections(cluster) as stubs:
        await asyncio.gather(*(reason_of(stub.Generate(question(1))) for stub in stubs))  # connects
        calls = [stub.Generate(question(100)) for stub in stubs]
        await calls[0].read()
        os.kill(cluster.pid("language-0"), signal.SIGSTOP)  # so that no answer ends before the kill
        os.kill(before[0], signal.SIGKILL)
        os.kill(cluster.pid("language-0"), signal.SIGCONT)
        reasons = await asyncio.gather(*map(reason_of, calls))
    failed = [reason for reason in reasons if reason is not None]
    assert 0 < len(failed) < NUM_CONNECTIONS
    async with asyncio.timeout(120):
        while sum('"worker ready"' in line for line in cluster.logs["gateway-0"]) < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert before[1] in workers(cluster)
    assert len(workers(cluster)) == 2
    async with connections(cluster) as stubs:
        assert (
            await asyncio.gather(*(reason_of(stub.Generate(question(1))) for stub in stubs)) == [None] * NUM_CONNECTIONS
        )


async def test_an_upload_at_one_worker_is_known_to_the_other(cluster: Cluster) -> None:
    async with connections(cluster) as stubs:
        uploaded = await stubs[0].PutImage(iter([gateway_pb2.PutImageRequest(chunk=image(1))]))
        asked = [stub.Generate(question(1, sha256=uploaded.sha256)) for stub in stubs]
        assert await asyncio.gather(*map(reason_of, asked)) == [None] * NUM_CONNECTIONS
        unknown = stubs[0].Generate(question(1, sha256=bytes(32)))
        assert await reason_of(unknown) == "IMAGE_NOT_FOUND"


async def test_sigterm_lets_the_answers_of_both_workers_end(cluster: Cluster) -> None:
    """The last test, as it ends the gateway."""
    async with connections(cluster) as stubs:
        calls = [stub.Generate(question(20)) for stub in stubs]
        await asyncio.gather(*(call.read() for call in calls))
        os.kill(cluster.pid("gateway-0"), signal.SIGTERM)
        assert await asyncio.gather(*map(reason_of, calls)) == [None] * NUM_CONNECTIONS
    async with asyncio.timeout(60):
        while sum('"stopped"' in line for line in cluster.logs["gateway-0"]) < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
