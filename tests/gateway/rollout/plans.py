"""Plans and counts for several tests."""

from typing import Any

from gateway.rollout.policy.counts import Arm, Counts, Kind, Outcome
from gateway.rollout.policy.plan import Plan, read_plan

STABLE, CANARY = "demo-v1.0.0", "demo-v1.1.0"
GUARD = {
    "max_error_rate_increase": 0.02,
    "max_empty_rate_increase": 0.02,
    "max_first_token_ratio": 1.5,
    "max_inter_token_ratio": 1.5,
}


def plan(*weights: float, seconds: float = 10, requests: int = 0, **further: Any) -> Plan:
    """Return a plan with these weights.

    The default weights are 1, 25 and 100. All steps have the same length.
    """
    steps = [{"weight_percent": w, "seconds": seconds, "requests": requests} for w in weights or (1, 25, 100)]
    return read_plan({"stable": STABLE, "canary": CANARY, "steps": steps, "guard": GUARD, **further})


def numbers(
    arm: Arm,
    requests: int,
    *,
    errors: int = 0,
    empty: int = 0,
    first_token_s: float = 0.1,
    inter_token_s: float = 0.01,
    kind: Kind = "text",
) -> Counts:
    """Return the counts of similar requests."""
    counts = Counts()
    for index in range(requests):
        # Latencies vary by a factor of about two.
        spread = 2 ** ((index % 16) / 16)
        outcome = Outcome(
            kind=kind,
            failed=index < errors,
            empty=errors <= index < errors + empty,
            first_token_s=first_token_s * spread,
            inter_token_s=inter_token_s * spread,
        )
        counts.add_outcome(arm, outcome)
    return counts
