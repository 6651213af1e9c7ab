"""A rollout from our engine to vLLM, with equal weights."""

import asyncio
import io
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from chassis.channels import open_channel
from tandem.v1 import gateway_pb2_grpc, language_pb2_grpc, rollout_pb2
from tests.end_to_end.rollout_world import PROMOTED, Load, Operator, World, plan, question, steady_load
from tests.language_service.process import Request, start, text
from tests.language_service.vllm.conftest import ENGINE_FLAGS, HOME
from tests.language_service.vllm.models import CANARY, STABLE

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(900)]

STREAMS = 6
SLACK = 4.0  # the bounds of the guard: this many times what was measured before
PROMOTED_WITHIN_S = 600


@pytest.fixture(scope="module")
def images() -> list[bytes]:
    files = [io.BytesIO() for _ in range(3)]
    for number, file in enumerate(files):
        Image.new("RGB", (64, 48), (40 * number, 90, 80)).save(file, "PNG")
    return [file.getvalue() for file in files]


@pytest.fixture
def world(models: Path) -> Iterator[World]:
    """Yield a vision service, and a language service per engine."""
    with World(models, STABLE, vision_tags=f"{STABLE},{CANARY}") as world:
        world.add_language("vllm", CANARY, ENGINE_FLAGS, python=str(HOME / "bin" / "python"))
        yield world


async def waits(address: str, tag: str) -> tuple[float, float]:
    """Return median times to the first token, and between two."""
    channel = open_channel(address)
    stub: Any = language_pb2_grpc.LanguageServiceStub(channel)
    first_s: list[float] = []
    between_s: list[float] = []

    async def one(seed: int) -> None:
        requests: list[Request] = [start(tag, max_tokens=8), text(*range(seed, seed + 30))]
        begun = time.monotonic()
        answer = stub.Generate(iter(requests), timeout=60)
        times = [time.monotonic() async for response in answer if response.WhichOneof("event") == "tokens"]
        first_s.append(times[0] - begun)
        between_s.append((times[-1] - times[0]) / (len(times) - 1))

    for batch in range(5):
        await asyncio.gather(*(one(batch * STREAMS + number) for number in range(STREAMS)))
    await channel.close(None)
    return statistics.median(first_s), statistics.median(between_s)


async def test_a_canary_of_vllm_is_promoted(world: World, images: list[bytes]) -> None:
    """Its times are judged by a measurement on this machine."""
    ours = await waits(world.address("language"), STABLE)
    theirs = await waits(world.address("vllm"), CANARY)
    ratios = [max(1.0, other / own) * SLACK for own, other in zip(ours, theirs, strict=True)]
    # All requests come from this test, with few routing keys.
    gateway = world.plain_gateway("language", "vllm", flags=["--rollout-trusts-callers"])
    rollout = plan(CANARY, [25, 50, 100], seconds=4, overdue_s=60)
    rollout.guard.max_first_token_ratio, rollout.guard.max_inter_token_ratio = ratios
    rollout.guard.max_logprob_drop = 0.5
    rollout.guard.max_length_ratio = 1.5
    operator = Operator(gateway)
    async with steady_load([gateway], images, STREAMS) as load:
        await operator.set(rollout)
        end = await operator.wait_until(lambda one: one.phase == PROMOTED, PROMOTED_WITHIN_S)
        await enough_of(load, CANARY, 20)
    assert not load.failed
    assert load.num_on(STABLE) > 0
    judged = {finding.metric for change in end.changes for finding in change.findings}
    times = {rollout_pb2.ROLLOUT_METRIC_FIRST_TOKEN, rollout_pb2.ROLLOUT_METRIC_INTER_TOKEN}
    assert times | {rollout_pb2.ROLLOUT_METRIC_ERROR_RATE, rollout_pb2.ROLLOUT_METRIC_LENGTH} <= judged
    print(f"ours {ours}, vLLM {theirs}, bounds {ratios}, {len(load.answers)} requests, none failed")


async def test_both_engines_give_one_answer(world: World, images: list[bytes]) -> None:
    """Greedy, through gateway and vision service, by pin."""
    gateway = world.plain_gateway("language", "vllm")
    operator = Operator(gateway)
    await operator.set(plan(CANARY, [1, 100], seconds=600))
    await operator.wait_until(lambda one: one.phase == rollout_pb2.ROLLOUT_PHASE_RUNNING, 60)
    channel = open_channel(gateway)
    stub: Any = gateway_pb2_grpc.GatewayStub(channel)
    for image in (None, *images):
        request = question("conversation", image, max_tokens=48)
        request.sampling.temperature = 0
        request.sampling.num_logprobs = 0
        answers = [await tokens(stub, request, pin) for pin in (STABLE, CANARY)]
        assert len(answers[0]) == 48
        assert answers[0] == answers[1]
    await channel.close(None)


async def tokens(stub: Any, request: Any, pin: str) -> list[int]:
    found: list[int] = []
    async for response in stub.Generate(request, timeout=120, metadata=[("x-tandem-release", pin)]):
        if response.HasField("finished"):
            assert response.finished.release.language_tag == pin
        found += [position.chosen.token_id for position in response.delta.logprobs]
    return found


async def enough_of(load: Load, release: str, count: int) -> None:
    async with asyncio.timeout(60):
        while load.num_on(release) < count:  # noqa: ASYNC110  (the load has no event for it)
            await asyncio.sleep(0.1)
