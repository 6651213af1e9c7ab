"""Convert between rollouts and the messages of the contract."""

from dataclasses import asdict

from gateway.rollout.known_rollout import View
from gateway.rollout.policy import (
    Arm,
    Change,
    Counts,
    Finding,
    Guard,
    Phase,
    Plan,
    Probing,
    controller,
    mean_length,
    mean_logprob,
    read_plan,
)
from tandem.v1 import rollout_pb2


def plan_from_message(message: rollout_pb2.RolloutPlan, *, in_force: str) -> Plan:
    """Return a validated plan.

    Args:
        message: as an operator sent it.
        in_force: the release that answers now. It replaces an empty stable release.

    Raises:
        InvalidArgument: as `read_plan`.
    """
    return read_plan(
        {
            "stable": message.stable or in_force,
            "canary": message.canary,
            "steps": [
                {"weight_percent": step.weight_percent, "seconds": step.seconds, "requests": step.requests}
                for step in message.steps
            ],
            # Only fields that are set, so that the others get their defaults.
            "guard": {field.name: value for field, value in message.guard.ListFields()},
            "shadow_percent": message.shadow_percent,
            "shadow_canary_percent": message.shadow_canary_percent,
        }
    )


def rollout_message(view: View) -> rollout_pb2.Rollout:
    """Return the rollout as this gateway knows it."""
    message = rollout_pb2.Rollout(
        in_force=view.in_force, store_reachable=view.store_reachable, only_here=view.is_unconfirmed
    )
    state = view.state
    if state is None:
        return message
    message.id = state.id
    message.phase = rollout_pb2.RolloutPhase.Value(f"ROLLOUT_PHASE_{state.phase.name}")
    message.plan.CopyFrom(_plan_message(state.plan))
    message.step, message.step_started_s = state.step, state.step_started_s
    message.weight_percent = state.weight_percent
    message.changes.extend(map(_change_message, state.changes))
    message.stable.CopyFrom(_counts_message(view.counts, "stable"))
    message.canary.CopyFrom(_counts_message(view.counts, "canary"))
    if state.phase is Phase.RUNNING:
        message.findings.extend(map(_finding_message, controller.preview(state, view.counts)))
    if view.probing is not None and state.plan.guard.max_quality_drop is not None:
        message.probes.CopyFrom(_probes_message(view.probing))
    if state.plan.shadow_percent:
        message.shadow.CopyFrom(_mirrored_message(view.counts, "shadow"))
    if state.plan.shadow_canary_percent:
        message.shadow_stable.CopyFrom(_mirrored_message(view.counts, "shadow_stable"))
    return message


def _plan_message(plan: Plan) -> rollout_pb2.RolloutPlan:
    return rollout_pb2.RolloutPlan(
        stable=plan.stable,
        canary=plan.canary,
        steps=[rollout_pb2.RolloutStep(**asdict(step)) for step in plan.steps],
        guard=_guard_message(plan.guard),
        shadow_percent=plan.shadow_percent,
        shadow_canary_percent=plan.shadow_canary_percent,
    )


def _guard_message(guard: Guard) -> rollout_pb2.RolloutGuard:
    return rollout_pb2.RolloutGuard(**{name: value for name, value in asdict(guard).items() if value is not None})


def _change_message(change: Change) -> rollout_pb2.RolloutChange:
    return rollout_pb2.RolloutChange(
        number=change.number,
        at_s=change.at_s,
        event=rollout_pb2.RolloutEvent.Value(f"ROLLOUT_EVENT_{change.event.name}"),
        reason=change.reason,
        weight_percent=change.weight_percent,
        findings=map(_finding_message, change.findings),
    )


def _finding_message(finding: Finding) -> rollout_pb2.RolloutFinding:
    return rollout_pb2.RolloutFinding(
        metric=rollout_pb2.RolloutMetric.Value(f"ROLLOUT_METRIC_{finding.metric.name}"),
        stable=finding.stable,
        canary=finding.canary,
        effect=finding.effect,
        bound=finding.bound,
        p_beyond=finding.p_beyond,
        p_within=finding.p_within,
        verdict=rollout_pb2.RolloutVerdict.Value(f"ROLLOUT_VERDICT_{finding.verdict.name}"),
        slice=finding.slice,
    )


def _probes_message(probing: Probing) -> rollout_pb2.RolloutProbes:
    message = rollout_pb2.RolloutProbes(lost_ids=probing.lost, problem=probing.problem, remaining=probing.remaining)
    if probing.counts:
        count = probing.counts[0]
        message.judged, message.unjudged = count.total, count.unjudged
        message.stable_wrong, message.canary_wrong, message.lost = count.stable_wrong, count.canary_wrong, count.lost
    return message


def _counts_message(counts: Counts, arm: Arm) -> rollout_pb2.RolloutCounts:
    return rollout_pb2.RolloutCounts(
        requests=counts.number(arm, "requests"),
        errors=counts.number(arm, "errors"),
        empty=counts.number(arm, "empty"),
        overdue=counts.number(arm, "overdue"),
        waiting=counts.number(arm, "waiting"),
        looped=counts.number(arm, "looped"),
        cut_off=counts.number(arm, "cut_off"),
        wrong_script=counts.number(arm, "wrong_script"),
        same_text=counts.number(arm, "same_text"),
        filtered=counts.number(arm, "filtered"),
        rated=counts.num_ratings(arm, "rated"),
        disliked=counts.num_ratings(arm, "disliked"),
        constraint_failures=counts.number(arm, "constraint_failures"),
        constraint_faults=counts.number(arm, "constraint_faults"),
        mean_tokens=mean_length(counts.measured(arm, "length")),
        mean_logprob=mean_logprob(counts.measured(arm, "surprise")),
    )


def _mirrored_message(counts: Counts, arm: Arm) -> rollout_pb2.RolloutShadowCounts:
    return rollout_pb2.RolloutShadowCounts(
        counts=_counts_message(counts, arm),
        first_token_s=counts.median_s(arm, "first_token"),
        inter_token_s=counts.median_s(arm, "inter_token"),
        compared=counts.number(arm, "compared"),
        equal=counts.number(arm, "equal"),
        dropped=counts.number(arm, "dropped"),
        worse=counts.number(arm, "worse"),
        better=counts.number(arm, "better"),
    )
