"""Decisions by the answers to probes."""

from dataclasses import replace
from typing import Any

import pytest
from pydantic import TypeAdapter

from gateway.rollout.policy import PairCounter, Phase, Probing, State, controller, is_open, judge_probes
from gateway.rollout.policy.guard import Metric, Verdict
from gateway.rollout.policy.probing import ProbeVerdict
from gateway.rollout.policy.state import Event
from tests.gateway.rollout.plans import CANARY, GUARD, STABLE, numbers, plan

JUDGED = {**GUARD, "max_quality_drop": 0.02}


def preparing(**further: Any) -> State:
    return controller.begin(None, plan(1, 100, guard=JUDGED, **further), in_force=STABLE, rollout_id="r", now_s=0)


def probing(lost: int = 0, gained: int = 0, equal: int = 0, *, unjudged: int = 0, wrong_in: str = "") -> Probing:
    """Return the result of probes, lost in one topic."""
    pairs = PairCounter()
    outcomes: list[tuple[int, ProbeVerdict, ProbeVerdict]] = [
        (lost, "right", "wrong"),
        (gained, "wrong", "right"),
        (equal, "right", "right"),
        (unjudged, "right", "unjudged"),
    ]
    index = 0
    for number, stable, canary in outcomes:
        for _ in range(number):
            topic = wrong_in if wrong_in and canary == "wrong" else f"{index % 8}"
            pairs.add(f"probe-{index}", (f"topic={topic}",), stable, canary)
            index += 1
    return pairs.probing()


def test_a_plainly_worse_canary_never_gets_traffic() -> None:
    state = controller.start(preparing(), 5, probing(lost=100, equal=300))
    assert (state.phase, state.in_force, state.weight_percent) == (Phase.ROLLED_BACK, STABLE, 0)
    assert [change.event for change in state.changes] == [Event.SET, Event.ROLLED_BACK]
    reason = state.changes[-1].reason
    assert reason.startswith("The canary's quality is beyond its bound: 0.25 against at most 0.02")
    assert reason.endswith("Lost probes: probe-0, probe-1, probe-2, probe-3, probe-4 and 95 more.")


def test_one_bad_slice_is_enough_for_a_rollback() -> None:
    """The other topics lose nothing."""
    result = probing(lost=10, equal=390, wrong_in="7")
    overall, *slices = judge_probes(result, preparing().plan)
    assert overall.verdict is not Verdict.BEYOND
    assert [one.slice for one in slices if one.verdict is Verdict.BEYOND] == []
    result = probing(lost=20, equal=380, wrong_in="7")
    state = controller.start(preparing(), 5, result)
    assert state.phase is Phase.ROLLED_BACK
    assert "quality in topic=7 is beyond" in state.changes[-1].reason


def test_an_equal_canary_starts_and_its_quality_is_within() -> None:
    state = controller.start(preparing(), 5, probing(equal=400))
    assert state.phase is Phase.RUNNING
    assert state.changes[-1].reason == "The canary's models are ready. Of 400 probes it answers 0 wrong, stable 0."
    assert state.changes[-1].findings[0].verdict is Verdict.WITHIN


@pytest.mark.parametrize(
    "result", [probing(lost=6, equal=394), probing(equal=300, unjudged=100), probing(equal=40), probing(unjudged=400)]
)
def test_an_open_quality_goes_on_in_the_steps_and_holds_before_the_last(result: Probing) -> None:
    """A probe without a verdict never promotes."""
    state = controller.start(preparing(), 0, result)
    assert state.phase is Phase.RUNNING
    counts = numbers("stable", 3000) + numbers("canary", 3000)
    held = controller.tick(state, counts, 100)
    assert held is not None
    assert (held.phase, held.step, held.changes[-1].event) == (Phase.RUNNING, 0, Event.HELD)
    assert held.changes[-1].reason == "Not shown to be within its bound yet: quality."


@pytest.mark.parametrize("result", [probing(equal=400), Probing(problem="There are none."), None])
def test_a_canary_with_good_answers_or_without_probes_advances_as_ever(result: Probing | None) -> None:
    state = controller.start(preparing(), 0, result)
    counts = numbers("stable", 3000) + numbers("canary", 3000)
    advanced = controller.tick(state, counts, 100)
    assert advanced is not None
    assert advanced.step == 1
    if result is not None and result.problem:
        assert state.changes[-1].reason == "The canary's models are ready. There are none."


def test_further_probes_in_the_steps_decide() -> None:
    """The part before traffic was too small."""
    state = controller.start(preparing(), 0, replace(probing(equal=100), remaining=300, asked="a"))
    assert state.changes[-1].reason.endswith(
        "Of 100 probes it answers 0 wrong, stable 0. 300 more follow in the steps."
    )
    counts = numbers("stable", 3000) + numbers("canary", 3000)
    held = controller.tick(state, counts, 100)
    assert held is not None
    good = controller.record_probes(held, probing(equal=400), 110)
    assert (good.phase, good.changes) == (Phase.RUNNING, held.changes)
    advanced = controller.tick(good, counts + counts, 120)
    assert advanced is not None
    assert advanced.step == 1
    bad = controller.record_probes(held, probing(lost=100, equal=300), 110)
    assert bad.phase is Phase.ROLLED_BACK
    assert "Lost probes: probe-0" in bad.changes[-1].reason


