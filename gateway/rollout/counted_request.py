"""Count each request once, at its end or when overdue.

Without the second case, a release that hangs would look like one without traffic until the deadlines of its requests.
"""

import asyncio
import time
from collections.abc import Callable

from gateway.answer import Report
from gateway.rollout.policy import Arm, Kind, Outcome, Sign
from tandem.v1 import gateway_pb2

# A level that is not set yet belongs to an image that is still being encoded.
_ENCODED = (gateway_pb2.CACHE_LEVEL_MISS, gateway_pb2.CACHE_LEVEL_UNSPECIFIED)


class CountedRequest:
    """A request in flight that is counted once.

    For one event loop.
    """

    def __init__(
        self, count: Callable[[Outcome], None], report: Report, *, arm: Arm, window: str, overdue_s: float
    ) -> None:
        """Start the timer for an overdue request.

        Args:
            count: called with the outcome.
            report: filled in while the request runs.
            arm: the side of the comparison it is on.
            window: the step of the rollout it counts in.
            overdue_s: longest time to the first token, and between two tokens, seconds.
        """
        self.arm = arm
        self.window = window
        self._count = count
        self._report = report
        self._overdue_s = overdue_s
        report.routed_at_s = time.perf_counter()
        self._is_open = True
        self._timer: asyncio.TimerHandle | None = None
        self._check_overdue()

    @property
    def is_waiting(self) -> bool:
        """Whether it is uncounted and has no first token."""
        return self._is_open and not self._report.first_token_at_s

    def end(self, *, failed: bool) -> None:
        """Count how the request ended, unless it was overdue before."""
        if self._is_open:
            self._count(outcome_of(self._report, failed=failed))
        self.close()

    def close(self) -> None:
        """Stop the timer. The request is not counted after this."""
        self._is_open = False
        if self._timer is not None:
            self._timer.cancel()

    def _check_overdue(self) -> None:
        """Count the request as failed if it is overdue.

        Otherwise check again at the earliest time it can be.
        """
        report, now_s = self._report, time.perf_counter()
        # While a message waits for the client to read, the release can do nothing.
        last_progress_at_s = now_s if report.is_sending else max(report.last_token_at_s, report.sent_at_s)
        left_s = (last_progress_at_s or report.routed_at_s) + self._overdue_s - now_s
        if left_s > 0:
            self._timer = asyncio.get_running_loop().call_later(left_s, self._check_overdue)
            return
        self._count(overdue_outcome(self._report, self._overdue_s))
        self.close()


def outcome_of(report: Report, *, failed: bool) -> Outcome:
    """Return the outcome of a request that ended."""
    return Outcome(
        kind=kind_of(report),
        failed=failed,
        empty=not failed and not report.has_text and not report.is_constrained,  # a constraint may ask for white space
        first_token_s=_first_token_s(report),
        inter_token_s=report.inter_token_s,
        signs=() if failed else _signs(report),
        num_tokens=None if failed else report.signs.num_tokens,
        mean_logprob=None if failed else report.signs.mean_logprob,
    )


def overdue_outcome(report: Report, overdue_s: float) -> Outcome:
    """Return the outcome of a request that hangs.

    Without a first token, its time to first token counts as `overdue_s`, the least it can be.
    """
    first_token_s = _first_token_s(report)
    return Outcome(
        kind=kind_of(report),
        failed=True,
        overdue=True,
        empty=False,
        first_token_s=overdue_s if first_token_s is None else first_token_s,
        inter_token_s=report.inter_token_s,
    )


def _first_token_s(report: Report) -> float | None:
    return report.first_token_at_s - report.routed_at_s if report.first_token_at_s else None


def _signs(report: Report) -> tuple[Sign, ...]:
    """Return the signs that an answer has by itself."""
    found = report.signs
    signs: tuple[tuple[Sign, bool], ...] = (
        ("looped", found.looped),
        ("cut_off", found.cut_off),
        ("wrong_script", found.wrong_script),
        ("filtered", found.filtered),
    )
    return tuple(sign for sign, is_there in signs if is_there)


def kind_of(report: Report) -> Kind:
    """Return the kind of a request, within which requests compare."""
    if not report.images:
        return "text"
    return "images encoded" if any(image.cache_level in _ENCODED for image in report.images) else "images at hand"
