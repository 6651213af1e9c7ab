"""Requests are counted once, at their end or when overdue."""

import asyncio
import time

import pytest

from gateway.answer.report import Report
from gateway.rollout.counted_request import CountedRequest, outcome_of
from gateway.rollout.policy.counts import Outcome
from tandem.v1 import gateway_pb2
from tests.gateway.scripted import eventually

OVERDUE_S = 0.2


def start(report: Report) -> tuple[CountedRequest, list[Outcome]]:
    """Return a request and the list of its counted outcomes."""
    counted: list[Outcome] = []
    return CountedRequest(counted.append, report, arm="canary", window="r/0", overdue_s=OVERDUE_S), counted


async def until_counted(counted: list[Outcome]) -> Outcome:
    await eventually(lambda: bool(counted))
    return counted[0]


async def test_an_overdue_request_is_counted_as_failed_and_not_again_at_its_end() -> None:
    request, counted = start(Report())
    waited = [request.is_waiting]
    outcome = await until_counted(counted)
    assert (outcome.failed, outcome.overdue, outcome.first_token_s) == (True, True, OVERDUE_S)
    waited.append(request.is_waiting)
    request.end(failed=True)
    assert len(counted) == 1
    assert waited == [True, False]


async def test_an_answer_with_steady_tokens_is_never_overdue() -> None:
    while True:
        report, longest_s = Report(), 0.0
        request, counted = start(report)
        for _ in range(30):
            report.mark_tokens("r", 1)
            await asyncio.sleep(OVERDUE_S / 10)
            longest_s = max(longest_s, time.perf_counter() - report.last_token_at_s)
        if longest_s < OVERDUE_S:
            break  # else this machine paused for so long that the request was overdue
    assert not request.is_waiting
    assert not counted
    request.end(failed=False)
    assert [outcome.failed for outcome in counted] == [False]


async def test_an_answer_that_stalls_is_overdue_and_keeps_its_first_token() -> None:
    report = Report()
    _, counted = start(report)
    report.mark_tokens("r", 1)
    outcome = await until_counted(counted)
    assert outcome.overdue
    assert outcome.first_token_s == report.first_token_at_s - report.routed_at_s


async def test_time_in_the_admission_queue_makes_no_request_overdue_or_slow() -> None:
    """Queueing is the same for both and would hide differences."""
    report = Report()
    report.started_at_s -= 1000
    report.routed_at_s -= 1000
    request, counted = start(report)
    report.mark_tokens("r", 1)
    request.end(failed=False)
    assert [outcome.overdue for outcome in counted] == [False]
    assert counted[0].first_token_s is not None
    assert counted[0].first_token_s < 1000


async def test_a_closed_request_is_not_counted() -> None:
    request, counted = start(Report())
    request.close()
    request.end(failed=True)
    await asyncio.sleep(2 * OVERDUE_S)
    assert not request.is_waiting
    assert not counted


def test_tokens_of_one_message_have_no_inter_token_time() -> None:
    """Counting 0 s would hide slow tokens in longer answers."""
    report = Report()
    report.mark_tokens("r", 5)
    assert outcome_of(report, failed=False).inter_token_s is None
    report.mark_tokens("r", 2)
    report.first_token_at_s, report.last_token_at_s = 10.0, 10.5
    assert outcome_of(report, failed=False).inter_token_s == 0.25


@pytest.mark.parametrize(
    ("levels", "kind"),
    [
        ((), "text"),
        (("CACHE_LEVEL_GATEWAY", "CACHE_LEVEL_SHARED"), "images at hand"),
        (("CACHE_LEVEL_GATEWAY", "CACHE_LEVEL_MISS"), "images encoded"),
        (("CACHE_LEVEL_UNSPECIFIED",), "images encoded"),  # still being encoded
    ],
)
def test_the_kind_of_a_request_follows_from_its_images(levels: tuple[str, ...], kind: str) -> None:
    report = Report(
        images=[gateway_pb2.ImageReport(cache_level=gateway_pb2.CacheLevel.Value(level)) for level in levels]
    )
    assert outcome_of(report, failed=False).kind == kind


async def test_a_client_that_does_not_read_makes_no_request_overdue_or_slow() -> None:
    """It could roll a healthy canary back within seconds."""
    report = Report()
    request, counted = start(report)
    may_read = asyncio.Event()

    async def send(response: gateway_pb2.GatewayGenerateResponse) -> None:
        await may_read.wait()

    report.mark_tokens("r", 1)
    sending = asyncio.create_task(report.timed(send)(gateway_pb2.GatewayGenerateResponse()))
    await asyncio.sleep(3 * OVERDUE_S)
    assert not counted
    may_read.set()
    await sending
    report.mark_tokens("r", 1)
    request.end(failed=False)
    assert [(outcome.failed, outcome.inter_token_s) for outcome in counted] == [(False, None)]


async def test_after_the_client_has_read_the_release_can_be_overdue() -> None:
    report = Report()
    _, counted = start(report)

    async def send(response: gateway_pb2.GatewayGenerateResponse) -> None:
        await asyncio.sleep(0)

    report.mark_tokens("r", 1)
    await report.timed(send)(gateway_pb2.GatewayGenerateResponse())
    assert (await until_counted(counted)).overdue
