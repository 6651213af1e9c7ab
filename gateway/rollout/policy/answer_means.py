"""Judge the mean length and log-probability of answers."""

from collections.abc import Iterator

from gateway.rollout.policy.counts import Counts
from gateway.rollout.policy.guard import Finding, Levels, Metric, rollback_level, verdict_of
from gateway.rollout.policy.means import (
    length_increase,
    mean_length,
    mean_logprob,
    p_mean_above,
    p_mean_below,
    surprise_increase,
    values_of,
)
from gateway.rollout.policy.plan import Plan


def judge_means(counts: Counts, plan: Plan) -> tuple[Finding, ...]:
    """Compare the means that have a bound.

    The test holds at every look, so no look divides its levels.
    """
    return tuple(_findings(counts, plan))


def _findings(counts: Counts, plan: Plan) -> Iterator[Finding]:
    if plan.guard.max_length_ratio is not None:
        yield _compare_lengths(counts, plan, plan.guard.max_length_ratio)
    if plan.guard.max_logprob_drop is not None:
        yield _compare_logprobs(counts, plan, plan.guard.max_logprob_drop)


def _compare_lengths(counts: Counts, plan: Plan, bound: float) -> Finding:
    """Test that answers are neither much longer nor shorter."""
    stable, canary = counts.measured("stable", "length"), counts.measured("canary", "length")
    values, increase = (values_of("length", stable), values_of("length", canary)), length_increase(bound)
    # Either side is enough for a rollback, so they share its level. A promotion needs both.
    p_beyond = min(1.0, 2 * min(p_mean_above(*values, increase), p_mean_below(*values, -increase)))
    p_within = max(p_mean_below(*values, increase), p_mean_above(*values, -increase))
    before, now = mean_length(stable), mean_length(canary)
    effect = max(now / before, before / now) if before is not None and now is not None else None
    return _finding(Metric.LENGTH, (before, now, effect), bound, (p_beyond, p_within), plan)


def _compare_logprobs(counts: Counts, plan: Plan, bound: float) -> Finding:
    """Test that tokens of answers are not much less likely."""
    stable, canary = counts.measured("stable", "surprise"), counts.measured("canary", "surprise")
    values, increase = (values_of("surprise", stable), values_of("surprise", canary)), surprise_increase(bound)
    before, now = mean_logprob(stable), mean_logprob(canary)
    effect = before - now if before is not None and now is not None else None
    p_values = p_mean_above(*values, increase), p_mean_below(*values, increase)
    return _finding(Metric.LOGPROB, (before, now, effect), bound, p_values, plan)


def _finding(
    metric: Metric,
    numbers: tuple[float | None, float | None, float | None],
    bound: float,
    p_values: tuple[float, float],
    plan: Plan,
) -> Finding:
    stable, canary, effect = numbers
    p_beyond, p_within = p_values
    levels = Levels(beyond=rollback_level(plan), within=plan.guard.false_promotion)
    return Finding(
        metric=metric,
        stable=stable,
        canary=canary,
        effect=effect,
        bound=bound,
        p_beyond=p_beyond,
        p_within=p_within,
        verdict=verdict_of(p_beyond, p_within, levels),
    )
