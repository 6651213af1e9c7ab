"""A request is counted once: as it ended, or as one that hangs, as soon as it does."""

import asyncio
import time

import pytest

from gateway.answer.report import Report
from gateway.rollout.policy.counts import Outcome
from gateway.rollout.tally import Tally, outcome_of
from tandem.v1 import gateway_pb2

OVERDUE_S = 0.2


def tally(report: Report) -> tuple[Tally, list[Outcome]]:
    """Return a tally and what it counts."""
    counted: list[Outcome] = []
    return Tally(counted.append, report, arm="canary", window="r/0", overdue_s=OVERDUE_S), counted


async def until_counted(counted: list[Outcome]) -> Outcome:
    async with asyncio.timeout(20):
        while not counted:  # noqa: ASYNC110  (nothing tells)
            await asyncio.sleep(0.01)
    return counted[0]


async def test_a_request_without_a_first_token_fails_when_it_is_overdue_and_not_again_when_it_ends() -> None:
    one, counted = tally(Report())
    waited = [one.is_waiting]
    outcome = await until_counted(counted)
    assert (outcome.failed, outcome.overdue, outcome.first_token_s) == (True, True, OVERDUE_S)
    waited.append(one.is_waiting)
    one.end(failed=True)
    assert len(counted) == 1
    assert waited == [True, False]


async def test_an_answer_whose_tokens_keep_coming_is_never_overdue() -> None:
    while True:
        report, longest_s = Report(), 0.0
        one, counted = tally(report)
        for _ in range(30):
            report.mark_tokens("r", 1)
            await asyncio.sleep(OVERDUE_S / 10)
            longest_s = max(longest_s, time.perf_counter() - report.last_token_at_s)
        if longest_s < OVERDUE_S:
            break  # else the machine stood still for so long that it was overdue indeed
    assert not one.is_waiting
    assert not counted
    one.end(failed=False)
    assert [outcome.failed for outcome in counted] == [False]


async def test_an_answer_that_breaks_off_without_an_end_is_overdue_and_keeps_its_first_token() -> None:
    report = Report()
    _, counted = tally(report)
    report.mark_tokens("r", 1)
    outcome = await until_counted(counted)
    assert outcome.overdue
    assert outcome.first_token_s == report.first_token_at_s - report.routed_at_s


async def test_the_wait_at_the_door_makes_nothing_overdue_or_slow() -> None:
    """Else a busy hour would count as one of errors and of equally slow first tokens, and hide the canary's."""
    report = Report()
    report.started_at_s -= 1000
    report.routed_at_s -= 1000
    one, counted = tally(report)
    report.mark_tokens("r", 1)
    one.end(failed=False)
    assert [outcome.overdue for outcome in counted] == [False]
    assert counted[0].first_token_s is not None
    assert counted[0].first_token_s < 1000


async def test_a_closed_tally_counts_nothing_more() -> None:
    one, counted = tally(Report())
    one.close()
    one.end(failed=True)
    await asyncio.sleep(2 * OVERDUE_S)
    assert not one.is_waiting
    assert not counted


def test_tokens_that_came_in_one_message_have_no_time_between_them() -> None:
    """Counted as none at all, answers of one message would hide a canary whose longer answers are twice as slow."""
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
        (("CACHE_LEVEL_UNSPECIFIED",), "images encoded"),  # it is still being made
    ],
)
def test_requests_are_compared_with_those_that_had_as_much_to_do(levels: tuple[str, ...], kind: str) -> None:
    report = Report(
        images=[gateway_pb2.ImageReport(cache_level=gateway_pb2.CacheLevel.Value(level)) for level in levels]
    )
    assert outcome_of(report, failed=False).kind == kind
