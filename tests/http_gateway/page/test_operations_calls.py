"""The operators' calls over HTTP."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import httpx2
import pytest

from chassis.errors import PermissionDenied, Unavailable
from chassis.server import Server
from chassis.settings import ServiceSettings
from tandem.v1 import operations_pb2, operations_pb2_grpc, rollout_pb2, rollout_pb2_grpc
from tests.conftest import TAG
from tests.http_gateway.doors import RunningDoor, running_door

STATUS = "/operations/status"
PROMOTE, ROLL_BACK = "/operations/rollout/promote", "/operations/rollout/rollback"
EVERYWHERE = {"listen": "0.0.0.0:0", "allow_plaintext": True}
KEY = {"authorization": "Bearer a-key"}


@dataclass
class ScriptedOperations(operations_pb2_grpc.OperationsServicer):
    """Sends empty statuses until the caller leaves, or fails."""

    error: Exception | None = None  # raised after `num_before`
    num_before: int = 0
    has_ended: asyncio.Event = field(default_factory=asyncio.Event)

    async def Watch(  # noqa: N802
        self, request: operations_pb2.OperationsWatchRequest, context: object
    ) -> AsyncIterator[operations_pb2.OperationsWatchResponse]:
        try:
            for number in range(1_000_000):
                if self.error is not None and number == self.num_before:
                    raise self.error
                yield operations_pb2.OperationsWatchResponse(at_s=number)
                await asyncio.sleep(0.02)
        finally:
            self.has_ended.set()


@dataclass
class ScriptedRollouts(rollout_pb2_grpc.RolloutsServicer):
    """Notes commands with the metadata of their calls."""

    commands: list[tuple[str, str]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)

    async def Promote(self, request: Any, context: Any) -> rollout_pb2.RolloutsPromoteResponse:  # noqa: N802
        self._note("promote", request, context)
        return rollout_pb2.RolloutsPromoteResponse(rollout=rollout_pb2.Rollout(in_force="new-v1.0.0"))

    async def Rollback(self, request: Any, context: Any) -> rollout_pb2.RolloutsRollbackResponse:  # noqa: N802
        self._note("rollback", request, context)
        return rollout_pb2.RolloutsRollbackResponse(rollout=rollout_pb2.Rollout(in_force="old-v1.0.0"))

    def _note(self, command: str, request: Any, context: Any) -> None:
        self.commands.append((command, request.reason))
        self.keys += [value for name, value in context.invocation_metadata() if name == "authorization"]


@dataclass
class World:
    """A door before a scripted gateway."""

    door: RunningDoor
    operations: ScriptedOperations
    rollouts: ScriptedRollouts

    async def post(self, path: str, body: object, **headers: str) -> httpx2.Response:
        return await self.door.client.post(path, json=body, headers=headers)


MakeWorld = Callable[..., Awaitable[World]]


@pytest.fixture
async def make_world() -> AsyncIterator[MakeWorld]:
    """Return `make_world(error=..., num_before=..., **settings)`."""
    async with AsyncExitStack() as stack:

        async def make(*, error: Exception | None = None, num_before: int = 0, **settings: Any) -> World:
            # Only calls that the door never makes are abstract.
            operations = ScriptedOperations(error, num_before)
            rollouts = ScriptedRollouts()  # type: ignore[abstract]
            server = Server(ServiceSettings())
            operations_pb2_grpc.add_OperationsServicer_to_server(operations, server.grpc)
            rollout_pb2_grpc.add_RolloutsServicer_to_server(rollouts, server.grpc)
            await server.start()
            stack.push_async_callback(server.stop, 0)
            door = await stack.enter_async_context(running_door(f"127.0.0.1:{server.port}", **settings))
            return World(door, operations, rollouts)

        yield make


async def statuses(door: RunningDoor, **headers: str) -> AsyncIterator[dict[str, Any]]:
    """Yield the statuses as the page reads them."""
    async with door.client.stream("GET", STATUS, headers=headers) as response:
        assert response.status_code == 200
        assert response.headers["content-type"] == "text/event-stream"
        async for line in response.aiter_lines():
            if line:
                yield json.loads(line.removeprefix("data: "))


async def test_the_status_of_a_real_gateway_names_what_the_page_draws(door: RunningDoor) -> None:
    await door.chat("What is it?", max_tokens=3)
    status = await anext(statuses(door))
    (release,) = status["releases"]
    assert release["info"]["release"]["language_tag"] == TAG
    assert (release["info"]["ready"], release["weight_percent"], release["in_flight"]) == (True, 100, 0)
    assert release["recent"]["answered"] >= 1
    assert release["recent"]["first_token"]["p50_s"] > 0
    assert int(release["engines"][0]["num_blocks"]) > 0
    assert (status["rollout"]["in_force"], status["rollout"]["id"]) == (TAG, "")


async def test_a_command_without_a_rollout_has_the_gateways_reason(door: RunningDoor) -> None:
    response = await door.client.post(PROMOTE, json={})
    assert response.json()["error"]["code"] == "NO_ROLLOUT"


async def test_a_page_that_leaves_ends_the_call(make_world: MakeWorld) -> None:
    world = await make_world()
    async for status in statuses(world.door):
        if status["at_s"] == 3:
            break
    async with asyncio.timeout(5):
        await world.operations.has_ended.wait()


async def test_a_door_that_drains_ends_the_stream_whole(make_world: MakeWorld) -> None:
    world = await make_world(drain_s=20)
    numbers = []
    async with asyncio.timeout(5):
        async for status in statuses(world.door):
            numbers.append(status["at_s"])
            world.door.life.drain.set()
    assert numbers == list(range(len(numbers)))


async def test_a_lost_gateway_breaks_the_stream(make_world: MakeWorld) -> None:
    world = await make_world(error=Unavailable("The gateway stops.", reason="STOPPING"), num_before=2)
    received = statuses(world.door)
    assert [(await anext(received))["at_s"] for _ in range(2)] == [0, 1]
    with pytest.raises(httpx2.RemoteProtocolError):
        await anext(received)


async def test_the_gateways_refusal_has_its_status(make_world: MakeWorld) -> None:
    world = await make_world(error=PermissionDenied("Not you.", reason="NOT_OPERATOR"))
    response = await world.door.client.get(STATUS)
    assert (response.status_code, response.json()["error"]["code"]) == (403, "NOT_OPERATOR")


async def test_commands_pass_on_reason_and_key(make_world: MakeWorld) -> None:
    world = await make_world()
    promoted = await world.post(PROMOTE, {"reason": "it is better"}, **KEY)
    rolled_back = await world.post(ROLL_BACK, {}, **KEY)
    assert (promoted.json()["in_force"], rolled_back.json()["in_force"]) == ("new-v1.0.0", "old-v1.0.0")
    assert world.rollouts.commands == [("promote", "it is better"), ("rollback", "")]
    assert world.rollouts.keys == ["Bearer a-key"] * 2


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b'{"reason": ""}', "text/plain", 415),  # a foreign page can send it without asking
        (b'{"reason": ""}', "application/x-www-form-urlencoded", 415),
        (b"{", "application/json", 400),
        (b'{"reason": 1}', "application/json", 400),
        (b'{"weight": 100}', "application/json", 400),
        (json.dumps({"reason": "x" * 257}).encode(), "application/json", 400),
        (json.dumps({"reason": "x" * 5000}).encode(), "application/json", 413),
    ],
)
async def test_other_bodies_command_nothing(make_world: MakeWorld, body: bytes, kind: str, status: int) -> None:
    world = await make_world()
    response = await world.door.client.post(PROMOTE, content=body, headers={"content-type": kind})
    assert response.status_code == status
    assert not world.rollouts.commands


async def test_a_door_for_others_passes_on_nothing_unasked(make_world: MakeWorld) -> None:
    """Gateways without keys take every caller for an operator."""
    world = await make_world(**EVERYWHERE)
    answers = [await world.door.client.get(STATUS, headers=KEY), await world.post(PROMOTE, {}, **KEY)]
    assert [(one.status_code, one.json()["error"]["code"]) for one in answers] == [(403, "OPERATORS_OFF")] * 2
    assert not world.rollouts.commands


async def test_a_door_for_others_passes_on_keys_if_the_operator_says_so(make_world: MakeWorld) -> None:
    world = await make_world(**EVERYWHERE, operators=True)
    without = await world.post(PROMOTE, {})
    assert (without.status_code, without.json()["error"]["code"]) == (403, "NOT_OPERATOR")
    assert (await world.post(PROMOTE, {}, **KEY)).status_code == 200
