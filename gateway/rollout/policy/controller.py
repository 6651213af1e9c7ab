"""What happens next to a rollout: pure functions of its state, the numbers and the time.

Each returns a new state for a store to keep by compare-and-set, so that of several gateways exactly one decides.
"""

import math

from chassis.errors import FailedPrecondition
from gateway.rollout.policy.counts import Arm, Counts, number
from gateway.rollout.policy.guard import LOOK_GROWTH, Finding, Verdict, judge, levels, num_comparable
from gateway.rollout.policy.plan import FULL, Plan
from gateway.rollout.policy.state import MAX_CHANGES, Change, Event, Looks, Phase, State


def begin(previous: State | None, plan: Plan, *, in_force: str, rollout_id: str, now_s: float) -> State:
    """Return the state of a new rollout, whose models are still to be loaded.

    Raises:
        FailedPrecondition: reason 'ROLLOUT_RUNNING'; or 'STABLE_NOT_IN_FORCE', another release answers now.
    """
    if previous is not None and previous.is_live:
        raise FailedPrecondition(
            f"The rollout of {previous.plan.canary} still runs; promote it or roll it back first.",
            reason="ROLLOUT_RUNNING",
        )
    if plan.stable != in_force:
        raise FailedPrecondition(
            f"The release in force is {in_force}, not {plan.stable}.", reason="STABLE_NOT_IN_FORCE", field="plan.stable"
        )
    changes = previous.changes if previous is not None else ()
    fresh = State.model_construct(
        id=rollout_id,
        plan=plan,
        phase=Phase.PREPARING,
        in_force=in_force,
        step=0,
        step_started_s=now_s,
        looks=Looks(),
        changes=changes,
    )
    return _changed(fresh, Event.SET, f"An operator asked for {plan.canary}.", now_s)


def start(state: State, now_s: float) -> State:
    """Return the state in which the canary, loaded and warm, takes its first share."""
    started = state.model_copy(update={"phase": Phase.RUNNING, "step_started_s": now_s})
    return _changed(started, Event.STARTED, "The canary's models are ready.", now_s)


def promote(state: State, reason: str, now_s: float, findings: tuple[Finding, ...] = ()) -> State:
    """Return the state in which the canary is the stable release.

    Raises:
        FailedPrecondition: reason 'NO_ROLLOUT'; or 'ROLLOUT_NOT_READY', its models are still being loaded.
    """
    _check_live(state)
    if state.phase is Phase.PREPARING:
        raise FailedPrecondition("The canary's models are still being loaded.", reason="ROLLOUT_NOT_READY")
    promoted = state.model_copy(update={"phase": Phase.PROMOTED, "in_force": state.plan.canary})
    return _changed(promoted, Event.PROMOTED, reason, now_s, findings)


def roll_back(state: State, reason: str, now_s: float, findings: tuple[Finding, ...] = ()) -> State:
    """Return the state in which the stable release answers everything again.

    Raises:
        FailedPrecondition: reason 'NO_ROLLOUT'.
    """
    _check_live(state)
    back = state.model_copy(update={"phase": Phase.ROLLED_BACK})
    return _changed(back, Event.ROLLED_BACK, reason, now_s, findings)


def tick(state: State, counts: Counts, now_s: float) -> State | None:
    """Return what follows from the numbers of the running step, or None where nothing does yet."""
    if state.phase is not Phase.RUNNING:
        return None
    is_over = _is_over(state, counts, now_s)
    if state.current_step.weight_percent == FULL:
        return promote(state, "The last step is over.", now_s) if is_over else None
    if state.current_step.weight_percent == 0:
        return _advance(state, "The mirrored step is over.", now_s) if is_over else None
    return _look(state, counts, now_s, is_over=is_over)


def preview(state: State, counts: Counts) -> tuple[Finding, ...]:
    """Return the findings as the next look would judge them, for people who watch."""
    looks = state.looks
    return judge(counts, state.plan.guard, levels(state.plan, looks.taken + 1, looks.final_taken + 1))


def _look(state: State, counts: Counts, now_s: float, *, is_over: bool) -> State | None:
    """Judge where a look is due; roll back, advance, hold, or only note that it was taken."""
    comparable, looks = num_comparable(counts), state.looks
    if comparable < state.plan.guard.min_requests:
        return None
    last_before_full = state.plan.steps[state.step + 1].weight_percent == FULL
    ends = is_over and not last_before_full
    due = comparable >= looks.next_at or ends  # no step ends unseen
    final_due = is_over and last_before_full and comparable >= looks.final_next_at
    findings = preview(state, counts) if due or final_due else ()
    if due:
        beyond = [finding for finding in findings if finding.verdict is Verdict.BEYOND]
        if beyond:
            return roll_back(state, _why_beyond(beyond[0]), now_s, findings)
        looks = looks.model_copy(update={"taken": looks.taken + 1, "next_at": _grown(comparable)})
    if ends:
        return _advance(state, "The step is over, and nothing speaks against the canary.", now_s, findings)
    if final_due:
        shown = {*looks.within, *(one.metric for one in findings if one.verdict is Verdict.WITHIN)}
        if all(finding.metric in shown for finding in findings):
            return _advance(state, "The canary is shown to be within every bound.", now_s, findings)
        looks = looks.model_copy(
            update={
                "within": tuple(sorted(shown)),
                "final_taken": looks.final_taken + 1,
                "final_next_at": _grown(comparable),
            }
        )
        if state.looks.final_taken == 0:
            missing = ", ".join(finding.metric for finding in findings if finding.metric not in shown)
            held = state.model_copy(update={"looks": looks})
            return _changed(held, Event.HELD, f"Not shown to be within its bound yet: {missing}.", now_s, findings)
    return None if looks == state.looks else state.model_copy(update={"looks": looks})


def _advance(state: State, reason: str, now_s: float, findings: tuple[Finding, ...] = ()) -> State:
    onward = state.model_copy(update={"step": state.step + 1, "step_started_s": now_s, "looks": Looks()})
    return _changed(onward, Event.ADVANCED, reason, now_s, findings)


def _is_over(state: State, counts: Counts, now_s: float) -> bool:
    step = state.current_step
    arm: Arm = "canary" if step.weight_percent else "shadow"
    return now_s - state.step_started_s >= step.seconds and number(counts, arm, "requests") >= step.requests


def _grown(comparable: int) -> int:
    return math.ceil(comparable * LOOK_GROWTH)


def _why_beyond(finding: Finding) -> str:
    return (
        f"The canary's {finding.metric.replace('_', ' ')} is beyond its bound: {finding.effect:.3g} against at most "
        f"{finding.bound:g} (p = {finding.p_beyond:.2g})."
    )


def _changed(state: State, event: Event, reason: str, now_s: float, findings: tuple[Finding, ...] = ()) -> State:
    """Return `state` with one more change in its history."""
    change = Change(
        number=state.changes[-1].number + 1 if state.changes else 1,
        at_s=now_s,
        event=event,
        reason=reason,
        weight_percent=state.weight_percent,
        findings=findings,
    )
    return state.model_copy(update={"changes": (*state.changes, change)[-MAX_CHANGES:]})


def _check_live(state: State) -> None:
    if not state.is_live:
        raise FailedPrecondition("No rollout runs.", reason="NO_ROLLOUT")
