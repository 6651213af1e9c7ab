"""Mean length and log-probability, judged only where a bound is set."""

import random
from typing import Any

import pytest

from gateway.rollout.policy import Counts, Finding, Metric, Phase, Verdict, controller
from gateway.rollout.policy.answer_means import judge_means
from gateway.rollout.policy.counts import Arm, Outcome
from gateway.rollout.policy.state import Event
from tests.gateway.rollout.plans import GUARD, STABLE, numbers, plan


def answers(arm: Arm, number: int, *, tokens: float = 40, logprob: float | None = -0.3, seed: int = 0) -> Counts:
    """Return counts of log-normal lengths and exponential surprises."""
    drawn, counts = random.Random(seed), Counts()
    for _ in range(number):
        spread = drawn.lognormvariate(0, 0.7), drawn.expovariate(1)
        mean_logprob = None if logprob is None else logprob * spread[1]
        counts.add_outcome(
            arm,
            Outcome(
                kind="text",
                failed=False,
                empty=False,
                first_token_s=0.1,
                inter_token_s=0.01,
                num_tokens=round(tokens * spread[0]),
                mean_logprob=mean_logprob,
            ),
        )
    return counts


def judged(counts: Counts, **bounds: float) -> dict[Metric, Finding]:
    return {one.metric: one for one in judge_means(counts, plan(1, 100, guard={**GUARD, **bounds}))}


def test_without_bounds_nothing_is_judged() -> None:
    assert not judged(answers("stable", 100) + answers("canary", 100))


@pytest.mark.parametrize(
    ("canary", "length", "logprob"),
    [
        ({}, Verdict.WITHIN, Verdict.WITHIN),
        ({"tokens": 120}, Verdict.BEYOND, Verdict.WITHIN),
        ({"tokens": 10}, Verdict.BEYOND, Verdict.WITHIN),
        ({"logprob": -2.0}, Verdict.WITHIN, Verdict.BEYOND),
        ({"logprob": -0.01}, Verdict.WITHIN, Verdict.WITHIN),
        ({"logprob": None}, Verdict.WITHIN, Verdict.OPEN),
    ],
)
def test_only_the_mean_that_moved_too_far_is_beyond(canary: dict[str, Any], length: Verdict, logprob: Verdict) -> None:
    counts = answers("stable", 3000) + answers("canary", 1000, seed=1, **canary)
    found = judged(counts, max_length_ratio=1.5, max_logprob_drop=0.5)
    assert (found[Metric.LENGTH].verdict, found[Metric.LOGPROB].verdict) == (length, logprob)


def test_values_are_tokens_and_nats() -> None:
    counts = answers("stable", 3000) + answers("canary", 1000, seed=1, tokens=120, logprob=-0.8)
    found = judged(counts, max_length_ratio=1.5, max_logprob_drop=0.4)
    length, logprob = found[Metric.LENGTH], found[Metric.LOGPROB]
    assert [length.stable, length.canary, length.effect] == pytest.approx([40, 120, 3], rel=0.1)
    assert [logprob.stable, logprob.canary, logprob.effect] == pytest.approx([-0.3, -0.8, 0.5], rel=0.15)


def test_a_canary_of_other_length_is_rolled_back_and_one_without_log_probabilities_is_not_held() -> None:
    """An engine may give none."""
    asked = plan(1, 100, guard={**GUARD, "max_length_ratio": 1.5, "max_logprob_drop": 0.5})
    state = controller.start(controller.begin(None, asked, in_force=STABLE, rollout_id="r", now_s=0), 0)
    counts = numbers("stable", 2000) + numbers("canary", 2000)
    equal = counts + answers("stable", 2000, logprob=None) + answers("canary", 1000, logprob=None, seed=1)
    advanced = controller.tick(state, equal, 100)
    assert advanced is not None
    assert (advanced.step, advanced.changes[-1].event) == (1, Event.ADVANCED)
    ended = controller.tick(state, counts + answers("stable", 2000) + answers("canary", 1000, tokens=200), 100)
    assert ended is not None
    assert ended.phase is Phase.ROLLED_BACK
    assert ended.changes[-1].reason.startswith("The canary's length is beyond its bound: 5.")


def test_measures_survive_their_paths() -> None:
    counts = answers("stable", 50) + answers("shadow_stable", 3)
    assert Counts.from_paths(counts.to_paths()) == counts
    assert counts.measured("stable", "length").total() == counts.measured("stable", "surprise").total() == 50


def test_a_few_users_with_long_answers_can_make_equal_releases_differ() -> None:
    """Answers of one user are not independent.

    So no bound is set by default.
    """
    num_told_apart = 0
    for seed in range(30):
        drawn, counts = random.Random(seed), Counts()
        users = [(drawn.lognormvariate(3.7, 1), drawn.paretovariate(1.2), drawn.random() < 0.25) for _ in range(100)]
        for median, _, on_canary in drawn.choices(users, [activity for _, activity, _ in users], k=2000):
            tokens = round(median * drawn.lognormvariate(0, 0.5))
            outcome = Outcome(
                kind="text", failed=False, empty=False, first_token_s=0.1, inter_token_s=0.01, num_tokens=tokens
            )
            counts.add_outcome("canary" if on_canary else "stable", outcome)
        num_told_apart += judged(counts, max_length_ratio=1.5)[Metric.LENGTH].verdict is Verdict.BEYOND
    assert num_told_apart > 1
