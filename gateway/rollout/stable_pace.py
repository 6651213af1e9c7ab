"""Tell deadlines that no release could meet.

Clients choose their deadlines. One that is shorter than stable needs says nothing about a release.
"""

import math
from collections import Counter, defaultdict

from gateway.answer import Report
from gateway.rollout.counted_request import kind_of
from gateway.rollout.policy import Kind, Outcome, bucket_of, quantile_s

_SHARE = 0.99
_MIN_ANSWERS = 100  # of a kind, before its times are known
_MAX_ANSWERS = 10_000  # then older ones count half


class StablePace:
    """Times within which stable gives nearly all answers."""

    def __init__(self) -> None:
        self._first_token: defaultdict[Kind, Counter[int]] = defaultdict(Counter)
        self._inter_token: defaultdict[Kind, Counter[int]] = defaultdict(Counter)

    def add(self, outcome: Outcome) -> None:
        """Add a complete answer of stable."""
        for times, seconds in (
            (self._first_token[outcome.kind], outcome.first_token_s),
            (self._inter_token[outcome.kind], outcome.inter_token_s),
        ):
            if seconds is not None:
                times[bucket_of(seconds)] += 1
                if times.total() > _MAX_ANSWERS:
                    for bucket in times:
                        times[bucket] //= 2

    def allows(self, time_s: float, report: Report, unknown_s: float) -> bool:
        """Return whether stable nearly always gets further in this time.

        Args:
            time_s: from the choice of the release to the deadline.
            report: of the request, with the tokens that it got.
            unknown_s: time to the first token while stable's is unknown.
        """
        kind = kind_of(report)
        first_s = _slow_s(self._first_token[kind])
        later_s = _slow_s(self._inter_token[kind])
        needed_s = unknown_s if first_s is None else first_s
        if report.first_token_at_s:  # the next token was due after those that it got
            needed_s += (report.num_later_tokens + 1) * (math.inf if later_s is None else later_s)
        return time_s >= needed_s


def _slow_s(times: Counter[int]) -> float | None:
    return quantile_s(times, _SHARE) if times.total() >= _MIN_ANSWERS else None
