"""Ratings of answers: valid at every look, and no tenant decides alone."""

import math
import random
from collections.abc import Iterator, Sequence
from statistics import median

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.rollout.policy import controller
from gateway.rollout.policy.counts import Arm, Counts, Ratings, TenantRatings
from gateway.rollout.policy.guard import Finding, Metric, Verdict, rollback_level
from gateway.rollout.policy.means import Values, log_capital_above, log_capital_below, p_mean_above
from gateway.rollout.policy.plan import Plan
from gateway.rollout.policy.ratings import are_beyond, judge_ratings
from tests.gateway.rollout.plans import STABLE, numbers, plan

BOUND = 0.05
ARMS: tuple[Arm, Arm] = ("stable", "canary")
HOSTILE = 4000  # the number of a tenant

ratings = st.builds(Ratings, st.integers(0, 8), st.integers(0, 30))
tenants = st.lists(st.builds(TenantRatings, ratings, ratings), min_size=1, max_size=8)


def asked(bound: float = BOUND, *, quality: float | None = None, false_rollback: float = 0.01) -> Plan:
    """Return a plan that judges little but ratings."""
    guard = {"max_error_rate_increase": 0.02, "max_dislike_increase": bound, "max_quality_drop": quality}
    return plan(50, 100, guard={**guard, "false_rollback": false_rollback})


def counts_of(table: Sequence[TenantRatings]) -> Counts:
    counts = Counts()
    for tenant, both in enumerate(table):
        for arm, of_arm in zip(ARMS, both, strict=True):
            add(counts, arm, tenant, disliked=int(of_arm.disliked), others=int(of_arm.others))
    return counts


def add(counts: Counts, arm: Arm, tenant: int, *, disliked: int, others: int) -> None:
    for number in range(disliked + others):
        counts.add_rating(arm, tenant, disliked=number < disliked)


def values(table: Sequence[TenantRatings]) -> tuple[Values, Values]:
    """Return the values of stable's and the canary's ratings."""
    sums = [(sum(one[arm].disliked for one in table), sum(one[arm].others for one in table)) for arm in (0, 1)]
    stable, canary = (
        [(value, number) for value, number in zip((1.0, 0.0), both, strict=True) if number] for both in sums
    )
    return stable, canary


def judged(counts: Counts, asked_for: Plan) -> Finding:
    (finding,) = judge_ratings(counts, asked_for, 0)
    return finding


def rollout(
    stable: float, canary: float, seed: int, *, most: int, hostile: bool = False, rated: int = 20
) -> Iterator[Counts]:
    """Yield growing counts, after each rating of the canary.

    Both releases get a rating in turn, from one of `rated` tenants. A hostile one gives a tenth more.
    """
    rng, counts = random.Random(seed), Counts()
    for _ in range(most):
        for arm, rate in zip(ARMS, (stable, canary), strict=True):
            counts.add_rating(arm, rng.randrange(rated), disliked=rng.random() < rate)
            if hostile and rng.random() < 0.1:
                counts.add_rating(arm, HOSTILE, disliked=arm == "canary")
        yield counts


@settings(max_examples=60, deadline=None)
@given(tenants)
def test_the_least_capital_without_any_one_tenant_counts(table: list[TenantRatings]) -> None:
    """Leaving out only the weightiest tenants finds the same."""
    finding = judged(counts_of(table), asked())
    assert (finding.effect is None) == (sum(any(map(any, one)) for one in table) < 4)
    if any(sum(any(one[arm]) for one in table) < 4 for arm in (0, 1)):
        assert finding.p_beyond == finding.p_within == 1
        return
    without = [values([*table[:number], *table[number + 1 :]]) for number in range(len(table))]
    least = min(log_capital_above(*others, BOUND) for others in without)
    assert finding.p_beyond == pytest.approx(math.exp(min(0.0, -least)))
    parts = [math.exp(log_capital_below(*others, 2 * BOUND)) for others in without]
    whole = math.exp(log_capital_below(*values(table), 2 * BOUND)) / 2 + sum(parts) / (2 * len(parts))
    assert finding.p_within >= min(1.0, 1 / whole) * (1 - 1e-9)
    assert are_beyond(counts_of(table), asked(), 0) == (finding.verdict is Verdict.BEYOND)


@settings(max_examples=40, deadline=None)
@given(tenants, st.integers(0, 90), st.integers(0, 90), st.integers(0, 90), st.integers(0, 90))
def test_one_tenant_never_makes_the_evidence_against_a_canary_stronger(
    table: list[TenantRatings], a: int, b: int, c: int, d: int
) -> None:
    """A rollback never needs the ratings of any one tenant."""
    counts = counts_of(table)
    add(counts, "stable", HOSTILE, disliked=a, others=b)
    add(counts, "canary", HOSTILE, disliked=c, others=d)
    assert judged(counts, asked()).p_beyond >= p_mean_above(*values(table), BOUND) * (1 - 1e-9)


