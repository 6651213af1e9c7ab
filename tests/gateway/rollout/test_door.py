"""Rollouts through a gateway's door: loaded before, counted during, and unloaded after."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from tokenizers import Tokenizer

from chassis.errors import FailedPrecondition, Internal, InvalidArgument, Unavailable
from chassis.grpc_errors import from_rpc_error
from gateway.rollout.policy.choice import takes_canary
from tandem.v1 import gateway_pb2, rollout_pb2
from tests.gateway.rollout.door import CANARY, STABLE, Door, open_door
from tests.gateway.scripted import eventually

PREPARING, RUNNING = rollout_pb2.ROLLOUT_PHASE_PREPARING, rollout_pb2.ROLLOUT_PHASE_RUNNING
ROLLED_BACK, PROMOTED = rollout_pb2.ROLLOUT_PHASE_ROLLED_BACK, rollout_pb2.ROLLOUT_PHASE_PROMOTED
# Percent; at 99 every fifth run of twenty requests has one that is put on the stable release.
NEARLY_ALL = 99.9999


async def test_a_canary_takes_requests_once_its_models_are_ready_and_not_before(door: Door) -> None:
    door.language.may_load.clear()
    assert (await door.set(NEARLY_ALL, 100)).phase == PREPARING
    assert {(await door.ask(f"user-{number}")).text for number in range(20)} == {"stable"}
    door.language.may_load.set()
    await door.phase(RUNNING)
    texts = [(await door.ask(f"user-{number}")).text for number in range(40)]
    assert texts.count("canary") > 30
    assert (door.vision.events, door.language.events) == ([f"loaded {CANARY}"], [f"loaded {CANARY}"])


async def test_a_canary_that_cannot_be_loaded_is_rolled_back_and_the_reason_says_why(door: Door) -> None:
    door.language.load_error = FailedPrecondition("A tensor is missing.", reason="BAD_CHECKPOINT")
    await door.set(50, 100)
    rollout = await door.phase(ROLLED_BACK)
    assert rollout.changes[-1].reason == (
        f"The canary could not be loaded: The language service could not load {CANARY}: A tensor is missing."
    )
    assert (await door.ask("somebody")).text == "stable"


async def test_a_stage_that_is_away_is_waited_for(door: Door) -> None:
    door.language.load_error = Unavailable("It is being unloaded.", reason="MODEL_DRAINING")
    await door.set(50, 100)
    await asyncio.sleep(0.3)
    assert (await door.get()).phase == PREPARING
    door.language.load_error = None
    await door.phase(RUNNING)


async def test_a_load_that_hangs_does_not_hold_up_the_rollout_after_it(door: Door) -> None:
    door.language.num_hanging_loads = 1
    await door.set(50, 100)
    await eventually(lambda: door.language.num_hanging_loads == 0)
    await door.operator.Rollback(rollout_pb2.RolloutsRollbackRequest(reason="it does not load"))
    await door.set(50, 100)
    await door.phase(RUNNING)


async def test_a_pair_the_stages_say_does_not_fit_is_rolled_back(door: Door) -> None:
    door.vision.template.half_digest = bytes(32)
    await door.set(50, 100)
    rollout = await door.phase(ROLLED_BACK)
    assert "trained with another vision half" in rollout.changes[-1].reason


async def test_a_release_is_unloaded_after_the_last_request_on_it_and_not_before(door: Door) -> None:
    await door.set(50, 100)
    await door.phase(RUNNING)
    door.language.go[CANARY].clear()
    last = asyncio.create_task(door.ask(pin=CANARY))
    await eventually(lambda: any(start.tag == CANARY for start in door.language.starts), 20)
    await door.operator.Rollback(rollout_pb2.RolloutsRollbackRequest(reason="enough"))
    await asyncio.sleep(0.4)
    assert CANARY in door.language.models
    door.language.go[CANARY].set()
    assert (await last).text == "canary"
    await eventually(lambda: CANARY not in door.language.models and CANARY not in door.vision.models, 20)
    with pytest.raises(grpc.RpcError) as raised:
        await door.ask(pin=CANARY)
    assert from_rpc_error(raised.value).reason == "UNKNOWN_RELEASE"


async def test_the_release_of_the_settings_stays_loaded_when_another_is_promoted(door: Door) -> None:
    await door.set(50, 100)
    await door.phase(RUNNING)
    await door.operator.Promote(rollout_pb2.RolloutsPromoteRequest())
    assert {(await door.ask(f"user-{number}")).text for number in range(20)} == {"canary"}
    await asyncio.sleep(0.3)
    assert (await door.ask(pin=STABLE)).text == "stable"
    listed = (await door.gateway.ListModels(gateway_pb2.GatewayListModelsRequest())).releases
    assert [(one.release.language_tag, one.is_default, one.ready) for one in listed] == [
        (STABLE, False, True),
        (CANARY, True, True),
    ]


async def test_a_stage_that_starts_anew_during_a_rollout_is_given_the_canary_again(door: Door) -> None:
    await door.set(NEARLY_ALL, 100)
    await door.phase(RUNNING)
    del door.language.models[CANARY]
    await eventually(lambda: CANARY in door.language.models, 20)


async def test_a_model_that_a_stage_lost_since_it_was_asked_is_no_mistake_of_the_client(
    two: Path, tokenizer: Tokenizer
) -> None:
    """A stage that starts anew holds what its settings name; the rest it is given again, which takes a while."""
    async with open_door(two, tokenizer, refresh_s=60) as door:
        await door.ask()
        del door.language.models[STABLE]
        with pytest.raises(grpc.RpcError) as raised:
            await door.ask()
        assert from_rpc_error(raised.value).reason == "MODEL_ABSENT"
        door.language.hold(STABLE)
        assert (await door.ask()).text == "stable"  # it is found as soon as it is there


async def test_what_is_not_the_releases_doing_counts_nowhere(door: Door) -> None:
    await door.set(NEARLY_ALL, 100)
    await door.phase(RUNNING)
    await door.ask(pin=CANARY)
    door.language.errors[CANARY] = InvalidArgument("The temperature is below 0.", reason="BAD_SAMPLING")
    for number in range(20):
        with pytest.raises(grpc.RpcError):
            await door.ask(f"user-{number}")
    door.language.errors[CANARY] = Internal("The decoder failed.")
    with pytest.raises(grpc.RpcError):
        await door.ask("user-1")
    await counted(door, requests=1, errors=1)


async def counted(door: Door, **expected: int) -> None:
    """Wait until the canary's counts are these."""
    await door.until(lambda rollout: {name: getattr(rollout.canary, name) for name in expected} == expected)


