"""Findings of the guard for different canaries."""

import math
from statistics import NormalDist
from typing import Any

import pytest

from gateway.rollout.policy.counts import Arm, Counts, Number
from gateway.rollout.policy.guard import Finding, Levels, Metric, Verdict, judge, levels_of
from gateway.rollout.policy.histograms import bucket_of, median_s
from gateway.rollout.policy.plan import Guard
from tests.gateway.rollout.plans import numbers, plan

LEVELS = Levels(beyond=0.001, within=0.01)


def verdicts(counts: Counts) -> dict[Metric, Verdict]:
    return {finding.metric: finding.verdict for finding in findings(counts)}


def findings(counts: Counts) -> tuple[Finding, ...]:
    return judge(counts, plan().guard, LEVELS)


def test_an_equal_canary_with_enough_requests_is_within_every_bound() -> None:
    counts = numbers("stable", 1500, errors=10, empty=10) + numbers("canary", 1500, errors=10, empty=10)
    assert set(verdicts(counts).values()) == {Verdict.WITHIN}


def test_too_few_requests_leave_the_verdict_open() -> None:
    assert Verdict.BEYOND not in verdicts(numbers("stable", 50) + numbers("canary", 20, errors=1)).values()
    few = verdicts(numbers("stable", 50) + numbers("canary", 20))
    assert few[Metric.ERROR_RATE] is few[Metric.EMPTY_RATE] is Verdict.OPEN


@pytest.mark.parametrize(
    ("canary", "metric"),
    [
        (numbers("canary", 200, errors=20), Metric.ERROR_RATE),
        (numbers("canary", 200, empty=20), Metric.EMPTY_RATE),
        (numbers("canary", 200, first_token_s=0.3), Metric.FIRST_TOKEN),
        (numbers("canary", 200, inter_token_s=0.03), Metric.INTER_TOKEN),
    ],
)
def test_a_worse_canary_is_beyond_the_bound_of_the_worse_metric_only(canary: Counts, metric: Metric) -> None:
    found = verdicts(numbers("stable", 1000) + canary)
    assert [name for name, verdict in found.items() if verdict is Verdict.BEYOND] == [metric]


def test_times_are_compared_among_requests_of_one_kind() -> None:
    """A new encoder has a cold cache.

    Such a canary has more work, but is not slower.
    """
    stable = numbers("stable", 900, kind="images at hand") + numbers(
        "stable", 100, kind="images encoded", first_token_s=0.5
    )
    canary = numbers("canary", 20, kind="images at hand") + numbers(
        "canary", 180, kind="images encoded", first_token_s=0.5
    )
    first_token = findings(stable + canary)[2]
    assert first_token.canary is not None
    assert first_token.stable is not None
    assert first_token.canary > 3 * first_token.stable
    assert first_token.verdict is Verdict.WITHIN
    assert first_token.effect == pytest.approx(1, abs=0.05)


def test_waiting_requests_count_neither_for_nor_against_a_canary() -> None:
    """They may hang or may still get their first token."""
    counts = numbers("stable", 1500) + numbers("canary", 1500)
    assert verdicts(counts)[Metric.ERROR_RATE] is Verdict.WITHIN
    assert verdicts(counts + Counts.from_paths({"canary/waiting": 150}))[Metric.ERROR_RATE] is Verdict.OPEN
    assert verdicts(counts + Counts.from_paths({"stable/waiting": 150}))[Metric.ERROR_RATE] is Verdict.WITHIN


def test_a_hanging_canary_is_beyond_every_bound_of_first_tokens() -> None:
    """It is rolled back even without a bound on errors."""
    found = verdicts(numbers("stable", 1000) + numbers("canary", 50, first_token_s=plan().guard.overdue_s))
    assert found[Metric.FIRST_TOKEN] is Verdict.BEYOND


def test_first_tokens_capped_at_overdue_do_not_count_against_a_canary() -> None:
    """Stable's scaled times are capped like the canary's."""
    longest = plan().guard.overdue_s
    stable = numbers("stable", 1000, first_token_s=longest / 1.4)  # a canary may take 1.07 times `longest` and more
    capped = Counts.from_paths({f"canary/first_token/text/{bucket_of(longest)}": 1000, "canary/requests": 1000})
    assert verdicts(stable + capped)[Metric.FIRST_TOKEN] is Verdict.OPEN


@pytest.mark.parametrize("bound", [1.2, 1.5, 1.8, 2.0])
def test_a_canary_exactly_at_its_bound_is_neither_within_nor_beyond(bound: float) -> None:
    """The bound falls between two buckets and is not rounded."""
    counts = Counts()
    arms: tuple[tuple[Arm, float], ...] = (("stable", 1.0), ("canary", bound))
    for share in range(1, 100_000):
        seconds = 0.2 * math.exp(0.5 * NormalDist().inv_cdf(share / 100_000))
        for arm, factor in arms:
            counts.add_time(arm, "first_token", "text", bucket_of(seconds * factor))
    (finding,) = judge(counts, Guard(max_first_token_ratio=bound), LEVELS)
    assert finding.p_within > 0.25
    assert finding.p_beyond > 0.25


def test_a_finding_has_both_values_their_effect_and_the_bound() -> None:
    finding = findings(numbers("stable", 1000, errors=10) + numbers("canary", 100, errors=11))[0]
    assert (finding.stable, finding.canary, finding.bound) == (0.01, 0.11, 0.02)
    assert finding.effect == pytest.approx(0.1)


def test_all_looks_together_spend_at_most_the_allowed_error_chances() -> None:
    asked = plan(1, 5, 25, 100)
    spent = [levels_of(asked, look, look) for look in range(1, 10_000)]
    assert 3 * 4 * sum(one.beyond for one in spent) <= asked.guard.false_rollback
    assert sum(one.within for one in spent) <= asked.guard.false_promotion


def test_medians_are_exact_to_one_bucket() -> None:
    assert median_s({}) is None
    assert median_s({-53: 10, -16: 1}) == pytest.approx(0.1, rel=0.045)


@pytest.mark.parametrize(
    ("bound", "sign", "metric"),
    [
        ("max_repetition_increase", "looped", Metric.REPETITION),
        ("max_wrong_script_increase", "wrong_script", Metric.WRONG_SCRIPT),
        ("max_cut_off_increase", "cut_off", Metric.CUT_OFF),
    ],
)
def test_a_sign_of_a_sick_model_is_judged_like_an_error_rate(bound: str, sign: Number, metric: Metric) -> None:
    fields: dict[str, Any] = {bound: 0.02}
    guard = Guard(**fields)
    counts = numbers("stable", 1500) + numbers("canary", 1500)
    (finding,) = judge(counts, guard, LEVELS)
    assert (finding.metric, finding.verdict) == (metric, Verdict.WITHIN)
    counts.add("canary", sign, 150)
    (finding,) = judge(counts, guard, LEVELS)
    assert (finding.canary, finding.verdict) == (0.1, Verdict.BEYOND)
