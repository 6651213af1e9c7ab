"""Write decisions on rollouts to the log, and count them."""

from dataclasses import asdict
from typing import Any

import structlog
from prometheus_client import Counter

from gateway.rollout.policy import Counts, State, first_beyond

DECISIONS = Counter(
    "tandem_rollout_decisions",
    "Changes of rollouts that this gateway made, by kind, and the metric beyond its bound behind a rollback.",
    ["event", "metric"],
)
DECISIONS.labels("rolled_back", "quality")  # an alert needs the 0 before the 1

_log = structlog.get_logger()


def write(state: State, counts: Counts) -> None:
    """Write the last decision with its numbers.

    Args:
        state: after the decision.
        counts: that it was made on.
    """
    change = state.changes[-1]
    beyond = first_beyond(change.findings)
    DECISIONS.labels(change.event, beyond.metric if beyond is not None else "").inc()
    _log.info(
        "rollout decision",
        event_kind=change.event,
        reason=change.reason,
        weight_percent=change.weight_percent,
        **fields(state, in_force=state.in_force),
        counts=counts.totals(),
        findings=[asdict(finding) for finding in change.findings],
    )


def fields(state: State | None, *, in_force: str) -> dict[str, Any]:
    """Return the fields of a log line about a rollout."""
    if state is None:
        return {"in_force": in_force}
    return {
        "rollout": state.id,
        "phase": state.phase,
        "step": state.step,
        "stable": state.plan.stable,
        "canary": state.plan.canary,
        "in_force": state.in_force,
    }
