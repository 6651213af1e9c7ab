"""Two gateways on one store act as one."""

import asyncio
import time
from pathlib import Path

import pytest

from chassis.channels import open_channel
from tandem.v1 import gateway_pb2_grpc, rollout_pb2
from tests.end_to_end.rollout_world import (
    OTHER,
    PROMOTED,
    ROLLED_BACK,
    RUNNING,
    Operator,
    World,
    ask,
    error_of,
    plan,
    question,
    steady_load,
)
from tests.gateway.redis_server import RedisServer

pytestmark = [pytest.mark.load, pytest.mark.timeout(600)]

NUM_KEYS = 10_000


def two_gateways(world: World, redis: RedisServer) -> list[str]:
    """Start two gateways on one store. Return their addresses."""
    return [world.gateway(name, flags=["--rollout-redis", redis.url]) for name in ("one", "two")]


async def test_two_gateways_choose_alike_for_every_key(world: World, redis: RedisServer) -> None:
    addresses = two_gateways(world, redis)
    operators = [Operator(address) for address in addresses]
    await operators[0].set(plan(OTHER, (50, 100), seconds=3600))
    for operator in operators:
        await operator.wait_until(lambda rollout: rollout.phase == RUNNING, within_s=60)
    started = time.monotonic()
    same = await num_equal_choices(addresses)
    print(f"\nboth gateways chose alike for {same} of {NUM_KEYS} keys, in {time.monotonic() - started:.0f} s")
    assert same == NUM_KEYS


async def test_a_rollout_continues_when_one_of_two_gateways_is_killed(
    world: World, images: list[bytes], redis: RedisServer
) -> None:
    addresses = two_gateways(world, redis)
    operators = [Operator(address) for address in addresses]
    async with steady_load(addresses, images) as load:
        await operators[0].set(plan(OTHER, (20, 50, 100)))
        counted = await operators[1].wait_until(lambda rollout: rollout.canary.requests > 5, within_s=60)
        world.stop("one")
        killed = time.monotonic()
        rollout = await operators[1].wait_until(lambda one: one.phase in (PROMOTED, ROLLED_BACK), within_s=240)
        done = time.monotonic()
    assert rollout.phase == PROMOTED, rollout.changes[-1]
    numbers = [change.number for change in rollout.changes]
    assert numbers == list(range(1, len(numbers) + 1))  # no decision was made twice
    assert {one.error for one in load.failed} <= {"UNAVAILABLE", "CANCELLED", "DEADLINE_EXCEEDED"}
    print(
        f"\none gateway was killed in step {counted.step + 1} with {counted.canary.requests} canary requests "
        f"counted by both. The other one completed the rollout {done - killed:.1f} s later"
    )


async def num_equal_choices(addresses: list[str]) -> int:
    """Return for how many keys both gateways choose alike."""
    stubs = [gateway_pb2_grpc.GatewayStub(open_channel(address)) for address in addresses]
    slots = asyncio.Semaphore(64)

    async def is_same(number: int) -> bool:
        request = question(f"key-{number}", None, max_tokens=1)
        async with slots:
            one, other = await asyncio.gather(*(ask(stub, request) for stub in stubs))
        assert one.error == other.error == ""
        return one.release == other.release

    return sum(await asyncio.gather(*(is_same(number) for number in range(NUM_KEYS))))


async def test_without_its_store_a_gateway_serves_the_last_known_rollout_and_logs_it(
    world: World, tmp_path: Path, redis: RedisServer
) -> None:
    flags = ["--rollout-redis", redis.url, "--rollout-file", str(tmp_path / "copy.json")]
    operator = Operator(world.gateway(flags=flags))
    await operator.set(plan(OTHER, (50, 100), seconds=3600))
    before = await operator.wait_until(lambda rollout: rollout.phase == RUNNING, within_s=60)
    await asyncio.sleep(0.5)
    world.stop("gateway")
    redis.kill()
    operator = Operator(world.gateway(flags=flags))
    alone = await operator.get()
    assert (alone.id, alone.phase, alone.weight_percent, alone.store_reachable) == (before.id, RUNNING, 50, False)
    assert any("serving the last known rollout" in line for line in world.logs["gateway"])
    assert (await error_of(operator.stub.Promote(rollout_pb2.RolloutsPromoteRequest()))).reason == (
        "ROLLOUT_STORE_UNREACHABLE"
    )
    rolled_back = (await operator.stub.Rollback(rollout_pb2.RolloutsRollbackRequest())).rollout
    assert (rolled_back.phase, rolled_back.only_here) == (ROLLED_BACK, True)
    redis.start()  # empty, so the gateway must restore it
    found = await operator.wait_until(lambda rollout: rollout.store_reachable, within_s=30)
    assert (found.id, found.phase, found.only_here) == (before.id, ROLLED_BACK, False)
