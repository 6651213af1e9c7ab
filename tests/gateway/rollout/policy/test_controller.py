"""Decisions of the controller."""

from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from pydantic import TypeAdapter

from chassis.errors import FailedPrecondition
from gateway.rollout.policy import PairCounter
from gateway.rollout.policy.controller import begin, promote, record_probes, roll_back, start, tick
from gateway.rollout.policy.counts import Counts
from gateway.rollout.policy.plan import Plan
from gateway.rollout.policy.state import Event, Phase, State
from tests.gateway.rollout.plans import CANARY, GUARD, STABLE, numbers, plan

EQUAL = numbers("stable", 2000) + numbers("canary", 2000)

STATE = TypeAdapter(State)
PROBED = plan(1, 10, 50, 100, seconds=5, guard={**GUARD, "max_quality_drop": 0.02})


def waiting(count: int) -> Counts:
    return Counts.from_paths({"canary/waiting": count})


def running(asked: Plan | None = None, now_s: float = 0) -> State:
    return start(begin(None, asked or plan(), in_force=STABLE, rollout_id="r", now_s=now_s), now_s)


def changed(state: State | None) -> State:
    assert state is not None
    return state


def test_an_equal_canary_passes_every_step_and_is_promoted() -> None:
    state, weights = running(), []
    for step in range(3):
        weights.append(state.weight_percent)
        assert (tick(state, EQUAL, 10 * step + 9) or state).step == step
        state = changed(tick(state, EQUAL, 10 * step + 10))
    assert weights == [1, 25, 100]
    assert (state.phase, state.in_force) == (Phase.PROMOTED, CANARY)
    events = [change.event for change in state.changes]
    assert events == [Event.SET, Event.STARTED, Event.ADVANCED, Event.ADVANCED, Event.PROMOTED]


def test_a_step_lasts_for_its_number_of_requests() -> None:
    state = running(plan(5, 100, seconds=0, requests=3000))
    assert changed(tick(state, EQUAL, 5)).step == 0
    assert changed(tick(state, EQUAL + numbers("canary", 1000), 5)).step == 1


@pytest.mark.parametrize("stable", [0, 49])
def test_nothing_is_judged_before_both_releases_have_enough_requests(stable: int) -> None:
    counts = numbers("stable", stable) + numbers("canary", 2000, errors=2000)
    assert tick(running(), counts, 1_000_000) is None


def test_one_failed_request_causes_no_rollback() -> None:
    state = changed(tick(running(), numbers("stable", 5000) + numbers("canary", 50, errors=1), 1))
    assert (state.phase, state.looks.taken) == (Phase.RUNNING, 1)


def test_a_worse_canary_is_rolled_back_within_a_step_with_its_findings() -> None:
    state = changed(tick(running(), numbers("stable", 5000) + numbers("canary", 200, errors=20), 1))
    assert (state.phase, state.in_force, state.weight_percent) == (Phase.ROLLED_BACK, STABLE, 0)
    last = state.changes[-1]
    assert "error rate is beyond its bound: 0.1 against at most 0.02" in last.reason
    assert len(last.findings) == 4


def test_the_next_look_is_due_after_a_fifth_more_requests() -> None:
    state = changed(tick(running(), numbers("stable", 5000) + numbers("canary", 50), 1))
    bad = {extra: numbers("stable", 5000) + numbers("canary", 50 + extra, errors=50 + extra) for extra in (9, 10)}
    assert tick(state, bad[9], 1) is None
    assert changed(tick(state, bad[10], 1)).phase is Phase.ROLLED_BACK


def test_every_step_ends_with_a_look() -> None:
    state = changed(tick(running(), numbers("stable", 5000) + numbers("canary", 50), 1))
    good = changed(tick(state, numbers("stable", 5000) + numbers("canary", 59), 10))
    assert (good.step, len(good.changes[-1].findings)) == (1, 4)
    bad = changed(tick(state, numbers("stable", 5000) + numbers("canary", 59, errors=9), 10))
    assert bad.phase is Phase.ROLLED_BACK


def test_the_step_before_100_is_held_until_the_canary_is_within_its_bounds() -> None:
    """60 requests without an error show too little."""
    state = running(plan(5, 100))
    state = changed(tick(state, numbers("stable", 60) + numbers("canary", 60), 20))
    assert (state.step, state.changes[-1].event) == (0, Event.HELD)
    assert "error_rate" in state.changes[-1].reason
    state = changed(tick(state, numbers("stable", 100) + numbers("canary", 100), 30))
    assert state.changes[-1].event is Event.HELD  # still held, without another change
    assert len(state.changes) == 3
    state = changed(tick(state, EQUAL, 40))
    assert (state.step, state.weight_percent) == (1, 100)


def test_the_step_before_100_is_held_while_requests_may_hang() -> None:
    """A step may be shorter than `overdue_s`."""
    state = running(plan(5, 100))
    state = changed(tick(state, EQUAL + waiting(100), 20))
    assert (state.step, state.changes[-1].event) == (0, Event.HELD)
    more = numbers("stable", 3000) + numbers("canary", 3000)
    assert changed(tick(state, more + waiting(2), 30)).step == 1


