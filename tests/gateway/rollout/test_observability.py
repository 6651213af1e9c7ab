"""Metrics by release and stage, and decisions in the log."""

import asyncio

import grpc
import pytest
import structlog
from prometheus_client import REGISTRY

from chassis.errors import Internal
from tandem.v1 import rollout_pb2
from tests.gateway.halves import TAG
from tests.gateway.rollout.live_gateway import CANARY, STABLE, LiveGateway
from tests.gateway.scripted import World

RUNNING, ROLLED_BACK = rollout_pb2.ROLLOUT_PHASE_RUNNING, rollout_pb2.ROLLOUT_PHASE_ROLLED_BACK


class MetricGrowth:
    """The growth of metrics since it was created."""

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


async def test_requests_tokens_and_their_times_have_a_release_label(live: LiveGateway) -> None:
    growth = MetricGrowth()
    await live.set(50, 100)
    await live.wait_for_phase(RUNNING)
    for release, times in ((STABLE, 3), (CANARY, 2)):
        for _ in range(times):
            await live.ask(pin=release)
        tokens = len(live.language.answers[release])
        assert growth("tandem_gateway_requests_total", release=release, outcome="FINISH_REASON_STOP") == times
        assert growth("tandem_gateway_time_to_first_token_seconds_count", release=release) == times
        assert growth("tandem_gateway_inter_token_seconds_count", release=release) == times * (tokens - 1)
        assert growth("tandem_gateway_release_tokens_total", release=release, kind="completion") == times * tokens
    assert REGISTRY.get_sample_value("tandem_rollout_weight_percent", {"release": CANARY}) == 50
    assert REGISTRY.get_sample_value("tandem_rollout_phase", {"phase": "running"}) == 1
    assert REGISTRY.get_sample_value("tandem_rollout_store_up") == 1


async def test_mirrored_requests_are_not_in_the_latency_metrics_of_their_release(live: LiveGateway) -> None:
    """They run at the lowest priority, so they are slower."""
    growth = MetricGrowth()
    await live.set(0, 50, 100, shadow_percent=100)
    await live.wait_for_phase(RUNNING)
    await live.ask()
    await live.wait_until(lambda rollout: rollout.shadow.compared > 0)
    for metric in ("time_to_first_token", "inter_token"):
        assert growth(f"tandem_gateway_{metric}_seconds_count", release=STABLE) > 0
        assert growth(f"tandem_gateway_{metric}_seconds_count", release=CANARY) == 0
    assert growth("tandem_gateway_requests_total", release=CANARY, outcome="FINISH_REASON_STOP") == 0
    assert growth("tandem_gateway_stage_requests_total", release=CANARY, stage="language") == 1


async def test_errors_have_release_and_stage_labels(live: LiveGateway) -> None:
    growth = MetricGrowth()
    await live.set(50, 100)
    await live.wait_for_phase(RUNNING)
    live.language.errors[CANARY] = Internal("The decoder failed.", reason="DECODER_FAILED")
    with pytest.raises(grpc.RpcError):
        await live.ask(pin=CANARY)
    await live.ask(pin=STABLE)
    error = {"release": CANARY, "stage": "language", "reason": "DECODER_FAILED"}
    assert growth("tandem_gateway_requests_total", release=CANARY, outcome="DECODER_FAILED") == 1
    assert growth("tandem_gateway_stage_requests_total", release=CANARY, stage="language") == 1
    assert growth("tandem_gateway_stage_errors_total", **error) == 1
    assert growth("tandem_gateway_stage_errors_total", **{**error, "release": STABLE}) == 0


async def test_images_have_release_and_cache_level_labels(world: World) -> None:
    growth = MetricGrowth()
    for _ in range(3):
        await world.ask("What?", b"an image")
    assert growth("tandem_gateway_stage_requests_total", release=TAG, stage="vision") == 3
    assert growth("tandem_gateway_release_images_total", release=TAG, level="miss") == 1
    assert growth("tandem_gateway_release_images_total", release=TAG, level="gateway") == 2


async def test_each_decision_is_one_log_line_with_its_numbers(live: LiveGateway) -> None:
    with structlog.testing.capture_logs() as logs:
        await live.set(50, 100)
        await live.wait_for_phase(RUNNING)
        live.language.errors[CANARY] = Internal("The decoder failed.")
        calls = (live.ask(f"user-{number}") for number in range(150))
        await asyncio.gather(*calls, return_exceptions=True)
        rollout = await live.wait_for_phase(ROLLED_BACK)
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
