"""An invalid plan is refused with reason and field."""

from typing import Any

import pytest

from chassis.errors import InvalidArgument
from gateway.rollout.policy.plan import read_plan
from tests.gateway.rollout.plans import CANARY, GUARD, STABLE, plan


@pytest.mark.parametrize(
    ("change", "reason", "field"),
    [
        ({"steps": [{"weight_percent": 101}]}, "BAD_STEPS", "plan.steps.0.weight_percent"),
        ({"steps": [{"weight_percent": -1}, {"weight_percent": 100}]}, "BAD_STEPS", "plan.steps.0.weight_percent"),
        ({"steps": [{"weight_percent": float("nan")}]}, "BAD_STEPS", "plan.steps.0.weight_percent"),
        ({"steps": [{"weight_percent": w} for w in (5, 5, 100)]}, "BAD_STEPS", "plan"),
        ({"steps": [{"weight_percent": w} for w in (25, 5, 100)]}, "BAD_STEPS", "plan"),
        ({"steps": [{"weight_percent": w} for w in (5, 25)]}, "BAD_STEPS", "plan"),
        ({"steps": [{"weight_percent": 100}]}, "BAD_STEPS", "plan"),
        ({"steps": [{"weight_percent": w} for w in (0, 5, 100)]}, "BAD_STEPS", "plan"),
        ({"steps": []}, "BAD_STEPS", "plan"),
        (
            {"steps": [{"weight_percent": 5, "seconds": -1}, {"weight_percent": 100}]},
            "BAD_STEPS",
            "plan.steps.0.seconds",
        ),
        ({"guard": {}}, "EMPTY_GUARD", "plan.guard"),
        ({"guard": {"min_requests": 100}}, "EMPTY_GUARD", "plan.guard"),
        ({"guard": {**GUARD, "max_first_token_ratio": 0.9}}, "BAD_PLAN", "plan.guard.max_first_token_ratio"),
        ({"guard": {**GUARD, "max_error_rate_increase": 1.5}}, "BAD_PLAN", "plan.guard.max_error_rate_increase"),
        ({"guard": {**GUARD, "min_requests": 1}}, "BAD_PLAN", "plan.guard.min_requests"),
        ({"guard": {**GUARD, "overdue_s": 0}}, "BAD_PLAN", "plan.guard.overdue_s"),
        ({"guard": {**GUARD, "false_rollback": 0.9}}, "BAD_PLAN", "plan.guard.false_rollback"),
        ({"shadow_percent": 101}, "BAD_PLAN", "plan.shadow_percent"),
        ({"canary": STABLE}, "SAME_RELEASE", "plan"),
    ],
)
def test_an_invalid_plan_is_refused(change: dict[str, Any], reason: str, field: str) -> None:
    steps = [{"weight_percent": weight} for weight in (5, 100)]
    with pytest.raises(InvalidArgument) as raised:
        read_plan({"stable": STABLE, "canary": CANARY, "steps": steps, "guard": GUARD, **change})
    assert (raised.value.reason, raised.value.field) == (reason, field)


def test_a_first_step_of_0_percent_is_not_judged() -> None:
    assert plan(0, 5, 100, shadow_percent=10).num_judged_steps == 1