async def test_an_answer_without_a_word_is_counted_as_empty(door: Door) -> None:
    await door.set(NEARLY_ALL, 100)
    await door.phase(RUNNING)
    door.language.answers[CANARY] = []
    await door.ask("user-1")
    await counted(door, requests=1, errors=0, empty=1)


async def test_the_guard_takes_a_failing_canary_back_by_itself(door: Door) -> None:
    await door.set(50, 100)
    await door.phase(RUNNING)
    door.language.errors[CANARY] = Internal("The decoder failed.")
    calls = (door.ask(f"user-{number}") for number in range(150))
    await asyncio.gather(*calls, return_exceptions=True)
    rollout = await door.phase(ROLLED_BACK)
    assert "error rate is beyond its bound" in rollout.changes[-1].reason
    assert {(await door.ask(f"user-{number}")).text for number in range(20)} == {"stable"}


async def test_the_guard_takes_a_canary_back_that_hangs_long_before_its_requests_end(door: Door) -> None:
    rollout = await door.set(50, 100, overdue_s=3)  # longer than a busy machine takes to bring all of them in
    await door.phase(RUNNING)
    door.language.go[CANARY].clear()
    keys = [f"user-{number}" for number in range(100)]
    on_canary = [key for key in keys if takes_canary(key, rollout.id, 50)]
    for key in sorted({*keys} - {*on_canary}):  # one by one: all at once they might be overdue, too
        assert (await door.ask(key)).text == "stable"
    hanging = [asyncio.create_task(door.ask(key)) for key in on_canary]
    rollout = await door.phase(ROLLED_BACK)
    assert "error rate is beyond its bound" in rollout.changes[-1].reason
    assert (await door.ask(on_canary[0])).text == "stable"
    assert not any(one.done() for one in hanging)
    door.language.go[CANARY].set()
    assert {one.text for one in await asyncio.gather(*hanging)} == {"canary"}  # begun there, ended there


