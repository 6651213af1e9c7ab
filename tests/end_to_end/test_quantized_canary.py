"""A canary with 4 bits a weight, on real processes."""

from pathlib import Path

import pytest

from checkpoint.config import read_config
from checkpoint.quantizing import NearestRounder, plan
from checkpoint.quantizing import quantize as quantize_checkpoint
from checkpoint.rounding import Grid
from tandem.v1 import gateway_pb2_grpc, rollout_pb2
from tests.end_to_end import rollout_world
from tests.end_to_end.rollout_world import RUNNING, STABLE, Operator, World, ask, question

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

INT4 = "tiny-int4-v1.0.0"
NUM_QUESTIONS = 16


@pytest.fixture
def store(models: Path) -> Path:
    """Return a store with the stable release in 4 bits."""
    if not (models / INT4).exists():
        config = plan(read_config(models / STABLE), "w4a16", 32)
        quantize_checkpoint(models / STABLE, models, INT4, config, NearestRounder(Grid("w4a16", 32)))
    return models


async def test_a_release_moves_to_4_bits_as_to_any_other(store: Path, images: list[bytes]) -> None:
    """Half of the requests first, then all. None fails."""
    with World(store, STABLE) as world:
        operator = Operator(world.plain_gateway("language"))
        # The guard cannot decide: it needs more requests than there are.
        await operator.set(rollout_world.plan(INT4, (50, 100), seconds=3600, min_requests=10_000))
        await operator.wait_until(lambda rollout: rollout.phase == RUNNING, within_s=120)
        stub = gateway_pb2_grpc.GatewayStub(operator.channel)
        ends = [await ask(stub, question(f"user-{n}", images[n % 2])) for n in range(NUM_QUESTIONS)]
        assert [end.error for end in ends if end.error] == []
        assert {end.release for end in ends} == {STABLE, INT4}
        await operator.stub.Promote(rollout_pb2.RolloutsPromoteRequest(reason="a test"))
        last = [await ask(stub, question(f"user-{n}", None)) for n in range(NUM_QUESTIONS)]
        assert {(end.release, end.error) for end in last} == {(INT4, "")}
        await operator.channel.close(None)
