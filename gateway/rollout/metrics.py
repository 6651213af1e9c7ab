"""What a gateway tells Prometheus of rollouts."""

from prometheus_client import Counter, Gauge

from gateway.rollout.policy import Phase, State

WEIGHT = Gauge("tandem_rollout_weight_percent", "Share of conversations each release answers.", ["release"])
PHASE = Gauge("tandem_rollout_phase", "1 for the phase the rollout is in.", ["phase"])
STORE_UP = Gauge("tandem_rollout_store_up", "Whether this gateway reaches the store of the rollout.")
SHADOW_REQUESTS = Counter(
    "tandem_rollout_shadow_requests",
    "Mirrored requests: answered, failed or dropped; of the answered and greedy ones, compared and equal.",
    ["release", "outcome"],
)


def show(state: State | None, *, in_force: str) -> None:
    """Set the gauges to a state."""
    WEIGHT.clear()
    canary = state.weight_percent if state is not None and state.phase is Phase.RUNNING else 0.0
    WEIGHT.labels(in_force).set(100 - canary)
    if state is not None and state.phase is Phase.RUNNING:
        WEIGHT.labels(state.plan.canary).set(canary)
    for phase in Phase:
        PHASE.labels(phase).set(state is not None and state.phase is phase)
