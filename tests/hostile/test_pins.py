"""A client asks for the release that its role does not allow."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from tokenizers import Tokenizer

from chassis.api_keys import authorization, new_key
from tandem.v1 import gateway_pb2, rollout_pb2
from tests.gateway.api_keys import tenant_entry
from tests.gateway.conftest import tokenizer, write_keys
from tests.gateway.rollout.conftest import two_releases
from tests.gateway.rollout.live_gateway import CANARY, STABLE, LiveGateway, open_gateway
from tests.gateway.scripted import ask, error_of, eventually, read

__all__ = ["tokenizer", "two_releases", "write_keys"]

pytestmark = pytest.mark.timeout(300)

KEYS = {role: new_key() for role in ("client", "tester", "operator")}


def metadata(role: str, pin: str | None = None) -> list[tuple[str, str]]:
    return [authorization(KEYS[role]), *([("x-tandem-release", pin)] if pin else [])]


async def begin_rollout(live: LiveGateway) -> None:
    """Begin a rollout that sends the canary no conversations."""
    steps = [rollout_pb2.RolloutStep(weight_percent=weight, seconds=3600) for weight in (0, 50, 100)]
    guard = rollout_pb2.RolloutGuard(max_error_rate_increase=0.1, min_requests=20, overdue_s=60)
    plan = rollout_pb2.RolloutPlan(canary=CANARY, steps=steps, guard=guard, shadow_percent=1)
    operator = metadata("operator")
    await live.operator.Set(rollout_pb2.RolloutsSetRequest(plan=plan), metadata=operator)
    await eventually(lambda: CANARY in live.language.models)


async def wait_until_running(live: LiveGateway) -> None:
    request, wanted = rollout_pb2.RolloutsGetRequest(), rollout_pb2.ROLLOUT_PHASE_RUNNING
    phase: Any = None
    while phase != wanted:
        phase = (await live.operator.Get(request, metadata=metadata("operator"))).rollout.phase


async def test_only_testers_and_operators_reach_a_canary_before_its_promotion(
    two_releases: Path, tokenizer: Tokenizer, write_keys: Callable[..., Path]
) -> None:
    keys = write_keys(*(tenant_entry(role, key, role=role) for role, key in KEYS.items()))
    async with open_gateway(two_releases, tokenizer, keys=keys) as live:
        await begin_rollout(live)
        await wait_until_running(live)
        question = ask("What is it?")
        for role in ("tester", "operator"):
            answer = await read(live.gateway.Generate(question, metadata=metadata(role, CANARY)))
            assert answer.text == "canary"
        pinned = metadata("client", CANARY)
        calls = [
            read(live.gateway.Generate(question, metadata=pinned)),
            live.gateway.CountTokens(gateway_pb2.CountTokensRequest(messages=question.messages), metadata=pinned),
            live.gateway.Tokenize(gateway_pb2.TokenizeRequest(text="What?"), metadata=pinned),
            live.gateway.Detokenize(gateway_pb2.DetokenizeRequest(token_ids=[1]), metadata=pinned),
        ]
        for call in calls:
            error = await error_of(call)
            assert (error.code.name, error.reason) == (grpc.StatusCode.PERMISSION_DENIED.name, "RELEASE_ON_TRIAL")
        for pin in (STABLE, None):
            answer = await read(live.gateway.Generate(question, metadata=metadata("client", pin)))
            assert answer.text == "stable"
        listed = {
            role: {
                release.release.language_tag
                for release in (
                    await live.gateway.ListModels(gateway_pb2.GatewayListModelsRequest(), metadata=metadata(role))
                ).releases
            }
            for role in KEYS
        }
        assert listed == {"client": {STABLE}, "tester": {STABLE, CANARY}, "operator": {STABLE, CANARY}}
        await live.operator.Promote(rollout_pb2.RolloutsPromoteRequest(), metadata=metadata("operator"))
        await eventually_pins(live)


async def eventually_pins(live: LiveGateway) -> None:
    """Wait until a client may pin the promoted release."""
    while True:
        try:
            answer = await read(live.gateway.Generate(ask("What is it?"), metadata=metadata("client", CANARY)))
        except grpc.RpcError:
            continue
        assert answer.text == "canary"
        return
