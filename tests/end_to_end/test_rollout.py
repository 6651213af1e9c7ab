"""Rollouts on real processes, under a load of 50 streams."""

import asyncio
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from chassis.channels import open_channel
from tandem.v1 import gateway_pb2_grpc, language_pb2_grpc, model_pb2, rollout_pb2
from tests.end_to_end.faulty_language import Fault
from tests.end_to_end.rollout_world import (
    EQUAL,
    OTHER,
    PROMOTED,
    ROLLED_BACK,
    RUNNING,
    STABLE,
    Operator,
    World,
    ask,
    error_of,
    plan,
    question,
    steady_load,
)

pytestmark = [pytest.mark.load, pytest.mark.timeout(600)]

SHIPPED = Path(__file__).parents[2] / "models"


@dataclass(frozen=True, slots=True)
class Pair:
    """Two releases of one store."""

    models: Path
    stable: str
    canary: str


@pytest.fixture(params=["random weights", "the shipped releases"])
def pair(request: pytest.FixtureRequest, models: Path) -> Pair:
    if request.param == "random weights":
        return Pair(models, STABLE, OTHER)
    return Pair(SHIPPED, "tandem-demo-v1.0.0", "tandem-demo-v1.1.0")


def decisions(world: World, gateway: str = "gateway") -> list[dict[str, Any]]:
    """Return the decisions of a gateway, from its log."""
    lines = [json.loads(line) for line in world.logs[gateway] if '"rollout decision"' in line]
    return [line for line in lines if line["event"] == "rollout decision"]


async def test_a_good_release_is_promoted_without_a_failed_request(pair: Pair, images: list[bytes]) -> None:
    with World(pair.models, pair.stable) as world:
        await roll_out(world, pair, images)


async def roll_out(world: World, pair: Pair, images: list[bytes]) -> None:
    """Roll out the canary of a pair under load."""
    address = world.gateway()
    operator = Operator(address)
    async with steady_load([address], images) as load:
        await asyncio.sleep(1)
        started = time.monotonic()
        await operator.set(plan(pair.canary, (5, 25, 50, 100)))
        rollout = await operator.wait_until(lambda one: one.phase in (PROMOTED, ROLLED_BACK), within_s=240)
        took_s = time.monotonic() - started
        await asyncio.sleep(1)
    assert rollout.phase == PROMOTED, rollout.changes[-1]
    assert [change.weight_percent for change in rollout.changes] == sorted(
        change.weight_percent for change in rollout.changes
    )
    assert load.failed == []
    assert load.max_release_changes() == 1
    assert load.answers[-1].release == pair.canary
    assert world.metric("gateway-language", "faulty_images_total") > 50
    assert world.metric("gateway-language", "faulty_encoder_mismatches_total") == 0
    assert world.metric("gateway", "tandem_gateway_crossed_visual_tokens_total") == 0
    print(
        f"\n{pair.canary}: {len(load.answers)} requests, {load.num_on(pair.canary)} on the canary, "
        f"{len(load.failed)} failed, conversations changed release at most {load.max_release_changes()} times; "
        f"100 % after {took_s:.1f} s; "
        f"{world.metric('gateway-language', 'faulty_images_total'):.0f} images, 0 mismatches"
    )
    taken = decisions(world)
    kinds = [one["event_kind"] for one in taken if one["event_kind"] != "held"]
    assert kinds == ["set", "started", *["advanced"] * 3, "promoted"]
    assert all(len(one["findings"]) == 4 for one in taken if one["event_kind"] == "advanced")
    await wait_for_loaded_models(world, pair.stable, pair.canary)  # the configured one and the one in force


async def wait_for_loaded_models(world: World, *tags: str) -> None:
    """Wait until the language stage has exactly these models."""
    async with open_channel(world.address("language")) as channel:
        stub: Any = language_pb2_grpc.LanguageServiceStub(channel)
        loaded: list[str] = []
        for _ in range(200):
            loaded = [model.tag for model in (await stub.ListModels(model_pb2.ListModelsRequest())).models]
            if loaded == list(tags):
                return
            await asyncio.sleep(0.1)
        raise AssertionError(loaded)


