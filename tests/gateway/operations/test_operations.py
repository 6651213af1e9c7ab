"""The status that operators watch, over a real channel."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from chassis.api_keys import authorization
from chassis.errors import Code
from tandem.v1 import gateway_pb2, model_pb2, operations_pb2, operations_pb2_grpc
from tests.gateway.api_keys import tenant_entry
from tests.gateway.conftest import MakeWorld
from tests.gateway.halves import TAG
from tests.gateway.scripted import World, ask, error_of, eventually

IMAGE = b"an image"


@asynccontextmanager
async def watching(
    world: World, *, interval_s: float = 0.2, **options: Any
) -> AsyncIterator[AsyncIterator[operations_pb2.OperationsWatchResponse]]:
    """Yield the messages of a call to watch the gateway."""
    async with grpc.aio.insecure_channel(world.address) as channel:
        stub = operations_pb2_grpc.OperationsStub(channel)
        call = stub.Watch(operations_pb2.OperationsWatchRequest(interval_s=interval_s), **options)
        try:
            yield aiter(call)
        finally:
            call.cancel()


async def test_the_status_shows_what_just_happened(world: World) -> None:
    world.language.info.language.load.CopyFrom(model_pb2.EngineLoad(running=3, used_blocks=40, num_blocks=100))
    world.say("It is red.")
    async with watching(world) as messages:
        before = (await anext(messages)).releases[0]
        assert (before.recent.answered, list(before.recent.images)) == (0, [])
        await world.ask(IMAGE, "What colour is it?")
        await world.ask(IMAGE, "Is it red?")
        await world.stub.ListModels(gateway_pb2.GatewayListModelsRequest())  # asks the stages for their load
        await anext(messages)  # may be from before the answers
        message = await anext(messages)
    (release,) = message.releases
    assert (release.info.release.language_tag, release.info.ready, release.weight_percent) == (TAG, True, 100)
    assert (release.recent.answered, release.recent.failed, release.in_flight) == (2, 0, 0)
    assert 0 < release.recent.first_token.p50_s <= release.recent.first_token.p95_s
    levels = {one.level: one.images for one in release.recent.images}
    assert levels == {gateway_pb2.CACHE_LEVEL_MISS: 1, gateway_pb2.CACHE_LEVEL_GATEWAY: 1}
    assert [(load.running, load.used_blocks, load.num_blocks) for load in release.engines] == [(3, 40, 100)]
    assert message.rollout.in_force == TAG
    assert message.window_s > 0


async def test_a_request_in_flight_and_a_cancelled_one_are_seen(world: World) -> None:
    world.language.hangs = True
    world.say("It")
    async with watching(world) as messages:
        call = world.stub.Generate(ask("What is it?"))
        await eventually(lambda: world.language.num_running == 1)
        await anext(messages)
        assert (await anext(messages)).releases[0].in_flight == 1
        call.cancel()
        await eventually(lambda: world.language.num_running == 0)
        await anext(messages)
        recent = (await anext(messages)).releases[0].recent
    assert (recent.answered, recent.failed, recent.cancelled) == (0, 0, 1)


@pytest.mark.parametrize("interval_s", [-1, 0.1, 61, float("nan")])
async def test_other_intervals_are_refused(world: World, interval_s: float) -> None:
    async with watching(world, interval_s=interval_s) as messages:
        error = await error_of(anext(messages))
    assert (error.code, error.reason, error.field) == (Code.INVALID_ARGUMENT, "BAD_INTERVAL", "interval_s")


async def test_only_operators_may_watch(make_world: MakeWorld, write_keys: Callable[..., Path]) -> None:
    keys = write_keys(tenant_entry("shop", "shop's key"), tenant_entry("ops", "operator's key", role="operator"))
    reasons = []
    async with make_world(keys=keys) as world:
        for metadata in ([], [authorization("shop's key")]):
            async with watching(world, metadata=metadata) as messages:
                reasons.append((await error_of(anext(messages))).reason)
        async with watching(world, metadata=[authorization("operator's key")]) as messages:
            assert (await anext(messages)).releases
    assert reasons == ["NO_API_KEY", "NOT_OPERATOR"]


async def test_a_withdrawn_key_ends_the_call(make_world: MakeWorld, write_keys: Callable[..., Path]) -> None:
    keys = write_keys(tenant_entry("ops", "operator's key", role="operator"))
    metadata = [authorization("operator's key")]
    async with make_world(keys=keys, refresh_s=0.05) as world, watching(world, metadata=metadata) as messages:
        await anext(messages)
        write_keys(tenant_entry("ops", "a new key", role="operator"))
        async with asyncio.timeout(10):
            error = await error_of(_read_all(messages))
    assert error.reason == "UNKNOWN_API_KEY"


async def _read_all(messages: AsyncIterator[object]) -> None:
    async for _ in messages:
        pass