def test_a_mirrored_step_lasts_for_its_number_of_mirrored_requests() -> None:
    state = running(plan(0, 5, 100, seconds=0, requests=100, shadow_percent=10))
    assert tick(state, numbers("stable", 500) + numbers("shadow", 99), 1) is None
    assert changed(tick(state, numbers("shadow", 100), 1)).weight_percent == 5


def test_a_second_rollout_is_refused_while_one_runs() -> None:
    state = running()
    with pytest.raises(FailedPrecondition) as raised:
        begin(state, plan(), in_force=STABLE, rollout_id="s", now_s=1)
    assert raised.value.reason == "ROLLOUT_RUNNING"
    again = begin(roll_back(state, "", 1), plan(), in_force=STABLE, rollout_id="s", now_s=2)
    assert [change.number for change in again.changes] == [1, 2, 3, 4]


def test_a_rollout_from_a_release_that_is_not_in_force_is_refused() -> None:
    with pytest.raises(FailedPrecondition) as raised:
        begin(None, plan(), in_force="other-v1.0.0", rollout_id="r", now_s=0)
    assert raised.value.reason == "STABLE_NOT_IN_FORCE"


def test_a_canary_that_is_still_loading_cannot_be_promoted() -> None:
    with pytest.raises(FailedPrecondition) as raised:
        promote(begin(None, plan(), in_force=STABLE, rollout_id="r", now_s=0), "", 1)
    assert raised.value.reason == "ROLLOUT_NOT_READY"


class AnyOrder(RuleBasedStateMachine):
    """Counts, time and commands in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.state = running(PROBED)
        self.counts = Counts()
        self.num_waiting = 0
        self.seen = [self.state]

    def keep(self, state: State | None) -> None:
        if state is None:
            return
        if state.window != self.state.window:
            self.counts = Counts()
            self.num_waiting = 0
        self.state = state
        self.seen.append(state)

    @rule(
        requests=st.integers(1, 400),
        errors=st.integers(0, 3),
        slow=st.sampled_from([1.0, 1.0, 3.0]),
        num_waiting=st.sampled_from([0, 0, 100]),
    )
    def answer(self, requests: int, errors: int, slow: float, num_waiting: int) -> None:
        self.counts.update(numbers("stable", requests, errors=errors))
        self.counts.update(numbers("canary", requests, errors=errors, first_token_s=0.1 * slow))
        self.num_waiting = num_waiting

    @rule(seconds=st.floats(0, 10))
    def look(self, seconds: float) -> None:
        self.now_s += seconds
        self.keep(tick(self.state, self.counts + waiting(self.num_waiting), self.now_s))

    @precondition(lambda self: self.state.phase is Phase.RUNNING)
    @rule(lost=st.sampled_from([0, 0, 1, 30]), equal=st.integers(0, 300), remaining=st.integers(0, 9))
    def probe(self, lost: int, equal: int, remaining: int) -> None:
        pairs = PairCounter(["topic=a"], self.state.probing)
        for number in range(lost + equal):
            pairs.add(f"p{number}", ("topic=a",), "right", "wrong" if number < lost else "right")
        self.keep(record_probes(self.state, pairs.probing(remaining=remaining), self.now_s))

    @precondition(lambda self: self.state.is_live)
    @rule(forward=st.booleans())
    def command(self, forward: bool) -> None:
        self.keep((promote if forward else roll_back)(self.state, "by hand", self.now_s))

    @precondition(lambda self: not self.state.is_live)
    @rule()
    def begin_again(self) -> None:
        in_force = self.state.in_force
        other = STABLE if in_force == CANARY else CANARY
        asked = replace(PROBED, stable=in_force, canary=other)
        self.keep(begin(self.state, asked, in_force=in_force, rollout_id=str(len(self.seen)), now_s=self.now_s))
        self.keep(start(self.state, self.now_s))

    @invariant()
    def weights_only_rise_while_a_rollout_lives(self) -> None:
        alive = [one.weight_percent for one in self.seen if one.id == self.state.id and one.is_live]
        assert alive == sorted(alive)

    @invariant()
    def the_release_in_force_changes_by_promotion_only(self) -> None:
        for before, later in zip(self.seen, self.seen[1:], strict=False):
            if before.in_force != later.in_force:
                assert later.phase is Phase.PROMOTED
                assert later.in_force == later.plan.canary

    @invariant()
    def changes_have_no_gaps_and_the_state_survives_json(self) -> None:
        changes = [change.number for change in self.state.changes]
        assert changes == list(range(changes[0], changes[0] + len(changes)))
        assert STATE.validate_json(STATE.dump_json(self.state)) == self.state

    @invariant()
    def a_rollout_that_ended_does_not_change(self) -> None:
        if not self.state.is_live:
            assert tick(self.state, self.counts + waiting(self.num_waiting), self.now_s + 1000) is None


AnyOrder.TestCase.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
TestAnyOrder = AnyOrder.TestCase