@pytest.mark.parametrize(
    ("fault", "metric"),
    [
        ("errors", "error rate"),
        ("slow", "first token"),
        ("empty", "empty rate"),
        ("hang", "error rate"),
        ("none", ""),
    ],
)
async def test_a_faulty_canary_is_rolled_back_and_an_equal_one_is_promoted(
    world: World, images: list[bytes], fault: Fault, metric: str
) -> None:
    address = world.gateway(fault=fault, tag=EQUAL)
    operator = Operator(address)
    async with steady_load([address], images) as load:
        await asyncio.sleep(1)
        started = time.monotonic()
        await operator.set(plan(EQUAL, (20, 50, 100), seconds=4, overdue_s=3 if fault == "hang" else 30))
        rollout = await operator.wait_until(lambda one: one.phase in (PROMOTED, ROLLED_BACK), within_s=240)
        ended = time.monotonic()
        if fault == "hang":
            assert not load.failed  # it was rolled back before the deadline of its requests
        while len(after := load.sent_after(ended)) < 20:  # noqa: ASYNC110  (no event to wait for)
            await asyncio.sleep(0.1)
    last = rollout.changes[-1]
    assert rollout.phase == (ROLLED_BACK if metric else PROMOTED), last
    assert metric in last.reason
    assert {one.release for one in after} == {STABLE if metric else EQUAL}
    print(
        f"\n{fault}: {rollout_pb2.RolloutPhase.Name(rollout.phase)} after {ended - started:.1f} s, "
        f"{load.num_on(EQUAL)} answers and {len(load.failed)} failures of the canary in {len(load.answers)}: "
        f"{last.reason}"
    )


async def test_a_rollback_stops_new_requests_to_the_canary_while_its_streams_finish(
    world: World, images: list[bytes]
) -> None:
    address = world.gateway()
    operator = Operator(address)
    await operator.set(plan(OTHER, (50, 100), seconds=3600))
    await operator.wait_until(lambda rollout: rollout.phase == RUNNING, within_s=60)
    stub = gateway_pb2_grpc.GatewayStub(operator.channel)
    begun = [asyncio.Event() for _ in range(16)]
    async with steady_load([address], images) as load:
        long = [
            asyncio.create_task(ask(stub, question(f"long-{n}", None, max_tokens=600), begun[n])) for n in range(16)
        ]
        await asyncio.gather(*(one.wait() for one in begun))
        commanded = time.monotonic()
        await operator.stub.Rollback(rollout_pb2.RolloutsRollbackRequest(reason="a test"))
        answered = time.monotonic()
        await asyncio.sleep(1)
        num_in_flight = sum(not task.done() for task in long)
    ends = await asyncio.gather(*long)
    last = max((one.sent_at_s for one in load.answers if one.release == OTHER), default=commanded)
    assert load.failed == []
    assert not any(end.error for end in ends)
    assert any(end.release == OTHER for end in ends)
    assert last < answered
    await wait_for_loaded_models(world, STABLE)
    print(
        f"\nlast new request on the canary {max(0.0, last - commanded) * 1000:.1f} ms after the command, which was "
        f"answered after {(answered - commanded) * 1000:.1f} ms; {num_in_flight} long answers were in flight, and "
        f"{sum(end.release == OTHER for end in ends)} ended on the canary without an error"
    )


async def test_bad_plans_and_state_files_are_refused_and_the_rollout_stays(world: World, tmp_path: Path) -> None:
    state = tmp_path / "rollout.json"
    address = world.gateway(flags=["--rollout-file", str(state)])
    operator = Operator(address)
    good = plan(OTHER, (50, 100), seconds=3600)
    bad = {
        "UNKNOWN_TAG": plan("tiny-v9.0.0", (50, 100)),
        "BAD_TAG": plan("nonsense", (50, 100)),
        "RELEASE_MISMATCH": plan(f"{STABLE},{OTHER}", (50, 100)),
        "BAD_STEPS": plan(OTHER, (50, 101)),
        "EMPTY_GUARD": rollout_pb2.RolloutPlan(canary=OTHER, steps=good.steps),
        "SAME_RELEASE": plan(STABLE, (50, 100)),
    }
    for reason, asked in bad.items():
        assert (await error_of(operator.set(asked))).reason == reason
    assert (await operator.get()).phase == rollout_pb2.ROLLOUT_PHASE_UNSPECIFIED
    await operator.set(good)
    before = await operator.wait_until(lambda rollout: rollout.phase == RUNNING, within_s=60)
    for reason, asked in {**bad, "ROLLOUT_RUNNING": good}.items():
        assert (await error_of(operator.set(asked))).reason == reason
    after = await operator.get()
    assert (after.id, after.changes) == (before.id, before.changes)
    world.stop("gateway")
    restarted = Operator(world.gateway(flags=["--rollout-file", str(state)]))
    assert (await restarted.get()).id == before.id
    world.stop("gateway")
    state.write_text('{"document":')
    with pytest.raises(AssertionError, match=r"rollout\.json cannot be read: repair or remove it"):
        world.gateway(flags=["--rollout-file", str(state)])
