"""Decide the next state of a rollout.

Every function is pure and returns a new state. A store keeps it by compare-and-set, so exactly one of several gateways
decides.
"""

import math
from dataclasses import replace

from chassis.errors import FailedPrecondition
from gateway.rollout.policy.answer_means import judge_means
from gateway.rollout.policy.counts import Arm, Counts
from gateway.rollout.policy.guard import LOOK_GROWTH, Finding, Metric, Verdict, judge, levels_of, num_comparable
from gateway.rollout.policy.plan import FULL, Plan
from gateway.rollout.policy.probing import Probing, describe, first_beyond, judge_probes, lost_probes
from gateway.rollout.policy.ratings import are_beyond, judge_ratings
from gateway.rollout.policy.state import MAX_CHANGES, Change, Event, Looks, Phase, State

_NEEDED_IF_SEEN = (Metric.FEEDBACK, Metric.LOGPROB)


def begin(previous: State | None, plan: Plan, *, in_force: str, rollout_id: str, now_s: float) -> State:
    """Return the state of a rollout before its models load.

    Args:
        previous: the last rollout, whose history goes on.
        plan: of the new one.
        in_force: the release that answers now.
        rollout_id: any new name.
        now_s: Unix time, as everywhere in this module.

    Raises:
        FailedPrecondition: reason 'ROLLOUT_RUNNING', or 'STABLE_NOT_IN_FORCE' if another release answers now.
    """
    if previous is not None and previous.is_live:
        raise FailedPrecondition(
            f"The rollout of {previous.plan.canary} is still running. Promote it or roll it back first.",
            reason="ROLLOUT_RUNNING",
        )
    if plan.stable != in_force:
        raise FailedPrecondition(
            f"The release in force is {in_force}, not {plan.stable}. Set the plan's stable release to it.",
            reason="STABLE_NOT_IN_FORCE",
            field="plan.stable",
        )
    history = previous.changes if previous is not None else ()
    first = Change(
        number=history[-1].number + 1 if history else 1,
        at_s=now_s,
        event=Event.SET,
        reason=f"An operator asked for {plan.canary}.",
        weight_percent=0,
    )
    return State(
        id=rollout_id,
        plan=plan,
        phase=Phase.PREPARING,
        in_force=in_force,
        step_started_s=now_s,
        changes=_appended(history, first),
    )


def start(state: State, now_s: float, probing: Probing | None = None) -> State:
    """Return the state in which the first step runs.

    A canary that answers the probes plainly worse is rolled back instead. It never gets traffic.
    """
    probed = record_probes(state, probing, now_s) if probing is not None else state
    if not probed.is_live:
        return probed
    started = replace(probed, phase=Phase.RUNNING, step_started_s=now_s)
    findings = judge_probes(probing, state.plan)
    reason = f"The canary's models are ready.{describe(probing, state.plan)}"
    return _with_change(started, Event.STARTED, reason, now_s, findings)


def record_probes(state: State, probing: Probing, now_s: float) -> State:
    """Return the state with more answers to probes.

    A canary that answers them plainly worse is rolled back.
    """
    probed = replace(state, probing=probing)
    findings = judge_probes(probing, state.plan)
    beyond = first_beyond(findings)
    if beyond is None:
        return probed
    return roll_back(probed, _reason_to_roll_back(beyond) + lost_probes(probing), now_s, findings)


def promote(state: State, reason: str, now_s: float, findings: tuple[Finding, ...] = ()) -> State:
    """Return the state in which the canary answers everything.

    Raises:
        FailedPrecondition: reason 'NO_ROLLOUT', or 'ROLLOUT_NOT_READY' while the models are loading.
    """
    _require_live(state)
    if state.phase is Phase.PREPARING:
        raise FailedPrecondition(
            "The canary's models still load, or it answers the probes. Promote it when it is running.",
            reason="ROLLOUT_NOT_READY",
        )
    promoted = replace(state, phase=Phase.PROMOTED, in_force=state.plan.canary)
    return _with_change(promoted, Event.PROMOTED, reason, now_s, findings)


def roll_back(state: State, reason: str, now_s: float, findings: tuple[Finding, ...] = ()) -> State:
    """Return the state in which the stable release answers everything.

    Raises:
        FailedPrecondition: reason 'NO_ROLLOUT'.
    """
    _require_live(state)
    rolled_back = replace(state, phase=Phase.ROLLED_BACK)
    return _with_change(rolled_back, Event.ROLLED_BACK, reason, now_s, findings)


def tick(state: State, counts: Counts, now_s: float, *, elapsed_s: float | None = None) -> State | None:
    """Return the next state, or None for no change.

    Args:
        state: of the rollout.
        counts: of the running step.
        now_s: Unix time.
        elapsed_s: time of the running step. Without it the step is as old as `now_s` says.
    """
    if state.phase is not Phase.RUNNING:
        return None
    is_over = _is_over(state, counts, now_s - state.step_started_s if elapsed_s is None else elapsed_s)
    if state.current_step.weight_percent == FULL:
        return promote(state, "The last step is over.", now_s) if is_over else None
    if state.current_step.weight_percent == 0:
        return _advance(state, "The mirrored step is over.", now_s) if is_over else None
    return _judge_step(state, counts, now_s, is_over=is_over)


