"""Compare canary and stable, with bounded chances of error.

Looks. A guard that tests growing numbers again and again would find a difference by chance. So it looks only when the
numbers have grown by a fifth or a step ends. Its k-th look spends 1 / (k (k + 1)) of the allowed error chance, which
adds up to 1 over any number of looks (alpha spending, Lan and DeMets, Biometrika 70, 1983, with the union bound). One
bad metric is enough for a rollback, so that chance is divided among metrics and steps (Bonferroni). Probes and ratings
are few and say most about an answer, so half of it is theirs. A promotion needs all metrics, so its chance is not
divided (intersection-union test, Berger 1982).

Hanging requests. A request that gets no token for `overdue_s` counts as failed from then on, for both releases alike.
A request that has waited for less is unknown. It must not help a canary, so for a promotion it counts as failed.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

import pydantic.dataclasses
from pydantic import Field

from gateway.rollout.policy.counts import Counts, Kind, Number, Timing
from gateway.rollout.policy.histograms import Histogram, bucket_of, capped, median_s, scaled
from gateway.rollout.policy.plan import FULL, STRICT, Guard, Plan
from gateway.rollout.policy.significance import p_above, p_rate_above, p_rate_below, rank_sum_z

# How much the numbers must grow before the next look.
LOOK_GROWTH = 1.2
_NO_CAP = bucket_of(1e9)  # seconds


class Verdict(StrEnum):
    """The conclusion about one metric, so far."""

    OPEN = "open"
    WITHIN = "within"
    BEYOND = "beyond"


class Metric(StrEnum):
    """A metric that is compared."""

    ERROR_RATE = "error_rate"
    EMPTY_RATE = "empty_rate"
    FIRST_TOKEN = "first_token"
    INTER_TOKEN = "inter_token"
    REPETITION = "repetition"  # answers that end in a loop
    WRONG_SCRIPT = "wrong_script"
    CUT_OFF = "cut_off"
    FEEDBACK = "feedback"  # disliked answers among the rated
    CONSTRAINT = "constraint"  # answers that break a constraint which the other release keeps
    LENGTH = "length"  # geometric mean, tokens
    LOGPROB = "logprob"  # mean log-probability of a token
    QUALITY = "quality"  # share of wrong answers to probes


def _is_empty(text: str) -> bool:
    return not text


@pydantic.dataclasses.dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class Finding:
    """One metric of both releases."""

    metric: Metric
    stable: float | None  # rate, or median in seconds. None without requests.
    canary: float | None
    # Difference of rates, ratio of times among requests of one kind, drop of a log-probability, or the longer mean
    # length divided by the shorter one.
    effect: float | None
    bound: float  # highest effect that is allowed
    p_beyond: float  # chance of numbers this bad from a canary within the bound
    p_within: float  # chance of numbers this good from a canary beyond the bound
    verdict: Verdict
    slice: str = Field(default="", exclude_if=_is_empty)  # of the probes, '' for all of them


@dataclass(frozen=True, slots=True, kw_only=True)
class Levels:
    """The highest p-values that decide at one look."""

    beyond: float
    within: float


def levels_of(plan: Plan, look: int, final_look: int) -> Levels:
    """Return the levels of one look.

    Args:
        plan: the rollout, which divides the chance of a false rollback among its tests.
        look: number of the look in its step, from 1.
        final_look: number of the look after the end of the step, from 1.
    """
    guard = plan.guard
    return Levels(
        beyond=rollback_level(plan) / (look * (look + 1)),
        within=guard.false_promotion / (final_look * (final_look + 1)),
    )


def rollback_level(plan: Plan, metric: Metric | None = None, step: int = 0) -> float:
    """Return the allowed chance that one test errs.

    Each metric is tested in each step, but the probes once for all steps.

    Args:
        plan: the rollout.
        metric: QUALITY or FEEDBACK, or None for any other one.
        step: of the test of FEEDBACK. A step has a share by its weight, as it has more ratings.
    """
    guard = plan.guard
    num_rare = (guard.max_quality_drop is not None) + (guard.max_dislike_increase is not None)
    num_others = guard.num_bounds - (guard.max_dislike_increase is not None)
    part = guard.false_rollback / (2 if num_rare and num_others else 1)
    num_metrics = max(1, num_others if metric is None else num_rare)
    if metric is Metric.QUALITY:
        return part / num_metrics
    if metric is Metric.FEEDBACK:
        weights = [one.weight_percent for one in plan.steps if one.weight_percent < FULL]
        return part / num_metrics * plan.steps[step].weight_percent / sum(weights)
    return part / num_metrics / plan.num_judged_steps


def num_comparable(counts: Counts) -> int:
    """Return the requests of the release that has fewer.

    This number decides when looks are due.
    """
    return min(counts.number("stable", "requests"), counts.number("canary", "requests"))


def judge(counts: Counts, guard: Guard, levels: Levels) -> tuple[Finding, ...]:
    """Compare every metric that has a bound."""
    return tuple(_findings(counts, guard, levels))


def _findings(counts: Counts, guard: Guard, levels: Levels) -> Iterator[Finding]:
    if guard.max_error_rate_increase is not None:
        yield _compare_rates(Metric.ERROR_RATE, "errors", counts, guard.max_error_rate_increase, levels)
    if guard.max_empty_rate_increase is not None:
        yield _compare_rates(Metric.EMPTY_RATE, "empty", counts, guard.max_empty_rate_increase, levels)
    for metric, sign, bound in _signs(guard):
        if bound is not None:
            yield _compare_rates(metric, sign, counts, bound, levels)
    if guard.max_first_token_ratio is not None:
        # No counted request waits longer than `overdue_s`. To stay fair, the scaled times of stable end there too.
        longest = bucket_of(guard.overdue_s)
        yield _compare_times(Metric.FIRST_TOKEN, "first_token", counts, guard.max_first_token_ratio, longest, levels)
    if guard.max_inter_token_ratio is not None:
        yield _compare_times(Metric.INTER_TOKEN, "inter_token", counts, guard.max_inter_token_ratio, _NO_CAP, levels)


def _signs(guard: Guard) -> tuple[tuple[Metric, Number, float | None], ...]:
    """Return the signs of a sick model with their bounds."""
    return (
        (Metric.REPETITION, "looped", guard.max_repetition_increase),
        (Metric.WRONG_SCRIPT, "wrong_script", guard.max_wrong_script_increase),
        (Metric.CUT_OFF, "cut_off", guard.max_cut_off_increase),
        (Metric.CONSTRAINT, "constraint_faults", guard.max_constraint_increase),
    )


def _compare_rates(metric: Metric, number: Number, counts: Counts, bound: float, levels: Levels) -> Finding:
    """Test the canary's rate against stable's plus the bound."""
    stable = counts.number("stable", number), counts.number("stable", "requests")
    canary = counts.number("canary", number), counts.number("canary", "requests")
    waiting = counts.number("canary", "waiting") if metric is Metric.ERROR_RATE else 0
    stable_rate = stable[0] / stable[1] if stable[1] else None
    canary_rate = canary[0] / canary[1] if canary[1] else None
    effect, p_beyond, p_within = None, 1.0, 1.0
    if stable_rate is not None and canary_rate is not None:
        effect = canary_rate - stable_rate
        worst_case = canary[0] + waiting, canary[1] + waiting
        p_beyond = p_rate_above(stable, canary, bound, levels.beyond)
        p_within = p_rate_below(stable, worst_case, bound, levels.within)
    return Finding(
        metric=metric,
        stable=stable_rate,
        canary=canary_rate,
        effect=effect,
        bound=bound,
        p_beyond=p_beyond,
        p_within=p_within,
        verdict=verdict_of(p_beyond, p_within, levels),
    )


def _compare_times(
    metric: Metric, timing: Timing, counts: Counts, bound: float, longest: int, levels: Levels
) -> Finding:
    """Test the canary's times against stable's times the bound.

    Times are compared up to bucket `longest`.
    """
    stable, canary = counts.histograms("stable", timing), counts.histograms("canary", timing)
    z = rank_sum_z(
        [
            (capped(scaled(stable[kind], bound), longest), capped(canary[kind], longest))
            for kind in sorted(stable.keys() & canary.keys())
        ]
    )
    p_beyond, p_within = p_above(z), p_above(-z)
    return Finding(
        metric=metric,
        stable=counts.median_s("stable", timing),
        canary=counts.median_s("canary", timing),
        effect=_ratio_of_medians(stable, canary),
        bound=bound,
        p_beyond=p_beyond,
        p_within=p_within,
        verdict=verdict_of(p_beyond, p_within, levels),
    )


def _ratio_of_medians(stable: Mapping[Kind, Histogram], canary: Mapping[Kind, Histogram]) -> float | None:
    """Return the weighted geometric mean over kinds of requests.

    The weight of a kind is the information in its requests.
    """
    total = total_weight = 0.0
    for kind in stable.keys() & canary.keys():
        stable_s, canary_s = median_s(stable[kind]), median_s(canary[kind])
        if stable_s is not None and canary_s is not None:
            num_stable, num_canary = sum(stable[kind].values()), sum(canary[kind].values())
            weight = num_stable * num_canary / (num_stable + num_canary)
            total, total_weight = total + weight * math.log(canary_s / stable_s), total_weight + weight
    return math.exp(total / total_weight) if total_weight else None


def verdict_of(p_beyond: float, p_within: float, levels: Levels) -> Verdict:
    """Return the conclusion of the tests of one metric."""
    if p_beyond <= levels.beyond:
        return Verdict.BEYOND
    return Verdict.WITHIN if p_within <= levels.within else Verdict.OPEN