async def test_what_waits_for_its_first_token_is_shown(door: Door) -> None:
    await door.set(NEARLY_ALL, 100)
    await door.phase(RUNNING)
    door.language.go[CANARY].clear()
    asked = [asyncio.create_task(door.ask(f"user-{number}")) for number in range(3)]
    await counted(door, requests=0, waiting=3)
    door.language.go[CANARY].set()
    await asyncio.gather(*asked)
    await counted(door, requests=3, waiting=0, overdue=0)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"canary": "tiny-v9.0.0"}, "UNKNOWN_TAG"),
        ({"canary": "nonsense"}, "BAD_TAG"),
        ({"canary": STABLE}, "SAME_RELEASE"),
        ({"canary": f"{STABLE}, {STABLE}"}, "SAME_RELEASE"),
        ({"steps": [rollout_pb2.RolloutStep(weight_percent=101)]}, "BAD_STEPS"),
        ({"steps": [rollout_pb2.RolloutStep(weight_percent=weight) for weight in (50, 20, 100)]}, "BAD_STEPS"),
        ({"guard": rollout_pb2.RolloutGuard(min_requests=50)}, "EMPTY_GUARD"),
        ({}, "ROLLOUT_RUNNING"),  # a good plan, but another one runs
    ],
)
async def test_a_plan_that_is_refused_leaves_the_rollout_in_force_as_it_is(
    door: Door, change: dict[str, Any], reason: str
) -> None:
    await door.set(50, 100)
    before = await door.phase(RUNNING)
    fields = {"canary": CANARY, "steps": before.plan.steps, "guard": before.plan.guard, **change}
    with pytest.raises(grpc.RpcError) as raised:
        await door.operator.Set(rollout_pb2.RolloutsSetRequest(plan=rollout_pb2.RolloutPlan(**fields)))
    assert from_rpc_error(raised.value).reason == reason
    after = await door.get()
    assert (after.id, after.phase, after.plan, after.changes) == (before.id, RUNNING, before.plan, before.changes)


async def test_watching_tells_every_change_as_it_happens(door: Door) -> None:
    call = door.operator.Watch(rollout_pb2.RolloutsWatchRequest())
    assert not (await call.read()).rollout.id
    await door.set(50, 100)
    await door.phase(RUNNING)
    await door.operator.Rollback(rollout_pb2.RolloutsRollbackRequest(reason="enough"))
    seen = [(await call.read()).rollout for _ in range(3)]
    assert [one.changes[-1].event for one in seen] == [
        rollout_pb2.ROLLOUT_EVENT_SET,
        rollout_pb2.ROLLOUT_EVENT_STARTED,
        rollout_pb2.ROLLOUT_EVENT_ROLLED_BACK,
    ]
    assert seen[-1].changes[-1].reason == "enough"
    call.cancel()


@pytest.mark.parametrize("command", ["Promote", "Rollback"])
async def test_a_command_without_a_rollout_is_refused(door: Door, command: str) -> None:
    request = getattr(rollout_pb2, f"Rollouts{command}Request")()
    with pytest.raises(grpc.RpcError) as raised:
        await getattr(door.operator, command)(request)
    assert from_rpc_error(raised.value).reason == "NO_ROLLOUT"


async def test_a_request_is_on_one_release_from_prompt_to_answer(door: Door) -> None:
    await door.set(50, 100)
    await door.phase(RUNNING)
    answers = await asyncio.gather(*(door.ask(f"user-{number}") for number in range(40)))
    texts = {answer.finished.release.language_tag: answer.text for answer in answers}
    assert texts == {STABLE: "stable", CANARY: "canary"}
    for answer in answers:
        assert answer.finished.release.vision_tag == answer.finished.release.language_tag
