"""A deadline counts only if stable nearly always meets it."""

from gateway.answer.report import Report
from gateway.rollout.policy.counts import Outcome
from gateway.rollout.stable_pace import StablePace

OVERDUE_S = 10.0


def pace(*, first_token_s: float = 0.2, inter_token_s: float | None = 0.03, number: int = 200) -> StablePace:
    found = StablePace()
    for _ in range(number):
        found.add(
            Outcome(kind="text", failed=False, empty=False, first_token_s=first_token_s, inter_token_s=inter_token_s)
        )
    return found


def report(*, num_later_tokens: int | None = None) -> Report:
    """Return a report with some tokens after the first."""
    found = Report()
    if num_later_tokens is not None:
        found.first_token_at_s, found.num_later_tokens = 1.0, num_later_tokens
    return found


def test_a_deadline_shorter_than_stable_needs_says_nothing() -> None:
    assert not pace().allows(0.03, report(), OVERDUE_S)
    assert pace().allows(0.3, report(), OVERDUE_S)


def test_of_a_stream_the_next_token_had_to_be_due() -> None:
    """Its length ended it, not its pace."""
    assert not pace().allows(3.0, report(num_later_tokens=100), OVERDUE_S)
    assert pace().allows(3.0, report(num_later_tokens=50), OVERDUE_S)


def test_while_stable_is_unknown_only_an_overdue_answer_counts() -> None:
    for unknown in (StablePace(), pace(number=99)):
        assert not unknown.allows(9.9, report(), OVERDUE_S)
        assert unknown.allows(10.0, report(), OVERDUE_S)
    assert not pace(inter_token_s=None).allows(1000.0, report(num_later_tokens=1), OVERDUE_S)


def test_the_slowest_hundredth_of_answers_sets_the_pace() -> None:
    found = pace(number=970)
    for _ in range(30):
        found.add(Outcome(kind="text", failed=False, empty=False, first_token_s=2.0, inter_token_s=None))
    assert not found.allows(1.9, report(), OVERDUE_S)
    assert found.allows(2.1, report(), OVERDUE_S)


def test_old_times_are_forgotten() -> None:
    found = pace(first_token_s=5.0, number=10_000)
    for _ in range(150_000):
        found.add(Outcome(kind="text", failed=False, empty=False, first_token_s=0.2, inter_token_s=None))
    assert found.allows(0.3, report(), OVERDUE_S)