@pytest.mark.parametrize(
    ("result", "is_asked"),
    [
        (probing(equal=100), True),
        (probing(equal=400), True),  # each topic alone is open
        (probing(lost=100), False),
        (Probing(), False),
    ],
)
def test_further_probes_are_asked_while_they_can_change_the_verdict(result: Probing, is_asked: bool) -> None:
    assert is_open(result, preparing().plan) is is_asked
    assert not is_open(result, plan(1, 100))


def test_counts_go_on_where_they_ended() -> None:
    outcomes: list[tuple[ProbeVerdict, ProbeVerdict]] = [
        ("right", "wrong"),
        ("wrong", "right"),
        ("right", "unjudged"),
    ] * 20
    whole, first = PairCounter(), PairCounter()
    for number, pair in enumerate(outcomes):
        whole.add(f"p{number}", (f"topic={number % 2}",), *pair)
        if number < 25:
            first.add(f"p{number}", (f"topic={number % 2}",), *pair)
    second = PairCounter(before=first.probing(remaining=35, asked="a"))
    for number, pair in enumerate(outcomes[25:], 25):
        second.add(f"p{number}", (f"topic={number % 2}",), *pair)
    assert second.probing() == whole.probing()
    assert whole.probing().num_asked == 60


def test_slices_share_the_allowance_before_they_have_a_probe() -> None:
    """Else an early slice would get more than its share."""
    late, early = PairCounter(["topic=a", "topic=b"]), PairCounter()
    for pairs in (late, early):
        for number in range(6):
            pairs.add(f"p{number}", ("topic=a",), "right", "wrong")
    levels = {
        name: next(
            judge_probes(_with_lost(result, "topic=a", lost), preparing().plan)[1].p_beyond
            for lost in range(1, 400)
            if judge_probes(_with_lost(result, "topic=a", lost), preparing().plan)[1].verdict is Verdict.BEYOND
        )
        for name, result in (
            ("late", replace(late.probing(), counts=tuple(replace(one, total=400) for one in late.probing().counts))),
            (
                "early",
                replace(early.probing(), counts=tuple(replace(one, total=400) for one in early.probing().counts)),
            ),
        )
    }
    assert levels["late"] < levels["early"]


def test_a_slice_of_later_probes_is_not_judged_by_itself() -> None:
    """Else the earlier slices would have too large shares."""
    first = PairCounter(["topic=a"])
    first.add("p0", ("topic=a",), "right", "right")
    second = PairCounter(["topic=a", "topic=b"], first.probing())
    second.add("p1", ("topic=b",), "right", "wrong")
    assert [(one.slice, one.total, one.lost) for one in second.probing().counts] == [("", 2, 1), ("topic=a", 1, 0)]
    fresh = PairCounter(["topic=b"], Probing(problem="There were none."))
    assert [one.slice for one in fresh.probing().counts] == ["", "topic=b"]


def test_only_probes_that_are_left_are_new_in_the_stored_state() -> None:
    """An older gateway reads the others."""
    stored = TypeAdapter(Probing)
    assert set(stored.dump_python(probing(equal=3))) == {"counts", "lost", "problem"}
    left = replace(probing(equal=3), remaining=2, asked="a")
    assert stored.validate_json(stored.dump_json(left)) == left


def test_without_a_bound_probes_are_not_judged() -> None:
    state = controller.begin(None, plan(1, 100), in_force=STABLE, rollout_id="r", now_s=0)
    assert state.plan.canary == CANARY
    assert controller.start(state, 0, probing(lost=400)).phase is Phase.RUNNING


def test_all_probe_tests_together_spend_their_share_of_the_allowance() -> None:
    """Find the levels from the verdicts."""
    planned = preparing().plan
    share = planned.guard.false_rollback / 2
    pairs = PairCounter()
    for index in range(400):
        pairs.add(f"{index}", (f"topic={index % 8}", f"language={index % 2}"), "right", "right")
    findings = judge_probes(pairs.probing(), planned)
    assert len(findings) == 11
    assert {finding.metric for finding in findings} == {Metric.QUALITY}
    lowest = {
        finding.slice: next(
            judged.p_beyond
            for lost in range(1, 400)
            for judged in judge_probes(_with_lost(pairs.probing(), finding.slice, lost), planned)
            if judged.slice == finding.slice and judged.verdict is Verdict.BEYOND
        )
        for finding in findings
    }
    assert lowest[""] + sum(level for name, level in lowest.items() if name) <= share


def _with_lost(result: Probing, name: str, lost: int) -> Probing:
    counts = tuple(
        replace(count, lost=min(lost, count.total), canary_wrong=min(lost, count.total))
        if count.slice == name
        else count
        for count in result.counts
    )
    return replace(result, counts=counts)