@pytest.mark.parametrize("hostile", [False, True])
@pytest.mark.parametrize(("stable", "canary"), [(0.03, 0.03), (0.1, 0.15)])
def test_false_alarms_stay_within_their_allowance_at_all_looks(*, stable: float, canary: float, hostile: bool) -> None:
    """At its bound, each rollback of a canary is false."""
    num_rollouts, allowance = 60, 0.2  # large enough to be seen
    rolled_back = 0
    for seed in range(num_rollouts):
        found = rollout(stable, canary, seed, most=150, hostile=hostile)
        rolled_back += any(
            are_beyond(counts, asked(false_rollback=2 * allowance), 0) for n, counts in enumerate(found) if n % 3 == 0
        )
    assert rolled_back <= allowance * num_rollouts


def test_a_canary_with_a_quarter_of_disliked_answers_leaves_after_80_ratings() -> None:
    """These are 1,000 wrong answers if users rate 2 %."""
    needed = []
    for seed in range(21):
        found = enumerate(rollout(0.0, 0.25, seed, most=400), 1)
        needed.append(next(number for number, counts in found if are_beyond(counts, asked(), 0)))
    assert median(needed) < 80


@pytest.mark.parametrize(("hostile", "most"), [(False, 250), (True, 400)])
def test_a_hostile_tenant_holds_no_equal_canary(*, hostile: bool, most: int) -> None:
    *_, counts = rollout(0.03, 0.03, 1, most=most, hostile=hostile)
    assert judged(counts, asked()).verdict is Verdict.WITHIN


def test_a_canary_passes_below_twice_the_bound() -> None:
    """A large bound leaves no room for twice of it."""
    *_, counts = rollout(0.03, 0.06, 1, most=1500)
    assert judged(counts, asked()).verdict is Verdict.WITHIN
    *_, counts = rollout(0.03, 0.13, 1, most=1500)
    assert judged(counts, asked()).verdict is Verdict.BEYOND
    *_, counts = rollout(0.03, 0.03, 1, most=100)
    assert judged(counts, asked(0.7)).verdict is Verdict.WITHIN


def test_a_few_tenants_decide_nothing() -> None:
    many, few = Counts(), Counts()
    for tenant in range(4):
        add(many, "stable", tenant, disliked=0, others=60)
        add(many, "canary", tenant, disliked=40, others=20)
    for tenant in range(3):
        add(few, "stable", tenant, disliked=0, others=60)
        add(few, "canary", tenant, disliked=40, others=20)
    assert judged(many, asked()).verdict is Verdict.BEYOND
    finding = judged(few, asked())
    assert (finding.verdict, finding.effect) == (Verdict.OPEN, None)
    assert finding.canary == pytest.approx(2 / 3)


def test_a_step_is_held_from_the_first_ratings_of_four_tenants_on() -> None:
    """A short step would end before they can be judged."""
    equal = numbers("stable", 2000) + numbers("canary", 2000)
    state = controller.start(controller.begin(None, asked(), in_force=STABLE, rollout_id="r", now_s=0), 0)
    for num_tenants, is_held in ((3, False), (4, True)):
        counts = Counts() + equal
        for tenant in range(num_tenants):  # none rates an answer of stable
            add(counts, "canary", tenant, disliked=1, others=2)
        following = controller.tick(state, counts, 20)
        assert following is not None
        assert (following.step == 0) == is_held, num_tenants
        assert ("feedback" in following.changes[-1].reason) == is_held


def test_a_tenant_with_very_many_ratings_does_not_outweigh_the_others() -> None:
    counts = Counts()
    for tenant in range(20):
        add(counts, "stable", tenant, disliked=0, others=20)
        add(counts, "canary", tenant, disliked=5, others=15)
    add(counts, "stable", HOSTILE, disliked=0, others=100_000)
    add(counts, "canary", HOSTILE, disliked=0, others=100_000)
    assert judged(counts, asked()).verdict is Verdict.BEYOND


def test_without_a_bound_nothing_is_judged() -> None:
    assert judge_ratings(Counts(), plan(), 0) == ()
    assert not are_beyond(Counts(), plan(), 0)


def test_probes_and_ratings_have_half_of_the_allowance() -> None:
    assert rollback_level(asked()) == pytest.approx(0.005)
    assert sum_of_levels(asked()) == pytest.approx(0.01)
    assert sum_of_levels(asked(quality=0.02)) == pytest.approx(0.01)
    assert sum_of_levels(plan()) == pytest.approx(0.01)


def test_a_step_with_more_ratings_has_a_larger_share() -> None:
    steps = plan(0, 1, 24, 100, shadow_percent=1, guard={"max_dislike_increase": BOUND})
    assert [rollback_level(steps, Metric.FEEDBACK, step) for step in range(3)] == pytest.approx([0, 0.0004, 0.0096])


def sum_of_levels(plan_: Plan) -> float:
    """Return the sum over all tests."""
    guard, steps = plan_.guard, range(plan_.num_judged_steps)
    has_ratings = guard.max_dislike_increase is not None
    total = rollback_level(plan_) * (guard.num_bounds - has_ratings) * len(steps)
    total += sum(rollback_level(plan_, Metric.FEEDBACK, step) for step in steps) if has_ratings else 0
    return total + (rollback_level(plan_, Metric.QUALITY) if guard.max_quality_drop is not None else 0)
