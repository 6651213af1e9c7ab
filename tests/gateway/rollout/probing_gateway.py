"""Probes of a gateway with scripted stages."""

from typing import Any

from tandem.v1 import rollout_pb2
from tests.checkpoint.probes.files import probe_line
from tests.gateway.rollout.live_gateway import CANARY, LiveGateway

PREPARING, RUNNING = rollout_pb2.ROLLOUT_PHASE_PREPARING, rollout_pb2.ROLLOUT_PHASE_RUNNING
ROLLED_BACK = rollout_pb2.ROLLOUT_PHASE_ROLLED_BACK
STEPS = [rollout_pb2.RolloutStep(weight_percent=weight, seconds=3600) for weight in (50, 100)]
ONLY_STABLE, BOTH = {"exact": "stable"}, {"one_of": ["stable", "canary"]}


def lines(judge: dict[str, Any], number: int = 60) -> str:
    """Return probes whose limits of tokens tell them apart."""
    return "\n".join(probe_line(f"p{index}", judge=judge, max_tokens=100 + index) for index in range(number))


async def begin(live: LiveGateway, **guard: Any) -> rollout_pb2.Rollout:
    """Begin a rollout that judges quality."""
    limits = rollout_pb2.RolloutGuard(max_error_rate_increase=0.1, max_quality_drop=0.02, overdue_s=60, **guard)
    plan = rollout_pb2.RolloutPlan(canary=CANARY, steps=STEPS, guard=limits)
    response: rollout_pb2.RolloutsSetResponse = await live.operator.Set(rollout_pb2.RolloutsSetRequest(plan=plan))
    return response.rollout