def preview(state: State, counts: Counts) -> tuple[Finding, ...]:
    """Return the findings at the levels of the next look."""
    looks = state.looks
    of_traffic = judge(counts, state.plan.guard, levels_of(state.plan, looks.taken + 1, looks.final_taken + 1))
    of_answers = judge_means(counts, state.plan) + judge_ratings(counts, state.plan, state.step)
    return of_traffic + of_answers + judge_probes(state.probing, state.plan)


def _judge_step(state: State, counts: Counts, now_s: float, *, is_over: bool) -> State | None:
    """Take a look if due, and act on it.

    The result is a rollback, the next step, a held step, or only a record of the look.
    """
    comparable, looks = num_comparable(counts), state.looks
    if comparable < state.plan.guard.min_requests:
        return None
    if are_beyond(counts, state.plan, state.step):  # this test holds at every look
        (disliked,) = judge_ratings(counts, state.plan, state.step)
        return roll_back(state, _reason_to_roll_back(disliked), now_s, preview(state, counts))
    decides_on_promotion = state.plan.steps[state.step + 1].weight_percent == FULL
    ends = is_over and not decides_on_promotion
    is_look_due = comparable >= looks.next_at or ends  # no step ends without a look
    is_final_look_due = is_over and decides_on_promotion and comparable >= looks.final_next_at
    findings = preview(state, counts) if is_look_due or is_final_look_due else ()
    if is_look_due:
        beyond = [finding for finding in findings if finding.verdict is Verdict.BEYOND]
        if beyond:
            return roll_back(state, _reason_to_roll_back(beyond[0]), now_s, findings)
        looks = replace(looks, taken=looks.taken + 1, next_at=_next_look_at(comparable))
    if ends:
        return _advance(state, "The step is over, and no metric is beyond its bound.", now_s, findings)
    if is_final_look_due:
        return _advance_or_hold(replace(state, looks=looks), findings, comparable, now_s)
    return None if looks == state.looks else replace(state, looks=looks)


def _advance_or_hold(state: State, findings: tuple[Finding, ...], comparable: int, now_s: float) -> State:
    """Advance if every metric is within its bound, else hold."""
    looks = state.looks
    # A slice is too small to show much. Ratings and log-probabilities count only where there are some.
    findings_needed = [
        one for one in findings if not one.slice and (one.metric not in _NEEDED_IF_SEEN or one.effect is not None)
    ]
    within = {*looks.within, *(finding.metric for finding in findings_needed if finding.verdict is Verdict.WITHIN)}
    missing = [finding.metric for finding in findings_needed if finding.metric not in within]
    if not missing:
        return _advance(state, "The canary is shown to be within every bound.", now_s, findings)
    looks = replace(
        looks,
        within=tuple(sorted(within)),
        final_taken=looks.final_taken + 1,
        final_next_at=_next_look_at(comparable),
    )
    held = replace(state, looks=looks)
    if state.looks.final_taken:  # the change is in the history already
        return held
    return _with_change(
        held, Event.HELD, f"Not shown to be within its bound yet: {', '.join(missing)}.", now_s, findings
    )


def _advance(state: State, reason: str, now_s: float, findings: tuple[Finding, ...] = ()) -> State:
    advanced = replace(state, step=state.step + 1, step_started_s=now_s, looks=Looks())
    return _with_change(advanced, Event.ADVANCED, reason, now_s, findings)


def _is_over(state: State, counts: Counts, elapsed_s: float) -> bool:
    step = state.current_step
    arm: Arm = "canary" if step.weight_percent else "shadow"
    return elapsed_s >= step.seconds and counts.number(arm, "requests") >= step.requests


def _next_look_at(comparable: int) -> int:
    return math.ceil(comparable * LOOK_GROWTH)


def _reason_to_roll_back(finding: Finding) -> str:
    place = f" in {finding.slice}" if finding.slice else ""
    return (
        f"The canary's {finding.metric.replace('_', ' ')}{place} is beyond its bound: {finding.effect:.3g} against at "
        f"most {finding.bound:g} (p = {finding.p_beyond:.2g})."
    )


def _with_change(state: State, event: Event, reason: str, now_s: float, findings: tuple[Finding, ...] = ()) -> State:
    """Return `state` with one more change in its history."""
    change = Change(
        number=state.changes[-1].number + 1,
        at_s=now_s,
        event=event,
        reason=reason,
        weight_percent=state.weight_percent,
        findings=findings,
    )
    return replace(state, changes=_appended(state.changes, change))


def _appended(changes: tuple[Change, ...], change: Change) -> tuple[Change, ...]:
    return (*changes, change)[-MAX_CHANGES:]


def _require_live(state: State) -> None:
    if not state.is_live:
        raise FailedPrecondition("No rollout runs. Set one first.", reason="NO_ROLLOUT")
