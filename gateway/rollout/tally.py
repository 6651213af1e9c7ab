"""How one request is counted: once, when it ends, or sooner when nothing has come for so long that it hangs.

Without the second a release that takes requests and never answers would look like one that nobody asks, until their
deadlines pass.
"""

import asyncio
import time
from collections.abc import Callable

from gateway.answer import Report
from gateway.rollout.policy import Arm, Kind, Outcome
from tandem.v1 import gateway_pb2


class Tally:
    """Waits for the one outcome of a request that is counted. For one event loop."""

    def __init__(
        self, count: Callable[[Outcome], None], report: Report, *, arm: Arm, window: str, overdue_s: float
    ) -> None:
        """Begin to wait.

        Args:
            count: takes the outcome.
            report: filled in while the request runs.
            arm: the side it is on.
            window: the stretch of the rollout it counts in.
            overdue_s: longest time from now to its first token, and from one to the next, seconds.
        """
        self.arm = arm
        self.window = window
        self._count = count
        self._report = report
        self._overdue_s = overdue_s
        report.routed_at_s = time.perf_counter()
        self._is_open = True
        self._timer: asyncio.TimerHandle | None = None
        self._look()

    @property
    def is_waiting(self) -> bool:
        """Whether it is not counted yet and has no first token."""
        return self._is_open and not self._report.first_token_at_s

    def end(self, *, failed: bool) -> None:
        """Count the request as it ended, unless it was overdue before."""
        if self._is_open:
            self._count(outcome_of(self._report, failed=failed))
        self.close()

    def close(self) -> None:
        """Count it no more."""
        self._is_open = False
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        """Count the request as failed if it is overdue; else look again when it may be."""
        left_s = (self._report.last_token_at_s or self._report.routed_at_s) + self._overdue_s - time.perf_counter()
        if left_s > 0:
            self._timer = asyncio.get_running_loop().call_later(left_s, self._look)
            return
        self._count(overdue(self._report, self._overdue_s))
        self.close()


def outcome_of(report: Report, *, failed: bool) -> Outcome:
    """Return how a request ended, as it is counted."""
    return Outcome(
        kind=_kind(report),
        failed=failed,
        empty=not failed and not report.has_text,
        first_token_s=report.first_token_at_s - report.routed_at_s if report.first_token_at_s else None,
        inter_token_s=report.inter_token_s,
    )


def overdue(report: Report, overdue_s: float) -> Outcome:
    """Return what a request that hangs counts as: its first token took at least `overdue_s` where none has come."""
    return Outcome(
        kind=_kind(report),
        failed=True,
        overdue=True,
        empty=False,
        first_token_s=report.first_token_at_s - report.routed_at_s if report.first_token_at_s else overdue_s,
        inter_token_s=report.inter_token_s,
    )


def _kind(report: Report) -> Kind:
    if not report.images:
        return "text"
    # One of no level yet is not at hand: it is still being made.
    made = (gateway_pb2.CACHE_LEVEL_MISS, gateway_pb2.CACHE_LEVEL_UNSPECIFIED)
    return "images encoded" if any(image.cache_level in made for image in report.images) else "images at hand"
