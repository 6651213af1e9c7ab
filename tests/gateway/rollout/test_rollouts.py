"""Rollouts through the API of a gateway with scripted stages."""

import asyncio
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from tokenizers import Tokenizer

from chassis.errors import FailedPrecondition, Internal, InvalidArgument, Unavailable
from gateway.rollout.policy.choice import takes_canary
from tandem.v1 import gateway_pb2, rollout_pb2
from tests.gateway.rollout.live_gateway import CANARY, STABLE, LiveGateway, open_gateway
from tests.gateway.rollout.lost_disk import LostDisk
from tests.gateway.scripted import error_of, eventually

PREPARING, RUNNING = rollout_pb2.ROLLOUT_PHASE_PREPARING, rollout_pb2.ROLLOUT_PHASE_RUNNING
ROLLED_BACK, PROMOTED = rollout_pb2.ROLLOUT_PHASE_ROLLED_BACK, rollout_pb2.ROLLOUT_PHASE_PROMOTED
# Percent. At 99, one run in five would route one of its 20 requests to the stable release.
NEARLY_ALL = 99.9999


async def test_a_canary_gets_requests_only_once_its_models_are_ready(live: LiveGateway) -> None:
    live.language.may_load.clear()
    assert (await live.set(NEARLY_ALL, 100)).phase == PREPARING
    assert {(await live.ask(f"user-{number}")).text for number in range(20)} == {"stable"}
    live.language.may_load.set()
    await live.wait_for_phase(RUNNING)
    texts = [(await live.ask(f"user-{number}")).text for number in range(40)]
    assert texts.count("canary") > 30
    assert (live.vision.events, live.language.events) == ([f"loaded {CANARY}"], [f"loaded {CANARY}"])


async def test_a_canary_that_cannot_be_loaded_is_rolled_back_with_the_reason(live: LiveGateway) -> None:
    live.language.load_error = FailedPrecondition("A tensor is missing.", reason="BAD_CHECKPOINT")
    await live.set(50, 100)
    rollout = await live.wait_for_phase(ROLLED_BACK)
    assert rollout.changes[-1].reason == (
        f"The canary could not be loaded: The language service could not load {CANARY}: A tensor is missing."
    )
    assert (await live.ask("somebody")).text == "stable"


async def test_a_rollout_waits_for_an_unavailable_stage(live: LiveGateway) -> None:
    live.language.load_error = Unavailable("It is being unloaded.", reason="MODEL_DRAINING")
    await live.set(50, 100)
    await asyncio.sleep(0.3)
    assert (await live.get()).phase == PREPARING
    live.language.load_error = None
    await live.wait_for_phase(RUNNING)


