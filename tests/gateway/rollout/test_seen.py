"""What people see of a rollout: metrics by release and stage, and one log line a decision with its numbers."""

import asyncio

import grpc
import pytest
import structlog
from prometheus_client import REGISTRY

from chassis.errors import Internal
from tandem.v1 import rollout_pb2
from tests.gateway.halves import TAG
from tests.gateway.rollout.door import CANARY, STABLE, Door
from tests.gateway.scripted import World

RUNNING, ROLLED_BACK = rollout_pb2.ROLLOUT_PHASE_RUNNING, rollout_pb2.ROLLOUT_PHASE_ROLLED_BACK


class Seen:
    """How much metrics have grown since this was made."""

    def __init__(self) -> None:
        self._before = self._all()

    def __call__(self, name: str, **labels: str) -> float:
        key = (name, tuple(sorted(labels.items())))
        return self._all().get(key, 0.0) - self._before.get(key, 0.0)

    @staticmethod
    def _all() -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for metric in REGISTRY.collect()
            for sample in metric.samples
        }


async def test_requests_first_tokens_gaps_and_tokens_are_told_by_release(door: Door) -> None:
    seen = Seen()
    await door.set(50, 100)
    await door.phase(RUNNING)
    for release, times in ((STABLE, 3), (CANARY, 2)):
        for _ in range(times):
            await door.ask(pin=release)
        tokens = len(door.language.answers[release])
        assert seen("tandem_gateway_requests_total", release=release, outcome="FINISH_REASON_STOP") == times
        assert seen("tandem_gateway_time_to_first_token_seconds_count", release=release) == times
        assert seen("tandem_gateway_inter_token_seconds_count", release=release) == times * (tokens - 1)
        assert seen("tandem_gateway_release_tokens_total", release=release, kind="completion") == times * tokens
    assert REGISTRY.get_sample_value("tandem_rollout_weight_percent", {"release": CANARY}) == 50
    assert REGISTRY.get_sample_value("tandem_rollout_phase", {"phase": "running"}) == 1
    assert REGISTRY.get_sample_value("tandem_rollout_store_up") == 1


async def test_mirrored_requests_are_not_among_the_times_of_their_release(door: Door) -> None:
    """They are last in line, and nobody waits for them."""
    seen = Seen()
    await door.set(0, 50, 100, shadow_percent=100)
    await door.phase(RUNNING)
    await door.ask()
    await door.until(lambda rollout: rollout.shadow.compared > 0)
    for metric in ("time_to_first_token", "inter_token"):
        assert seen(f"tandem_gateway_{metric}_seconds_count", release=STABLE) > 0
        assert seen(f"tandem_gateway_{metric}_seconds_count", release=CANARY) == 0
    assert seen("tandem_gateway_requests_total", release=CANARY, outcome="FINISH_REASON_STOP") == 0
    assert seen("tandem_gateway_stage_requests_total", release=CANARY, stage="language") == 1


async def test_errors_are_told_by_release_and_stage(door: Door) -> None:
    seen = Seen()
    await door.set(50, 100)
    await door.phase(RUNNING)
    door.language.errors[CANARY] = Internal("The decoder failed.", reason="DECODER_FAILED")
    with pytest.raises(grpc.RpcError):
        await door.ask(pin=CANARY)
    await door.ask(pin=STABLE)
    error = {"release": CANARY, "stage": "language", "reason": "DECODER_FAILED"}
    assert seen("tandem_gateway_requests_total", release=CANARY, outcome="DECODER_FAILED") == 1
    assert seen("tandem_gateway_stage_requests_total", release=CANARY, stage="language") == 1
    assert seen("tandem_gateway_stage_errors_total", **error) == 1
    assert seen("tandem_gateway_stage_errors_total", **{**error, "release": STABLE}) == 0


async def test_images_are_told_by_release_and_cache_level(world: World) -> None:
    seen = Seen()
    for _ in range(3):
        await world.ask("What?", b"an image")
    assert seen("tandem_gateway_stage_requests_total", release=TAG, stage="vision") == 3
    assert seen("tandem_gateway_release_images_total", release=TAG, level="miss") == 1
    assert seen("tandem_gateway_release_images_total", release=TAG, level="gateway") == 2


async def test_each_decision_is_one_log_line_with_the_numbers_it_was_taken_on(door: Door) -> None:
    with structlog.testing.capture_logs() as logs:
        await door.set(50, 100)
        await door.phase(RUNNING)
        door.language.errors[CANARY] = Internal("The decoder failed.")
        calls = (door.ask(f"user-{number}") for number in range(150))
        await asyncio.gather(*calls, return_exceptions=True)
        rollout = await door.phase(ROLLED_BACK)
    decisions = [line for line in logs if line["event"] == "rollout decision"]
    assert [line["event_kind"] for line in decisions] == ["set", "started", "rolled_back"]
    last = decisions[-1]
    assert last["reason"] == rollout.changes[-1].reason
    assert (last["stable"], last["canary"], last["in_force"], last["weight_percent"]) == (STABLE, CANARY, STABLE, 0)
    assert last["counts"]["canary/errors"] == last["counts"]["canary/requests"] >= 20
    (finding,) = last["findings"]
    assert (finding["metric"], finding["canary"], finding["bound"], finding["verdict"]) == (
        "error_rate",
        1,
        0.1,
        "beyond",
    )
