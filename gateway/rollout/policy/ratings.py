"""Judge a canary by users' ratings, so that no tenant decides alone.

Ratings are few, so none may be wasted on looks: the test of `means` holds at every look. A disliked answer has the
value 1, any other 0. One tenant may be hostile, and nobody knows which. For a rollback, all others must show the canary
to be beyond its bound, whichever tenant is left out. If one is hostile, the capital without that one is right, and the
least is at most this. For a promotion the capital is divided: half bets on all ratings, the rest in equal parts on
those without one tenant. An average of fair bets is fair, and a hostile tenant cannot ruin the bet that leaves it out.

A canary beyond the bound is rolled back, and one that is shown to be below twice the bound passes. Between both is room
for few ratings to decide. To show an equal canary to be within the bound itself takes three times as many.
"""

import math
from collections.abc import Iterable, Sequence

from gateway.rollout.policy.counts import Counts, Ratings, TenantRatings
from gateway.rollout.policy.guard import Finding, Levels, Metric, rollback_level, verdict_of
from gateway.rollout.policy.means import Values, log_capital_above, log_capital_below
from gateway.rollout.policy.plan import Plan

_MIN_TENANTS = 4  # of which one may be hostile
_NONE = 1e-9  # ratings. Rounding may leave fewer.


def judge_ratings(counts: Counts, plan: Plan, step: int) -> tuple[Finding, ...]:
    """Return the finding about a step's ratings, given a bound.

    Its effect is None until enough tenants have rated answers. Both releases need as many for a verdict.
    """
    bound = plan.guard.max_dislike_increase
    if bound is None:
        return ()
    tenants = counts.ratings()
    total = _total(tenants)
    stable, canary = _rate(total.stable), _rate(total.canary)
    effect, p_beyond, p_within = None, 1.0, 1.0
    if len(tenants) >= _MIN_TENANTS:
        effect = (canary or 0.0) - (stable or 0.0)
    if _are_enough(tenants):
        p_beyond = _p_value(_log_capital_beyond(total, tenants, bound))
        p_within = _p_value(_log_capital_within(total, tenants, _passing_bound(bound)))
    levels = Levels(beyond=rollback_level(plan, Metric.FEEDBACK, step), within=plan.guard.false_promotion)
    return (
        Finding(
            metric=Metric.FEEDBACK,
            stable=stable,
            canary=canary,
            effect=effect,
            bound=bound,
            p_beyond=p_beyond,
            p_within=p_within,
            verdict=verdict_of(p_beyond, p_within, levels),
        ),
    )


def are_beyond(counts: Counts, plan: Plan, step: int) -> bool:
    """Return whether the verdict on ratings is 'beyond'.

    This is much faster than a finding unless it is near, so that it can be asked at every tick.
    """
    bound = plan.guard.max_dislike_increase
    tenants = counts.ratings() if bound is not None else []
    if bound is None or not _are_enough(tenants):
        return False
    needed = -math.log(rollback_level(plan, Metric.FEEDBACK, step))
    return _log_capital_beyond(_total(tenants), tenants, bound, needed) >= needed


def _passing_bound(bound: float) -> float:
    """Return the increase below which a canary passes."""
    return min(2 * bound, (1 + bound) / 2)


def _log_capital_beyond(
    total: TenantRatings, tenants: Sequence[TenantRatings], bound: float, needed: float = 0.0
) -> float:
    """Return the least capital without any one tenant.

    It is exact if it is at least `needed`.
    """
    least = math.inf
    for tenant in _weightiest(tenants):
        least = min(least, log_capital_above(*_without(total, tenant), bound, needed=needed))
        if least < needed:
            break
    return least


def _log_capital_within(total: TenantRatings, tenants: Sequence[TenantRatings], bound: float) -> float:
    """Return a lower bound of the divided capital.

    Of the parts that leave one tenant out, only the one without the tenant that dislikes the canary most is counted.
    """
    of_all = log_capital_below(_values(total.stable), _values(total.canary), bound) - math.log(2)
    of_others = log_capital_below(*_without(total, max(tenants, key=_weight)), bound) - math.log(2 * len(tenants))
    highest = max(of_all, of_others)
    return highest + math.log(math.exp(of_all - highest) + math.exp(of_others - highest))


def _weightiest(tenants: Iterable[TenantRatings]) -> list[TenantRatings]:
    """Return the tenants that may speak most against the canary.

    Every other tenant speaks less against it than one of these, in each respect.
    """
    kept: list[TenantRatings] = []
    for tenant in sorted(set(tenants), key=_weight, reverse=True):
        if not any(all(a >= b for a, b in zip(_weight(one), _weight(tenant), strict=True)) for one in kept):
            kept.append(tenant)
    return kept


def _weight(tenant: TenantRatings) -> tuple[float, float, float, float]:
    """Return evidence against the canary, in comparable numbers."""
    stable, canary = tenant
    return canary.disliked, stable.others, -canary.others, -stable.disliked


def _without(total: TenantRatings, tenant: TenantRatings) -> tuple[Values, Values]:
    """Return stable's and the canary's ratings of all other tenants."""
    stable, canary = (
        Ratings(all_of.disliked - own.disliked, all_of.others - own.others)
        for all_of, own in zip(total, tenant, strict=True)
    )
    return _values(stable), _values(canary)


def _values(ratings: Ratings) -> Values:
    return [(value, number) for value, number in ((1.0, ratings.disliked), (0.0, ratings.others)) if number > _NONE]


def _are_enough(tenants: Sequence[TenantRatings]) -> bool:
    return all(sum(any(one[arm]) for one in tenants) >= _MIN_TENANTS for arm in (0, 1))


def _total(tenants: Sequence[TenantRatings]) -> TenantRatings:
    return TenantRatings(_sum(one.stable for one in tenants), _sum(one.canary for one in tenants))


def _sum(ratings: Iterable[Ratings]) -> Ratings:
    both = list(ratings)
    return Ratings(math.fsum(one.disliked for one in both), math.fsum(one.others for one in both))


def _rate(ratings: Ratings) -> float | None:
    rated = sum(ratings)
    return ratings.disliked / rated if rated else None


def _p_value(log_capital: float) -> float:
    return math.exp(min(0.0, -log_capital))