async def test_a_clock_that_is_changed_ends_no_wait_for_a_stage(
    live: LiveGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    live.language.load_error = Unavailable("It is being unloaded.", reason="MODEL_DRAINING")
    await live.set(50, 100)
    now = time.time
    monkeypatch.setattr("time.time", lambda: now() + 3600)
    await asyncio.sleep(0.5)
    assert (await live.get()).phase == PREPARING


async def test_a_rollout_does_not_wait_for_ever_for_a_stage(two_releases: Path, tokenizer: Tokenizer) -> None:
    async with open_gateway(two_releases, tokenizer, rollout_load_timeout_s=0.5) as live:
        live.language.load_error = Unavailable("It is being unloaded.", reason="MODEL_DRAINING")
        await live.set(50, 100)
        rollout = await live.wait_for_phase(ROLLED_BACK)
        assert rollout.changes[-1].reason.startswith("The canary could not be loaded: ")


async def test_a_rollback_that_a_lost_disk_keeps_in_memory_says_so(
    two_releases: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    path = tmp_path / "rollout.json"
    async with open_gateway(two_releases, tokenizer, rollout_file=path) as live:
        await live.set(NEARLY_ALL, 100)
        await live.wait_for_phase(RUNNING)
        disk = LostDisk(path)
        watch = live.operator.Watch(rollout_pb2.RolloutsWatchRequest())
        seen = [(await watch.read()).rollout]
        error = await error_of(live.operator.Promote(rollout_pb2.RolloutsPromoteRequest()))
        assert error.reason == "ROLLOUT_STORE_UNREACHABLE"
        rollout = (await live.operator.Rollback(rollout_pb2.RolloutsRollbackRequest())).rollout
        assert (rollout.phase, rollout.only_here) == (ROLLED_BACK, True)
        assert (await live.ask("somebody")).text == "stable"
        seen.append((await watch.read()).rollout)
        disk.restore()
        seen.append((await watch.read()).rollout)
        assert [(one.phase, one.only_here) for one in seen] == [
            (RUNNING, False),
            (ROLLED_BACK, True),
            (ROLLED_BACK, False),
        ]
        await live.wait_until(lambda rollout: rollout.store_reachable)
        watch.cancel()


async def test_workers_without_a_store_refuse_a_rollout_and_answer(two_releases: Path, tokenizer: Tokenizer) -> None:
    """Each would begin one of its own."""
    async with open_gateway(two_releases, tokenizer, workers=2) as live:
        error = await error_of(live.set(50, 100))
        assert (type(error), error.reason) == (FailedPrecondition, "NO_ROLLOUT_STORE")
        assert "--rollout-redis" in error.message
        assert (await live.ask("somebody")).text == "stable"


async def test_a_hanging_load_does_not_block_the_next_rollout(live: LiveGateway) -> None:
    live.language.num_hanging_loads = 1
    await live.set(50, 100)
    await eventually(lambda: live.language.num_hanging_loads == 0)
    await live.operator.Rollback(rollout_pb2.RolloutsRollbackRequest(reason="it does not load"))
    await live.set(50, 100)
    await live.wait_for_phase(RUNNING)


async def test_halves_that_do_not_fit_are_rolled_back(live: LiveGateway) -> None:
    live.vision.template.half_digest = bytes(32)
    await live.set(50, 100)
    rollout = await live.wait_for_phase(ROLLED_BACK)
    assert "trained with another vision half" in rollout.changes[-1].reason


async def test_a_release_is_unloaded_only_after_its_last_request(live: LiveGateway) -> None:
    await live.set(50, 100)
    await live.wait_for_phase(RUNNING)
    live.language.go[CANARY].clear()
    last = asyncio.create_task(live.ask(pin=CANARY))
    await eventually(lambda: any(start.tag == CANARY for start in live.language.starts), 20)
    await live.operator.Rollback(rollout_pb2.RolloutsRollbackRequest(reason="enough"))
    await asyncio.sleep(0.4)
    assert CANARY in live.language.models
    live.language.go[CANARY].set()
    assert (await last).text == "canary"
    await eventually(lambda: CANARY not in live.language.models and CANARY not in live.vision.models, 20)
    assert (await error_of(live.ask(pin=CANARY))).reason == "UNKNOWN_RELEASE"


async def test_the_configured_release_stays_loaded_when_another_is_promoted(live: LiveGateway) -> None:
    await live.set(50, 100)
    await live.wait_for_phase(RUNNING)
    await live.operator.Promote(rollout_pb2.RolloutsPromoteRequest())
    assert {(await live.ask(f"user-{number}")).text for number in range(20)} == {"canary"}
    await asyncio.sleep(0.3)
    assert (await live.ask(pin=STABLE)).text == "stable"
    listed = (await live.gateway.ListModels(gateway_pb2.GatewayListModelsRequest())).releases
    assert [(one.release.language_tag, one.is_default, one.ready) for one in listed] == [
        (STABLE, False, True),
        (CANARY, True, True),
    ]


async def test_a_restarted_stage_loads_the_canary_again(live: LiveGateway) -> None:
    await live.set(NEARLY_ALL, 100)
    await live.wait_for_phase(RUNNING)
    del live.language.models[CANARY]
    await eventually(lambda: CANARY in live.language.models, 20)


async def test_a_model_that_a_restarted_stage_lost_is_no_client_error(two_releases: Path, tokenizer: Tokenizer) -> None:
    """A restarted stage only has the models of its settings."""
    async with open_gateway(two_releases, tokenizer, refresh_s=60) as live:
        await live.ask()
        del live.language.models[STABLE]
        assert (await error_of(live.ask())).reason == "MODEL_ABSENT"
        live.language.add_model(STABLE)
        assert (await live.ask()).text == "stable"  # without waiting for the next refresh


async def test_pinned_requests_and_client_errors_are_not_counted(live: LiveGateway) -> None:
    await live.set(NEARLY_ALL, 100)
    await live.wait_for_phase(RUNNING)
    await live.ask(pin=CANARY)
    live.language.errors[CANARY] = InvalidArgument("The temperature is below 0.", reason="BAD_SAMPLING")
    for number in range(20):
        with pytest.raises(grpc.RpcError):
            await live.ask(f"user-{number}")
    live.language.errors[CANARY] = Internal("The decoder failed.")
    with pytest.raises(grpc.RpcError):
        await live.ask("user-1")
    await wait_for_counts(live, requests=1, errors=1)


async def wait_for_counts(live: LiveGateway, **expected: int) -> None:
    """Wait until the canary's counts are as expected."""
    await live.wait_until(lambda rollout: {name: getattr(rollout.canary, name) for name in expected} == expected)


async def test_an_answer_without_text_is_counted_as_empty(live: LiveGateway) -> None:
    await live.set(NEARLY_ALL, 100)
    await live.wait_for_phase(RUNNING)
    live.language.answers[CANARY] = []
    await live.ask("user-1")
    await wait_for_counts(live, requests=1, errors=0, empty=1)


async def test_the_guard_rolls_back_a_failing_canary(live: LiveGateway) -> None:
    await live.set(50, 100)
    await live.wait_for_phase(RUNNING)
    live.language.errors[CANARY] = Internal("The decoder failed.")
    calls = (live.ask(f"user-{number}") for number in range(150))
    await asyncio.gather(*calls, return_exceptions=True)
    rollout = await live.wait_for_phase(ROLLED_BACK)
    assert "error rate is beyond its bound" in rollout.changes[-1].reason
    assert {(await live.ask(f"user-{number}")).text for number in range(20)} == {"stable"}


async def test_the_guard_rolls_back_a_hanging_canary_before_its_requests_end(live: LiveGateway) -> None:
    rollout = await live.set(50, 100, overdue_s=3)  # longer than a busy machine needs to start all requests
    await live.wait_for_phase(RUNNING)
    live.language.go[CANARY].clear()
    keys = [f"user-{number}" for number in range(100)]
    on_canary = [key for key in keys if takes_canary(key, rollout.id, 50)]
    for key in sorted({*keys} - {*on_canary}):  # one by one, so that they are not overdue too
        assert (await live.ask(key)).text == "stable"
    hanging = [asyncio.create_task(live.ask(key)) for key in on_canary]
    rollout = await live.wait_for_phase(ROLLED_BACK)
    assert "error rate is beyond its bound" in rollout.changes[-1].reason
    assert (await live.ask(on_canary[0])).text == "stable"
    assert not any(one.done() for one in hanging)
    live.language.go[CANARY].set()
    assert {one.text for one in await asyncio.gather(*hanging)} == {"canary"}  # they stayed on their release


async def test_requests_without_a_first_token_are_reported_as_waiting(live: LiveGateway) -> None:
    await live.set(NEARLY_ALL, 100)
    await live.wait_for_phase(RUNNING)
    live.language.go[CANARY].clear()
    asked = [asyncio.create_task(live.ask(f"user-{number}")) for number in range(3)]
    await wait_for_counts(live, requests=0, waiting=3)
    live.language.go[CANARY].set()
    await asyncio.gather(*asked)
    await wait_for_counts(live, requests=3, waiting=0, overdue=0)


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
        ({}, "ROLLOUT_RUNNING"),  # the plan is valid, but another rollout runs
    ],
)
async def test_a_refused_plan_does_not_change_the_running_rollout(
    live: LiveGateway, change: dict[str, Any], reason: str
) -> None:
    await live.set(50, 100)
    before = await live.wait_for_phase(RUNNING)
    fields = {"canary": CANARY, "steps": before.plan.steps, "guard": before.plan.guard, **change}
    call = live.operator.Set(rollout_pb2.RolloutsSetRequest(plan=rollout_pb2.RolloutPlan(**fields)))
    assert (await error_of(call)).reason == reason
    after = await live.get()
    assert (after.id, after.phase, after.plan, after.changes) == (before.id, RUNNING, before.plan, before.changes)


