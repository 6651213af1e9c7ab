"""Failures count if the other release keeps the constraint."""

import asyncio
from typing import Any

import grpc
import pytest
from prometheus_client import generate_latest
from tokenizers import Tokenizer

from chassis.errors import InvalidArgument
from tandem.v1 import rollout_pb2, sampling_pb2
from tests.gateway.rollout.live_gateway import CANARY, STABLE, LiveGateway
from tests.gateway.rollout.test_rollouts import NEARLY_ALL, RUNNING, wait_for_counts

CANNOT = InvalidArgument("The constraint could not be followed: no token is left.", reason="CONSTRAINT_FAILED")


def choices(*texts: str) -> dict[str, Any]:
    return {"sampling": sampling_pb2.SamplingOptions(choices=sampling_pb2.Choices(texts=texts))}


async def settled(live: LiveGateway) -> rollout_pb2.Rollout:
    """Return the rollout once all answers are compared."""
    await asyncio.sleep(0.5)
    return await live.get()


@pytest.mark.parametrize(
    ("asked", "faults"),
    [
        (choices("stable"), 3),  # stable keeps it
        (choices("canary"), 0),  # this release keeps it
        (choices("neither"), 0),  # none does
        (choices(" "), 0),
        ({}, 0),
    ],
)
async def test_an_answer_that_breaks_its_constraint_is_a_fault_if_stable_keeps_it(
    live: LiveGateway, asked: dict[str, Any], faults: int
) -> None:
    await live.set(NEARLY_ALL, 100)
    await live.wait_for_phase(RUNNING)
    for number in range(3):
        assert (await live.ask(f"user-{number}", **asked)).text == "canary"
    if faults:
        await wait_for_counts(live, constraint_faults=faults)
    rollout = await settled(live)
    is_kept = not asked or "canary" in asked["sampling"].choices.texts
    assert rollout.canary.constraint_failures == (0 if is_kept else 3)
    assert (rollout.canary.constraint_faults, rollout.canary.errors, rollout.canary.empty) == (faults, 0, 0)
    checks = [start for start in live.language.starts if start.tag == STABLE]
    assert [start.priority for start in checks] == [] if is_kept else [-100] * 3
    assert not rollout.HasField("shadow")


async def test_a_constraint_that_no_release_can_follow_is_no_fault(live: LiveGateway) -> None:
    await live.set(NEARLY_ALL, 100)
    await live.wait_for_phase(RUNNING)
    live.language.errors = {STABLE: CANNOT, CANARY: CANNOT}
    for number in range(3):
        with pytest.raises(grpc.RpcError):
            await live.ask(f"user-{number}", **choices(" "))
    rollout = await settled(live)
    assert (rollout.canary.requests, rollout.canary.constraint_failures, rollout.canary.constraint_faults) == (3, 3, 0)
    del live.language.errors[STABLE]
    with pytest.raises(grpc.RpcError):
        await live.ask("user", **choices("stable"))
    await wait_for_counts(live, requests=4, constraint_failures=4, constraint_faults=1, errors=0, empty=0)


async def test_white_space_that_a_constraint_asks_for_is_no_empty_answer(
    live: LiveGateway, tokenizer: Tokenizer
) -> None:
    """Else one user who wants it ends a rollout."""
    await live.set(NEARLY_ALL, 100)
    await live.wait_for_phase(RUNNING)
    live.language.answers[CANARY] = tokenizer.encode("\n", add_special_tokens=False).ids
    await live.ask("user", sampling=sampling_pb2.SamplingOptions(regex=r"\s*"))
    await wait_for_counts(live, requests=1, empty=0, constraint_failures=0)
    await live.ask("user")
    await wait_for_counts(live, requests=2, empty=1)


async def test_an_answer_cut_off_at_a_stop_string_is_not_judged(live: LiveGateway) -> None:
    await live.set(NEARLY_ALL, 100)
    await live.wait_for_phase(RUNNING)
    await live.ask("user", stop=["ary"], **choices("stable"))
    assert (await settled(live)).canary.constraint_failures == 0


async def test_a_canary_that_alone_breaks_constraints_is_rolled_back(live: LiveGateway) -> None:
    await live.set(50, 100)
    await live.operator.Rollback(rollout_pb2.RolloutsRollbackRequest())
    plan = (await live.get()).plan
    plan.guard.max_constraint_increase = 0.02
    await live.operator.Set(rollout_pb2.RolloutsSetRequest(plan=plan))
    await live.wait_for_phase(RUNNING)
    for first in range(0, 160, 4):
        await asyncio.gather(*(live.ask(f"user-{first + one}", **choices("stable")) for one in range(4)))
    rollout = await live.wait_for_phase(rollout_pb2.ROLLOUT_PHASE_ROLLED_BACK)
    assert "The canary's constraint is beyond its bound" in rollout.changes[-1].reason


async def test_nothing_of_a_constrained_answer_is_shown(live: LiveGateway, capsys: pytest.CaptureFixture[str]) -> None:
    await live.set(NEARLY_ALL, 100)
    await live.wait_for_phase(RUNNING)
    await live.ask("user", **choices("a secret text", "stable"))
    await wait_for_counts(live, constraint_failures=1, constraint_faults=1)
    printed = capsys.readouterr()
    assert "secret" not in str(await live.get()) + printed.out + printed.err + generate_latest().decode()
    assert f'tandem_rollout_constraint_failures_total{{kind="fault",release="{CANARY}"}}' in generate_latest().decode()
