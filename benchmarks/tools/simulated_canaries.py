"""Releases of simulated rollouts, and their answers to probes and users."""

import math
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.tools.hostile_callers import Aim
from gateway.rollout.policy.counts import Arm, Counts, Timing
from gateway.rollout.policy.histograms import bucket_of, seconds_of
from gateway.rollout.policy.probing import PairCounter, Probing
from gateway.rollout.policy.significance import p_above

NUM_PROBES = 1000
NUM_TOPICS = 8  # the slices of the probes
NUM_TENANTS = 20
STABLE_WRONG = 0.03  # share of stable's wrong answers
CHURN = 0.005  # of probes lost, and as many gained, by any other release of the same quality

# Good is within all bounds, bad is beyond one. At a bound, both decisions are right. Undefended is a good one under an
# attack that the guard would not withstand if every request counted.
Kind = Literal["good", "at", "bad", "undefended"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """How one release answers."""

    error_rate: float = 0.005
    empty_rate: float = 0.002
    first_token_s: float = 0.2  # median of a log-normal distribution, as of inter_token_s
    inter_token_s: float = 0.03
    hang_rate: float = 0.0
    drop: float = 0.0  # share of questions that only this release answers wrong, beyond churn
    topic_drop: float = 0.0  # the same among questions of one topic
    loop_rate: float = 0.001
    script_rate: float = 0.001
    fault_rate: float = 0.001  # share of answers that break a constraint which the other release keeps
    has_probes: bool = True
    rated: float = 0.0  # share of both releases' answers that users rate
    hostile: bool = False  # one tenant dislikes every answer of this release
    attack: Aim | None = None  # of hostile callers, who make 5 % of the requests
    all_count: bool = False  # every request counts, also those that were aimed
    num_gateways: int = 1
    shares_keys: bool = True  # gateways tell each other the routing keys that they have seen

    @property
    def wrong_rate(self) -> float:
        """Share of answers that are wrong where stable's are right."""
        return self.drop + self.topic_drop / NUM_TOPICS

    @property
    def sign_rate(self) -> float:
        """Share of answers with a sign of a sick model."""
        return self.loop_rate + self.script_rate + self.fault_rate


STABLE = Behaviour()
CANARIES: dict[str, tuple[Behaviour, Kind]] = {
    "equal": (STABLE, "good"),
    "errors +1 point": (Behaviour(error_rate=0.015), "good"),
    "first token 1.2x": (Behaviour(first_token_s=0.24), "good"),
    "errors +2 points, the bound": (Behaviour(error_rate=0.025), "at"),
    "first token 1.5x, the bound": (Behaviour(first_token_s=0.3), "at"),
    "errors on 10 %": (Behaviour(error_rate=0.1), "bad"),
    "errors +4 points": (Behaviour(error_rate=0.045), "bad"),
    "first token 3x": (Behaviour(first_token_s=0.6), "bad"),
    "first token 1.7x": (Behaviour(first_token_s=0.34), "bad"),
    "tokens 2x slower": (Behaviour(inter_token_s=0.06), "bad"),
    "answers nothing": (Behaviour(empty_rate=1.0), "bad"),
    "hangs on 10 %": (Behaviour(hang_rate=0.1), "bad"),
    "hangs always": (Behaviour(hang_rate=1.0), "bad"),
    "quality -1 point": (Behaviour(drop=0.01), "good"),
    "quality -2 points, the bound": (Behaviour(drop=0.02), "at"),
    "quality -3 points": (Behaviour(drop=0.03), "bad"),
    "quality -5 points": (Behaviour(drop=0.05), "bad"),
    "quality -25 points": (Behaviour(drop=0.25), "bad"),
    "one topic of eight -20 points": (Behaviour(topic_drop=0.2), "bad"),
    "loops on 2 %, the bound": (Behaviour(loop_rate=0.021), "at"),
    "loops on 5 %": (Behaviour(loop_rate=0.05), "bad"),
    "wrong script on 3 %": (Behaviour(script_rate=0.03), "bad"),
    "breaks constraints on 2 %, the bound": (Behaviour(fault_rate=0.021), "at"),
    "breaks constraints on 5 %": (Behaviour(fault_rate=0.05), "bad"),
    "equal, 1 % rated": (Behaviour(rated=0.01), "good"),
    "equal, one hostile tenant": (Behaviour(rated=0.01, hostile=True), "good"),
    "equal, 5 % hostile anywhere": (Behaviour(attack="anywhere"), "good"),
    "equal, 5 % aimed at it": (Behaviour(attack="canary"), "good"),
    "equal, 5 % aimed at it, all counted": (Behaviour(attack="canary", all_count=True), "undefended"),
    "equal, 5 % aimed at stable": (Behaviour(attack="stable"), "good"),
    "errors on 10 %, 5 % hostile anywhere": (Behaviour(error_rate=0.1, attack="anywhere"), "bad"),
    "errors on 10 %, 5 % aimed at stable": (Behaviour(error_rate=0.1, attack="stable"), "bad"),
    "quality -25 points, no probes, 1 % rated": (Behaviour(drop=0.25, has_probes=False, rated=0.01), "bad"),
    "quality -25 points, no probes, 2 % rated": (Behaviour(drop=0.25, has_probes=False, rated=0.02), "bad"),
    "equal, 5 % aimed at it through 4 gateways": (Behaviour(attack="canary", num_gateways=4), "good"),
    "equal, 5 % aimed at it through 4 gateways, keys not shared": (
        Behaviour(attack="canary", num_gateways=4, shares_keys=False),
        "undefended",
    ),
    "errors on 10 %, 5 % aimed at stable through 4 gateways": (
        Behaviour(error_rate=0.1, attack="stable", num_gateways=4),
        "bad",
    ),
}


def answer_probes(behaviour: Behaviour, random: np.random.Generator) -> Probing:
    """Return both releases' answers to the probes."""
    pairs = PairCounter()
    draws = random.random(NUM_PROBES)
    for number, draw in enumerate(draws if behaviour.has_probes else ()):
        topic = number % NUM_TOPICS
        lost = CHURN + behaviour.drop + (behaviour.topic_drop if topic == 0 else 0.0)
        if draw < lost:
            pairs.add(str(number), (f"topic={topic}",), "right", "wrong")
        elif draw > 1 - CHURN:
            pairs.add(str(number), (f"topic={topic}",), "wrong", "right")
        else:
            pairs.add(str(number), (f"topic={topic}",), "right", "right")
    return pairs.probing() if behaviour.has_probes else Probing(problem="There are none.")


def count_signs(counts: Counts, arm: Arm, behaviour: Behaviour, answers: int, random: np.random.Generator) -> None:
    """Add the signs of a sick model in some answers."""
    counts.add(arm, "looped", int(random.binomial(answers, behaviour.loop_rate)))
    counts.add(arm, "wrong_script", int(random.binomial(answers, behaviour.script_rate)))
    counts.add(arm, "constraint_faults", int(random.binomial(answers, behaviour.fault_rate)))


def rate_answers(counts: Counts, arm: Arm, behaviour: Behaviour, answers: int, random: np.random.Generator) -> None:
    """Add the ratings of some answers.

    Args:
        counts: get them.
        arm: the release that answered.
        behaviour: of the canary, also for stable's answers.
        answers: number of answers.
        random: draws the answers that are rated, and those that are wrong.
    """
    if not behaviour.rated:
        return
    wrong_rate = STABLE_WRONG + (behaviour.wrong_rate if arm == "canary" else 0.0)
    for _ in range(int(random.binomial(answers, behaviour.rated))):
        counts.add_rating(arm, int(random.integers(1, NUM_TENANTS)), disliked=bool(random.random() < wrong_rate))
    if behaviour.hostile:
        for _ in range(int(random.binomial(answers, 1 / NUM_TENANTS))):
            counts.add_rating(arm, 0, disliked=arm == "canary")


def draw_times(counts: Counts, arm: Arm, behaviour: Behaviour, answers: int, random: np.random.Generator) -> None:
    """Add the times of some answers to the counts."""
    timings: tuple[tuple[Timing, float, float], ...] = (
        ("first_token", behaviour.first_token_s, 0.5),
        ("inter_token", behaviour.inter_token_s, 0.2),
    )
    for timing, median_s, spread in timings:
        buckets, shares = spread_over_buckets(median_s, spread)
        drawn = random.multinomial(answers, shares)
        for index in np.flatnonzero(drawn):
            counts.add_time(arm, timing, "text", buckets[index], int(drawn[index]))


@cache
def spread_over_buckets(median_s: float, spread: float) -> tuple[list[int], NDArray[np.float64]]:
    """Return the buckets of log-normal times with their shares.

    Drawing counts of buckets takes the same time for any number of answers.
    """
    reach = 6 * spread
    buckets = list(range(bucket_of(median_s * math.exp(-reach)), bucket_of(median_s * math.exp(reach)) + 1))
    middles = np.log([seconds_of(bucket) for bucket in range(buckets[0] - 1, buckets[-1] + 2)])
    edges = (middles[:-1] + middles[1:]) / 2
    below = np.array([p_above((math.log(median_s) - edge) / spread) for edge in edges])
    shares = np.diff(below)
    return buckets, shares / shares.sum()