async def test_watch_reports_every_change(live: LiveGateway) -> None:
    call = live.operator.Watch(rollout_pb2.RolloutsWatchRequest())
    assert not (await call.read()).rollout.id
    await live.set(50, 100)
    await live.wait_for_phase(RUNNING)
    await live.operator.Rollback(rollout_pb2.RolloutsRollbackRequest(reason="enough"))
    seen = [(await call.read()).rollout for _ in range(3)]
    assert [one.changes[-1].event for one in seen] == [
        rollout_pb2.ROLLOUT_EVENT_SET,
        rollout_pb2.ROLLOUT_EVENT_STARTED,
        rollout_pb2.ROLLOUT_EVENT_ROLLED_BACK,
    ]
    assert seen[-1].changes[-1].reason == "enough"
    call.cancel()


@pytest.mark.parametrize("command", ["Promote", "Rollback"])
async def test_a_command_without_a_rollout_is_refused(live: LiveGateway, command: str) -> None:
    request = getattr(rollout_pb2, f"Rollouts{command}Request")()
    assert (await error_of(getattr(live.operator, command)(request))).reason == "NO_ROLLOUT"


async def test_a_request_stays_on_one_release_from_prompt_to_answer(live: LiveGateway) -> None:
    await live.set(50, 100)
    await live.wait_for_phase(RUNNING)
    answers = await asyncio.gather(*(live.ask(f"user-{number}") for number in range(40)))
    texts = {answer.finished.release.language_tag: answer.text for answer in answers}
    assert texts == {STABLE: "stable", CANARY: "canary"}
    for answer in answers:
        assert answer.finished.release.vision_tag == answer.finished.release.language_tag
