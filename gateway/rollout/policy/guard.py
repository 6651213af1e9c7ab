"""Judges a canary: each metric against stable over the same window, at a level that pays for repeated looks.

Looks. A guard that looks at growing numbers again and again would sooner or later see something by chance. So it looks
only when the numbers have grown by a fifth or a step ends, and its k-th look spends 1 / (k (k + 1)) of the allowance:
over any number of looks that adds up to 1 (alpha spending, Lan and DeMets, Biometrika 70, 1983, by the union bound).
Rolling back takes one metric, so its level is divided among metrics and steps (Bonferroni); promoting takes all of
them, so it is not (intersection-union, Berger 1982).

Hangs. A request to which nothing comes for `overdue_s` counts as failed at that moment, on both sides alike. What has
waited for less is not known yet; in favour of a canary it must not speak, so for its promotion it counts as failed.
"""

import math
from collections.abc import Iterator
from enum import StrEnum

from pydantic import BaseModel, ConfigDict

from gateway.rollout.policy.counts import (
    Counts,
    Number,
    Timing,
    bucket_of,
    cut_off,
    histograms,
    median_s,
    merged,
    multiplied,
    number,
)
from gateway.rollout.policy.plan import Guard, Plan
from gateway.rollout.policy.significance import p_above, p_rate_above, p_rate_below, rank_sum_z

# How much the numbers must grow before the next look.
LOOK_GROWTH = 1.2
_NO_CUT = bucket_of(1e9)  # seconds


class Verdict(StrEnum):
    """What the numbers of one metric show."""

    OPEN = "open"
    WITHIN = "within"
    BEYOND = "beyond"


class Metric(StrEnum):
    """What is compared."""

    ERROR_RATE = "error_rate"
    EMPTY_RATE = "empty_rate"
    FIRST_TOKEN = "first_token"
    INTER_TOKEN = "inter_token"


class Finding(BaseModel):
    """One metric of both releases side by side."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: Metric
    stable: float | None  # rate, or median seconds; None while there is none
    canary: float | None
    effect: float | None  # difference of rates, or ratio of times among requests of one kind
    bound: float  # most the effect may be
    p_beyond: float  # chance of numbers this bad from a canary within the bound
    p_within: float  # chance of numbers this good from a canary beyond the bound
    verdict: Verdict


class Levels(BaseModel):
    """How small a p-value must be at one look."""

    model_config = ConfigDict(frozen=True)

    beyond: float
    within: float


def levels(plan: Plan, look: int, final_look: int) -> Levels:
    """Return the levels of the `look`-th look of a step, and of the `final_look`-th after the step is over; from 1."""
    guard = plan.guard
    tests = plan.num_judged_steps * guard.num_bounds
    return Levels(
        beyond=guard.false_rollback / tests / (look * (look + 1)),
        within=guard.false_promotion / (final_look * (final_look + 1)),
    )


def num_comparable(counts: Counts) -> int:
    """Return the number of requests of the release that has fewer; looks are due by it."""
    return min(number(counts, "stable", "requests"), number(counts, "canary", "requests"))


def judge(counts: Counts, guard: Guard, at: Levels) -> tuple[Finding, ...]:
    """Compare every metric that has a bound."""
    return tuple(_findings(counts, guard, at))


def _findings(counts: Counts, guard: Guard, at: Levels) -> Iterator[Finding]:
    if guard.max_error_rate_increase is not None:
        yield _compare_rates(Metric.ERROR_RATE, "errors", counts, guard.max_error_rate_increase, at)
    if guard.max_empty_rate_increase is not None:
        yield _compare_rates(Metric.EMPTY_RATE, "empty", counts, guard.max_empty_rate_increase, at)
    if guard.max_first_token_ratio is not None:
        # Nothing waits longer than until it is overdue; both sides are cut off there, so the comparison stays fair.
        longest = bucket_of(guard.overdue_s)
        yield _compare_times(Metric.FIRST_TOKEN, "first_token", counts, guard.max_first_token_ratio, longest, at)
    if guard.max_inter_token_ratio is not None:
        yield _compare_times(Metric.INTER_TOKEN, "inter_token", counts, guard.max_inter_token_ratio, _NO_CUT, at)


def _compare_rates(metric: Metric, name: Number, counts: Counts, bound: float, at: Levels) -> Finding:
    stable = number(counts, "stable", name), number(counts, "stable", "requests")
    canary = number(counts, "canary", name), number(counts, "canary", "requests")
    stable_rate = stable[0] / stable[1] if stable[1] else None
    canary_rate = canary[0] / canary[1] if canary[1] else None
    both = stable_rate is not None and canary_rate is not None
    waiting = number(counts, "canary", "waiting") if metric is Metric.ERROR_RATE else 0
    at_worst = canary[0] + waiting, canary[1] + waiting
    return _finding(
        metric,
        stable_rate,
        canary_rate,
        canary_rate - stable_rate if stable_rate is not None and canary_rate is not None else None,
        bound,
        p_rate_above(stable, canary, bound, at.beyond) if both else 1.0,
        p_rate_below(stable, at_worst, bound, at.within) if both else 1.0,
        at,
    )


def _compare_times(metric: Metric, timing: Timing, counts: Counts, bound: float, longest: int, at: Levels) -> Finding:
    """Test whether the canary's times lie above or below stable's multiplied by the bound, up to bucket `longest`."""
    stable, canary = histograms(counts, "stable", timing), histograms(counts, "canary", timing)
    z = rank_sum_z(
        [
            (cut_off(multiplied(stable[kind], bound), longest), cut_off(canary[kind], longest))
            for kind in sorted(stable.keys() & canary.keys())
        ]
    )
    return _finding(
        metric,
        median_s(merged(stable)),
        median_s(merged(canary)),
        _ratio(stable, canary),
        bound,
        p_above(z),
        p_above(-z),
        at,
    )


def _ratio(stable: dict[str, dict[int, int]], canary: dict[str, dict[int, int]]) -> float | None:
    """Return the ratio of medians, averaged over kinds of requests by how much each has to say."""
    total = weight = 0.0
    for kind in stable.keys() & canary.keys():
        of_stable, of_canary = median_s(stable[kind]), median_s(canary[kind])
        if of_stable is not None and of_canary is not None:
            num_stable, num_canary = sum(stable[kind].values()), sum(canary[kind].values())
            says = num_stable * num_canary / (num_stable + num_canary)
            total, weight = total + says * math.log(of_canary / of_stable), weight + says
    return math.exp(total / weight) if weight else None


def _finding(
    metric: Metric,
    stable: float | None,
    canary: float | None,
    effect: float | None,
    bound: float,
    p_beyond: float,
    p_within: float,
    at: Levels,
) -> Finding:
    verdict = Verdict.OPEN
    if p_beyond <= at.beyond:
        verdict = Verdict.BEYOND
    elif p_within <= at.within:
        verdict = Verdict.WITHIN
    return Finding(
        metric=metric,
        stable=stable,
        canary=canary,
        effect=effect,
        bound=bound,
        p_beyond=p_beyond,
        p_within=p_within,
        verdict=verdict,
    )
