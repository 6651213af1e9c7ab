"""Routing between replicas that time out, fail, die or move."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trustme

from chassis.channels import ChannelTls
from chassis.errors import Internal, Unavailable
from gateway.stages.errors import translate_errors
from gateway.stages.failover import with_failover
from gateway.stages.stage import Replica, Stage
from tandem.v1 import model_pb2, vision_pb2, vision_pb2_grpc
from tests.gateway.halves import TAG, vision_info
from tests.gateway.scripted import ScriptedVision, StageServer


@dataclass
class Server:
    """A vision service that can be busy, stopped and restarted."""

    vision: ScriptedVision
    process: StageServer

    @property
    def address(self) -> str:
        return self.process.address


@asynccontextmanager
async def servers(store: Path, count: int) -> AsyncIterator[list[Server]]:
    async with AsyncExitStack() as stack:
        running = []
        for _ in range(count):
            vision = ScriptedVision(vision_info(store), [])  # type: ignore[abstract]
            process = StageServer(vision, vision_pb2_grpc, "VisionService")
            running.append(Server(vision, await stack.enter_async_context(process)))
        yield running


@asynccontextmanager
async def stage_of(*targets: str, **options: Any) -> AsyncIterator[Stage[Any]]:
    stage: Stage[Any] = Stage("vision", targets, vision_pb2_grpc.VisionServiceStub, **options)
    yield stage
    await stage.close()


async def found(stage: Stage[Any]) -> set[str]:
    """Return the addresses that get calls.

    Round-robin reaches all of them within four calls.
    """
    return {(await stage.find(TAG)).endpoint.address for _ in range(4)}


async def test_a_replica_that_times_out_is_a_last_resort(store: Path) -> None:
    """A timeout does not prove a dead replica.

    When one of two replicas is killed, the other gets twice the work and may be too busy to answer.
    """
    async with servers(store, 2) as (doomed, busy), stage_of(doomed.address, busy.address) as stage:
        await stage.refresh()
        busy.vision.hangs_on_list = True
        for _ in range(3):
            await stage.refresh()
        assert await found(stage) == {doomed.address}
        first = await stage.find(TAG)
        await doomed.process.stop()
        other = await stage.find_alternative([first])
        assert other is not None
        assert other.endpoint.address == busy.address
        await stage.refresh()
        assert await found(stage) == {busy.address}


async def test_a_replica_that_timed_out_once_is_asked_again_before_a_request_fails(
    store: Path,
) -> None:
    async with servers(store, 1) as (server,), stage_of(server.address) as stage:
        server.vision.hangs_on_list = True
        finding = asyncio.create_task(stage.find(TAG))
        await asyncio.sleep(0.5)
        server.vision.hangs_on_list = False
        assert (await finding).endpoint.address == server.address


async def test_the_first_request_after_a_long_outage_finds_the_stage(store: Path) -> None:
    """By then the waits between connection attempts have grown.

    Several stages cover different moments of a wait.
    """
    async with servers(store, 6) as gone, AsyncExitStack() as stack:
        stages = [await stack.enter_async_context(stage_of(server.address)) for server in gone]
        for server, stage in zip(gone, stages, strict=True):
            await stage.refresh()
            await server.process.stop()
        end = time.monotonic() + 4
        while time.monotonic() < end:
            await asyncio.gather(*(stage.refresh() for stage in stages))
            await asyncio.sleep(0.1)
        for server, stage in zip(gone, stages, strict=True):
            await server.process.start()
            assert (await stage.find(TAG)).endpoint.address == server.address


async def test_a_dns_name_follows_its_current_addresses(store: Path) -> None:
    """Pods of a headless service come and go."""
    async with servers(store, 3) as pods:
        addresses = [pod.address for pod in pods]
        current = addresses[:2]

        async def resolve(name: str) -> list[str]:
            assert name == "vision.example:50051"
            return current

        async with stage_of("dns:///vision.example:50051", resolve=resolve) as stage:
            assert await found(stage) == set(addresses[:2])
            current = addresses[1:]
            await stage.refresh()
            assert await found(stage) == set(addresses[1:])


async def test_new_addresses_are_added_once_the_tls_files_are_valid_again(
    tmp_path: Path,
) -> None:
    """An error would end the background refresh for good."""
    ca, current = tmp_path / "ca.pem", ["127.0.0.1:1"]
    trustme.CA().cert_pem.write_to_path(ca)
    good = ca.read_bytes()

    async def resolve(name: str) -> list[str]:
        return current

    async with stage_of("dns:///vision.example:50051", resolve=resolve, tls=ChannelTls(ca=ca)) as stage:
        for content, expected in ((good, 1), (b"", 1), (good, 2)):
            ca.write_bytes(content)
            await stage.refresh()
            assert len(stage.endpoints) == expected
            current = ["127.0.0.1:1", "127.0.0.1:2"]


async def test_a_replica_whose_address_left_dns_is_replaced(store: Path) -> None:
    async with servers(store, 2) as pods:
        current = [pods[0].address]

        async def resolve(name: str) -> list[str]:
            return current

        async def encode(replica: Replica[Any]) -> str:
            with translate_errors("vision"):
                await replica.stub.Encode(vision_pb2.EncodeRequest(image=b"an image")).read()
            return replica.endpoint.address

        for pod in pods:
            pod.vision.go.set()
        async with stage_of("dns:///vision.example:50051", resolve=resolve) as stage:
            first = await stage.find(TAG)
            current = [pods[1].address]
            await stage.refresh()
            assert await with_failover(first, encode, may_retry=lambda: True) == pods[1].address


async def test_a_failed_dns_lookup_keeps_the_old_addresses(store: Path) -> None:
    async with servers(store, 1) as (server,):
        answers: list[list[str] | OSError] = [[server.address], OSError(2, "no such name")]

        async def resolve(name: str) -> list[str]:
            answer = answers.pop(0)
            if isinstance(answer, OSError):
                raise answer
            return answer

        async with stage_of("dns:///vision:1", resolve=resolve) as stage:
            await stage.find(TAG)
            await stage.refresh()
            assert await found(stage) == {server.address}


async def test_localhost_is_resolved(store: Path) -> None:
    async with servers(store, 1) as (server,):
        port = server.address.rpartition(":")[2]
        async with stage_of(f"dns:///localhost:{port}") as stage:
            assert (await stage.find(TAG)).info.state == model_pb2.MODEL_STATE_READY


async def test_an_absent_model_error_names_the_served_models(store: Path) -> None:
    async with servers(store, 1) as (server,), stage_of(server.address) as stage:
        with pytest.raises(Unavailable, match=f"does not serve other-v1.0.0, it serves {TAG}") as raised:
            await stage.find("other-v1.0.0")
    assert raised.value.reason == "MODEL_ABSENT"


async def test_ejected_endpoints_are_a_last_resort(store: Path) -> None:
    async with servers(store, 2) as (one, other), stage_of(one.address, other.address) as stage:
        await stage.refresh()

        def eject(server: Server) -> None:
            endpoint = next(endpoint for endpoint in stage.endpoints if endpoint.address == server.address)
            for _ in range(3):
                with suppress(Internal), endpoint.track_call(TAG):
                    raise Internal("A bug.")

        eject(one)
        assert await found(stage) == {other.address}
        eject(other)
        assert await found(stage) == {one.address, other.address}


async def test_calls_with_one_prefix_go_to_one_replica(store: Path) -> None:
    """They spread when it is loaded, and when they shall."""
    async with servers(store, 3) as running, AsyncExitStack() as calls:
        addresses = [server.address for server in running]
        async with stage_of(*addresses) as stage, stage_of(*addresses, routing="least-busy") as other:
            first = await stage.find(TAG, b"prefix")
            assert {(await stage.find(TAG, b"prefix")).endpoint.address for _ in range(6)} == {first.endpoint.address}
            assert len({(await other.find(TAG, b"prefix")).endpoint.address for _ in range(6)}) == 3
            for _ in range(5):
                calls.enter_context(first.endpoint.track_call(TAG))
            assert (await stage.find(TAG, b"prefix")).endpoint.address != first.endpoint.address
